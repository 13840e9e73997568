"""The drawn toy pictures: reproducible, of the promised form, different from each other, and really cats."""

import numpy as np
import pytest
from PIL import Image

from minigan.data import toys
from minigan.data.toys.canvas import Canvas, Pose, closed_curve, ellipse, stroke


@pytest.fixture(scope="module")
def cats() -> np.ndarray:
    """(96, 32, 32, 3), float64, 0 ... 255."""
    return toys.draw("cats", 96, 32, seed=1).astype(float)


def mean_colour_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The colour distance of two regions' means. (n, h, w, 3) twice -> (n,)."""
    return np.linalg.norm(a.mean(axis=(1, 2)) - b.mean(axis=(1, 2)), axis=1)


@pytest.mark.parametrize("kind", sorted(toys.KINDS))
@pytest.mark.parametrize(("size", "shape"), [(32, (32, 32)), ((19, 33), (19, 33)), ((50, 20), (50, 20))])
def test_shape_and_dtype(kind: str, size: tuple[int, int] | int, shape: tuple[int, int]) -> None:
    pictures = toys.draw(kind, 3, size, seed=0)
    assert pictures.shape == (3, *shape, 3)
    assert pictures.dtype == np.uint8


@pytest.mark.parametrize("kind", sorted(toys.KINDS))
def test_no_pictures(kind: str) -> None:
    assert toys.draw(kind, 0, 32, seed=0).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("kind", sorted(toys.KINDS))
def test_same_seed_same_pictures(kind: str) -> None:
    pictures = toys.draw(kind, 5, 32, seed=7)
    np.testing.assert_array_equal(pictures, toys.draw(kind, 5, 32, seed=7))
    assert not np.array_equal(pictures, toys.draw(kind, 5, 32, seed=8))


@pytest.mark.parametrize("kind", sorted(toys.KINDS))
def test_a_longer_set_begins_with_the_shorter_one(kind: str) -> None:
    np.testing.assert_array_equal(toys.draw(kind, 6, 32, seed=3)[:2], toys.draw(kind, 2, 32, seed=3))


@pytest.mark.parametrize("kind", sorted(toys.KINDS))
def test_every_size_shows_the_same_picture(kind: str) -> None:
    large = toys.draw(kind, 8, 128, seed=2).reshape(8, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    small = toys.draw(kind, 8, 32, seed=2)
    difference = np.abs(large - small).mean(axis=(1, 2, 3))
    assert (difference < 8).all(), difference
    # Other cats are much farther away, so the bound above does tell one from another.
    assert (np.abs(large - small[::-1]).mean(axis=(1, 2, 3)) > 16).all()


def test_all_cats_differ(cats: np.ndarray) -> None:
    flat = cats.reshape(len(cats), -1)
    distances = np.concatenate([np.abs(flat[i + 1 :] - flat[i]).mean(axis=1) for i in range(len(flat) - 1)])
    assert distances.min() > 5
    assert distances.mean() > 40


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


def test_stroke_is_as_wide_as_asked() -> None:
    line = np.stack([np.linspace(0, 3, 11), np.zeros(11)], axis=1)
    outline = stroke(line, 0.4)
    np.testing.assert_allclose([outline[:, 1].min(), outline[:, 1].max()], [-0.2, 0.2])
    np.testing.assert_allclose(outline[0], (0, 0), atol=1e-12)


def test_pose_rotates_clockwise_then_shifts() -> None:
    pose = Pose(rotation=np.pi / 2, scale=(2.0, 1.0), shift=(0.5, 0.0))
    np.testing.assert_allclose(
        pose(np.array([(1.0, 0.0), (0.0, 1.0)])), [(0.5, 2.0), (-0.5, 0.0)], atol=1e-12
    )


def test_pose_turns_the_middle_and_leaves_what_is_far() -> None:
    turned = Pose(turn=0.1)(np.array([(0.0, 0.0), (2.0, 0.0)]))
    np.testing.assert_allclose(turned, [(0.1, 0.0), (2.0, 0.0)], atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (64, 99), (200, 170)])
def test_canvas_draws_in_the_centre_antialiased(size: tuple[int, int]) -> None:
    canvas = Canvas(*size)
    canvas.fill(ellipse(0, 0, 0.5, 0.5, samples=100), (255, 255, 255))
    picture = np.asarray(canvas.finish()).astype(float)[..., 0] / 255
    centre = [
        np.average(np.arange(side) + 0.5, weights=picture.sum(axis=1 - axis))
        for axis, side in enumerate(size)
    ]
    np.testing.assert_allclose(centre, (size[0] / 2, size[1] / 2), atol=0.05)
    area = np.pi * (0.25 * min(size)) ** 2
    assert abs(picture.sum() - area) < 0.05 * area
    assert ((picture > 0.1) & (picture < 0.9)).any()


def test_gradient_runs_from_start_to_end() -> None:
    canvas = Canvas(24, 36)
    canvas.gradient((0, 0, 0), (200, 100, 50), angle=np.pi / 2)
    picture = canvas.finish()
    assert isinstance(picture, Image.Image)
    column = np.asarray(picture).astype(int)[:, 18]
    assert column[0].max() < 10
    assert (column[-1] > (185, 90, 45)).all()
    assert (np.diff(column, axis=0) >= 0).all()
