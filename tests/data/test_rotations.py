"""One picture at every angle: the right way round, complete to the corners, and the same in the mirror."""

import numpy as np
import pytest
from PIL import Image

from minigan.data.rotations import rotations


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth, and without any symmetry: (200, 260, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((260, 200), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(32, 32), (19, 33), (50, 20), (1, 1)])
def test_shape_and_dtype(picture: Image.Image, size: tuple[int, int]) -> None:
    turned = rotations(picture, *size)
    assert turned.shape == (720, *size, 3)
    assert turned.dtype == np.uint8


def test_picture_0_is_the_inner_square(picture: Image.Image) -> None:
    half = 100 / np.sqrt(2)
    inner = picture.resize((32, 32), Image.Resampling.LANCZOS, box=(130 - half, 100 - half, 130 + half, 100 + half))
    difference = np.abs(rotations(picture, 32, 32)[0].astype(float) - np.asarray(inner))
    assert difference.mean() < 1.5


def test_quarter_turns_are_exact_and_counter_clockwise(picture: Image.Image) -> None:
    turned = rotations(picture, 32, 32)
    for quarters in (1, 2, 3):
        difference = np.rot90(turned[0], quarters).astype(int) - turned[90 * quarters]
        assert np.abs(difference).max() <= 1


def test_every_angle_is_what_pillow_makes_of_the_whole_picture(picture: Image.Image) -> None:
    turned = rotations(picture, 31, 31)
    half = 100 / np.sqrt(2)
    for degree in (1, 37, 45, 123, 200, 359):
        whole = picture.rotate(degree, Image.Resampling.BICUBIC)
        box = (130 - half, 100 - half, 130 + half, 100 + half)
        expected = np.asarray(whole.resize((31, 31), Image.Resampling.LANCZOS, box=box)).astype(float)
        assert np.abs(turned[degree] - expected).mean() < 2
        assert np.abs(turned[(degree + 10) % 360] - expected).mean() > 4


def test_the_second_half_is_mirrored(picture: Image.Image) -> None:
    turned = rotations(picture, 24, 30)
    np.testing.assert_array_equal(turned[360:], turned[:360, :, ::-1])


@pytest.mark.parametrize("size", [(32, 32), (10, 40), (33, 17)])
def test_corners_are_never_empty(size: tuple[int, int]) -> None:
    turned = rotations(Image.new("RGB", (97, 120), (10, 200, 90)), *size)
    assert (turned == np.array([10, 200, 90])).all()


def test_any_mode(picture: Image.Image) -> None:
    grey = rotations(picture.convert("L"), 8, 8)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_no_size() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got 0 and 32"):
        rotations(Image.new("RGB", (8, 8)), 0, 32)
