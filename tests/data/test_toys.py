"""The drawn toy pictures: reproducible, of the promised form, different from each other, and really cats."""

import numpy as np
import pytest
from PIL import Image

from minigan.data import toys
from minigan.data.rotations import rotations
from minigan.data.toys import photo
from minigan.data.toys.canvas import Canvas, Pose, closed_curve, ellipse, stroke, symmetric, widened

KINDS = sorted(toys.KINDS)
ONE_BY_ONE = sorted(set(KINDS) - {"photo"})  # pictures of their own, not one picture turned


@pytest.fixture(scope="module")
def cats() -> np.ndarray:
    """(96, 32, 32, 3), float64, 0 ... 255."""
    return toys.draw("cats", 96, 32, seed=1).astype(float)


def mean_colour_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The colour distance of two regions' means. (n, h, w, 3) twice -> (n,)."""
    return np.linalg.norm(a.mean(axis=(1, 2)) - b.mean(axis=(1, 2)), axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "shape"), [(32, (32, 32)), ((19, 33), (19, 33)), ((50, 20), (50, 20))])
def test_shape_and_dtype(kind: str, size: tuple[int, int] | int, shape: tuple[int, int]) -> None:
    pictures = toys.draw(kind, 3, size, seed=0)
    assert pictures.shape == (3, *shape, 3)
    assert pictures.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_no_pictures(kind: str) -> None:
    assert toys.draw(kind, 0, 32, seed=0).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_pictures(kind: str) -> None:
    pictures = toys.draw(kind, 5, 32, seed=7)
    np.testing.assert_array_equal(pictures, toys.draw(kind, 5, 32, seed=7))
    assert not np.array_equal(pictures, toys.draw(kind, 5, 32, seed=8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_set_begins_with_the_shorter_one(kind: str) -> None:
    np.testing.assert_array_equal(toys.draw(kind, 6, 32, seed=3)[:2], toys.draw(kind, 2, 32, seed=3))


@pytest.mark.parametrize("kind", KINDS)
def test_every_size_shows_the_same_picture(kind: str) -> None:
    large = toys.draw(kind, 8, 128, seed=2).reshape(8, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    small = toys.draw(kind, 8, 32, seed=2)
    difference = np.abs(large - small).mean(axis=(1, 2, 3))
    assert (difference < 8).all(), difference
    # Pictures of another seed are much farther away, so the bound above does tell one from another.
    other = toys.draw(kind, 8, 32, seed=3)
    assert (np.abs(large - other).mean(axis=(1, 2, 3)) > 12).all()


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_all_pictures_differ(kind: str) -> None:
    flat = toys.draw(kind, 96, 32, seed=1).astype(float).reshape(96, -1)
    distances = np.concatenate([np.abs(flat[i + 1 :] - flat[i]).mean(axis=1) for i in range(len(flat) - 1)])
    assert distances.min() > 5
    assert distances.mean() > 35


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_every_picture_shows_two_like_eyes(kind: str) -> None:
    """Around the height of the eyes the left half has a partner in the mirror: the row is more uneven than
    forehead and cheeks, and has something as dark as a pupil and as light as a highlight on both sides."""
    eyes = toys.draw(kind, 48, 64, seed=4).astype(float).mean(axis=-1)[:, 24:42, 14:50]
    for half in (eyes[:, :, :18], eyes[:, :, 18:]):
        contrast = half.max(axis=(1, 2)) - half.min(axis=(1, 2))
        assert (contrast > 60).all(), contrast.min()


def test_cartoons_are_flat() -> None:
    """A few colours cover most of a cartoon, but little of a shaded portrait."""

    def share_of_ten_colours(kind: str) -> np.ndarray:
        coarse = toys.draw(kind, 24, 64, seed=0).astype(int).reshape(24, -1, 3) // 8
        codes = coarse @ np.array([1, 32, 1024])
        return np.array([np.sort(np.bincount(code))[-10:].sum() / code.size for code in codes])

    assert np.median(share_of_ten_colours("cartoons")) > 0.75
    assert np.median(share_of_ten_colours("faces")) < 0.6


def test_most_cartoons_are_yellow_and_some_are_not() -> None:
    red, green, blue = toys.draw("cartoons", 96, 64, seed=1)[:, 44:46, 18:22].astype(float).mean(axis=(1, 2)).T
    yellow = (red > 200) & (green > 160) & (blue < 120)  # the cheek
    assert 0.4 < yellow.mean() < 0.85


def test_anime_hair_has_many_colours() -> None:
    hair = toys.draw("anime", 96, 64, seed=1)[:, 14:18, 28:36].astype(float).mean(axis=(1, 2))
    assert (hair.std(axis=0) > 40).all()


def test_faces_have_many_skins_and_their_light_comes_from_either_side() -> None:
    faces = toys.draw("faces", 96, 64, seed=1).astype(float)
    skin = faces[:, 36:40, 24:40].mean(axis=(1, 2, 3))
    assert skin.min() < 90
    assert skin.max() > 190
    left, right = faces[:, 30:44, 20:26].mean(axis=(1, 2, 3)), faces[:, 30:44, 38:44].mean(axis=(1, 2, 3))
    assert 0.25 < (left > right + 5).mean() < 0.75
    assert 0.25 < (right > left + 5).mean() < 0.75


def test_photo_is_one_landscape_turned_and_mirrored() -> None:
    pictures = toys.draw("photo", 730, 16, seed=5)
    expected = rotations(photo.draw_landscape(np.random.default_rng(5)), 16, 16)
    np.testing.assert_array_equal(pictures[:720], expected)
    np.testing.assert_array_equal(pictures[720:], expected[:10])


def test_no_two_turns_of_the_photo_look_alike() -> None:
    pictures = toys.draw("photo", 720, 16, seed=0).astype(float)[::20].reshape(36, -1)
    distances = [np.abs(np.delete(pictures, i, axis=0) - pictures[i]).mean(axis=1).min() for i in range(36)]
    assert min(distances) > 8


def test_the_sky_of_the_photo_is_above() -> None:
    for seed in range(6):
        upright = toys.draw("photo", 1, 32, seed=seed)[0].astype(float)
        assert upright[:8, :, 2].mean() > upright[-8:, :, 2].mean() + 5  # bluer or, over snow, lighter


def test_cats_use_the_whole_range_of_brightness(cats: np.ndarray) -> None:
    fur = cats[:, 13:16, 14:18].mean(axis=(1, 2, 3))  # between the eyes
    assert fur.min() < 80
    assert fur.max() > 220


def test_eyes_have_contrast(cats: np.ndarray) -> None:
    """Rim, iris, pupil and highlight make the eyes far more uneven than the brow."""
    eyes = np.concatenate([cats[:, 14:21, 8:14], cats[:, 14:21, 18:24]], axis=2).std(axis=(1, 2)).mean(axis=1)
    brow = cats[:, 9:12, 14:18].std(axis=(1, 2)).mean(axis=1)
    assert (eyes > 30).all()
    assert np.median(eyes / brow) > 2


def test_ears_stand_out_from_the_background(cats: np.ndarray) -> None:
    """Between the ears there is background, so it differs from the ears on both sides of it."""
    between, left, right = cats[:, 3:6, 14:18], cats[:, 6:11, 6:10], cats[:, 6:11, 22:26]
    for ear in (left, right):
        difference = mean_colour_distance(ear, between)
        assert (difference > 25).mean() > 0.9
        assert np.median(difference) > 60


def test_ears_are_inside_the_frame() -> None:
    """The topmost rows show background only: they are as smooth as a gradient with a pattern is."""
    rows = toys.draw("cats", 64, 64, seed=5)[:, 0].astype(float)
    assert (np.abs(np.diff(rows, axis=1)).max(axis=(1, 2)) < 40).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dogs", 1, 32, 0), "kind: expected one of .*'cats'.*, got 'dogs'"),
        (("cats", -1, 32, 0), "count: .* got -1"),
        (("cats", 1.5, 32, 0), "count: .* got 1.5"),
        (("cats", 1, 0, 0), "size: expected at least 8 pixels a side, got 0"),
        (("cats", 1, (32, 4), 0), r"size: expected at least 8 pixels a side, got \(32, 4\)"),
        (("cats", 1, (32, 32, 3), 0), r"size: .* got \(32, 32, 3\)"),
        (("cats", 1, 32.0, 0), "size: .* got 32.0"),
        (("cats", 1, "32", 0), "size: .* got '32'"),
        (("cats", 1, 32, -1), "seed: .* got -1"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toys.draw(*arguments)


def test_closed_curve_passes_through_its_points() -> None:
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(closed_curve(points, samples=4)[::4], points)


def test_symmetric_has_points_on_the_axis_once() -> None:
    outline = symmetric([(0.0, -1.0), (1.0, 0.0), (0.0, 1.0)])
    np.testing.assert_array_equal(outline, [(0, -1), (1, 0), (0, 1), (-1, 0)])


@pytest.mark.parametrize("direction", [1, -1])
def test_widened_moves_the_rim_outwards(direction: int) -> None:
    rim = widened(ellipse(0.3, -0.1, 0.5, 0.5)[::direction], 0.2) - (0.3, -0.1)
    np.testing.assert_allclose(np.hypot(*rim.T), 0.7)


def test_stroke_is_as_wide_as_asked() -> None:
    line = np.stack([np.linspace(0, 3, 11), np.zeros(11)], axis=1)
    outline = stroke(line, 0.4)
    np.testing.assert_allclose([outline[:, 1].min(), outline[:, 1].max()], [-0.2, 0.2])
    np.testing.assert_allclose(outline[0], (0, 0), atol=1e-12)


def test_pose_rotates_clockwise_then_shifts() -> None:
    pose = Pose(rotation=np.pi / 2, scale=(2.0, 1.0), shift=(0.5, 0.0))
    np.testing.assert_allclose(pose(np.array([(1.0, 0.0), (0.0, 1.0)])), [(0.5, 2.0), (-0.5, 0.0)], atol=1e-12)


def test_pose_turns_the_middle_and_leaves_what_is_far() -> None:
    turned = Pose(turn=0.1)(np.array([(0.0, 0.0), (2.0, 0.0)]))
    np.testing.assert_allclose(turned, [(0.1, 0.0), (2.0, 0.0)], atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (64, 99), (200, 170)])
def test_canvas_draws_in_the_centre_antialiased(size: tuple[int, int]) -> None:
    canvas = Canvas(*size)
    canvas.fill(ellipse(0, 0, 0.5, 0.5, samples=100), (255, 255, 255))
    picture = np.asarray(canvas.finish()).astype(float)[..., 0] / 255
    centre = [np.average(np.arange(side) + 0.5, weights=picture.sum(axis=1 - axis)) for axis, side in enumerate(size)]
    np.testing.assert_allclose(centre, (size[0] / 2, size[1] / 2), atol=0.05)
    area = np.pi * (0.25 * min(size)) ** 2
    assert abs(picture.sum() - area) < 0.05 * area
    assert ((picture > 0.1) & (picture < 0.9)).any()


def test_soft_fill_fades_around_the_rim_and_covers_the_middle() -> None:
    canvas = Canvas(96, 96)
    canvas.soft_fill([ellipse(0, 0, 0.6, 0.6, samples=60)], (250, 250, 250), blur=0.1, opacity=0.8)
    row = np.asarray(canvas.finish()).astype(float)[48, :, 0] / 250
    assert abs(row[48] - 0.8) < 0.02
    assert row[4] < 0.01
    assert abs(row[19] - 0.4) < 0.1  # the rim, at x = -0.6
    assert (np.diff(row[:48]) > -0.01).all()


def test_soft_rim_spares_the_middle() -> None:
    canvas = Canvas(96, 96)
    canvas.soft_rim([ellipse(0, 0, 0.6, 0.6, samples=60)], (250, 250, 250), blur=0.1, opacity=0.8)
    row = np.asarray(canvas.finish()).astype(float)[48, :, 0] / 250
    assert row[48] < 0.01
    assert abs(row[19] - 0.4) < 0.1


def test_outlined_shapes_are_one_shape() -> None:
    canvas = Canvas(64, 64, colour=(0, 0, 255))
    canvas.outlined([ellipse(-0.2, 0, 0.3, 0.3), ellipse(0.2, 0, 0.3, 0.3)], (255, 255, 255), (255, 0, 0), 0.1)
    picture = np.asarray(canvas.finish())
    np.testing.assert_array_equal(picture[32, 20:44], 255)  # no line between the two
    assert tuple(picture[32, 14]) == tuple(picture[32, 49]) == (255, 0, 0)
    assert tuple(picture[32, 8]) == (0, 0, 255)


def test_what_is_outside_of_the_picture_changes_nothing() -> None:
    canvas = Canvas(16, 16)
    far = [ellipse(5, 5, 1, 1)]
    canvas.soft_fill(far, (255, 255, 255), blur=0.1)
    canvas.paste(canvas.layer((255, 255, 255)), far)
    assert not np.asarray(canvas.finish()).any()


def test_gradient_runs_from_start_to_end() -> None:
    canvas = Canvas(24, 36)
    canvas.gradient((0, 0, 0), (200, 100, 50), angle=np.pi / 2)
    picture = canvas.finish()
    assert isinstance(picture, Image.Image)
    column = np.asarray(picture).astype(int)[:, 18]
    assert column[0].max() < 10
    assert (column[-1] > (185, 90, 45)).all()
    assert (np.diff(column, axis=0) >= 0).all()
