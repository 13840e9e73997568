"""Every mode, rotation and kind of damage that people's images have."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from minigan.data import DataError, decode
from minigan.data.decode import pillow_warnings

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colour(data: bytes, **settings: bool) -> np.ndarray:
    """The one colour of an image that has but one: (3,), int."""
    pixels = decode(data, 4, 4, **settings).astype(int)
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0]


def png_header(width: int, height: int) -> bytes:
    """A PNG file that ends soon after it has claimed its size."""
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(b"some pixels"),
    )
    data = b"\x89PNG\r\n\x1a\n"
    for chunk in chunks:
        data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data


# ---- modes


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_result_is_the_image(encode, format: str) -> None:
    image = np.broadcast_to(np.linspace(0, 255, 32)[:, None, None], (32, 24, 3)).astype(np.uint8)
    image = image * np.array([1, 0, 1], np.uint8) + np.array([0, 90, 0], np.uint8)
    pixels = decode(encode(image, format), 32, 24)
    assert pixels.shape == (32, 24, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    tolerance = 0 if format in ("PNG", "BMP", "TIFF", "GIF") else 12  # 32 colours are no loss to a GIF
    assert np.abs(pixels.astype(int) - image).max() <= tolerance


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_grey(encode, format: str) -> None:
    assert colour(encode(Image.new("L", (8, 8), 77), format)).tolist() == [77, 77, 77]


def test_one_bit(encode) -> None:
    assert colour(encode(Image.new("1", (8, 8), 1))).tolist() == [255, 255, 255]
    assert colour(encode(Image.new("1", (8, 8), 0))).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1000, 4), (128 * 257, 128), (65535, 255)])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(encode, value: int, expected: int) -> None:
    data = encode(np.full((8, 8), value, np.uint16))
    assert data[24] == 16, "bits a channel, in the PNG's header"
    assert colour(data).tolist() == [expected] * 3


def test_cmyk_jpeg(encode) -> None:
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(colour(data) - RED).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_laid_on_white(encode, format: str) -> None:
    lossless = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert colour(encode(Image.new("RGBA", (8, 8), (*BLUE, 0)), format, **lossless)).tolist() == list(WHITE)
    half = colour(encode(Image.new("RGBA", (8, 8), (0, 0, 255, 128)), format, **lossless))
    assert np.abs(half - [127, 127, 255]).max() <= 1
    assert colour(encode(Image.new("RGBA", (8, 8), (*BLUE, 255)), format, **lossless)).tolist() == list(BLUE)


def test_grey_with_alpha_is_laid_on_white(encode) -> None:
    assert colour(encode(Image.new("LA", (8, 8), (0, 0)))).tolist() == list(WHITE)
    assert colour(encode(Image.new("LA", (8, 8), (100, 255)))).tolist() == [100] * 3


def test_palettes_with_and_without_transparency(encode) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    assert colour(encode(image)).tolist() == list(GREEN)
    assert colour(encode(image, transparency=0)).tolist() == list(GREEN)
    assert colour(encode(image, transparency=1)).tolist() == list(WHITE)
    assert np.abs(colour(encode(image, transparency=b"\xff\x80")) - [127, 255, 127]).max() <= 1


def test_a_transparent_colour_is_white(encode) -> None:
    assert colour(encode(Image.new("RGB", (8, 8), RED), transparency=RED)).tolist() == list(WHITE)
    assert colour(encode(Image.new("RGB", (8, 8), RED), transparency=BLUE)).tolist() == list(RED)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_of_an_animation_the_first_frame(encode, format: str) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, GREEN, BLUE)]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(io.BytesIO(data)) as check:
        assert check.n_frames == 3
    assert np.abs(colour(data) - RED).max() <= 2


# ---- geometry

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientations(encode, noise, orientation: int, format: str) -> None:
    stored = noise(0, 6, 9)
    upright = UPRIGHT[orientation](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    height, width, _ = upright.shape
    np.testing.assert_array_equal(decode(encode(stored, format, exif=exif), height, width), upright)


def test_a_turned_jpeg_is_shrunk_as_it_is_decoded_and_still_upright(encode) -> None:
    upright = np.zeros((1200, 600, 3), np.uint8)
    upright[:600] = RED
    upright[600:] = BLUE
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(encode(np.rot90(upright, 1), "JPEG", exif=exif), 32, 16).astype(int)
    assert np.abs(pixels[:14] - RED).max() <= 4
    assert np.abs(pixels[18:] - BLUE).max() <= 4


def test_unreadable_exif_data_ask_for_nothing(encode, noise) -> None:
    with pillow_warnings():
        decoded = decode(encode(noise(0), exif=b"Exif\0\0no TIFF header"), 8, 8)
    np.testing.assert_array_equal(decoded, noise(0))


def test_the_centre_is_cropped_to_the_shape_of_the_result(encode, noise) -> None:
    image = noise(0, 24, 60)
    np.testing.assert_array_equal(decode(encode(image), 24, 24), image[:, 18:42])
    np.testing.assert_array_equal(decode(encode(image), 24, 30), image[:, 15:45])
    np.testing.assert_array_equal(decode(encode(image), 10, 60), image[7:17])
    thirds = np.zeros((200, 600, 3), np.uint8)
    thirds[:, :200], thirds[:, 200:400], thirds[:, 400:] = RED, GREEN, BLUE
    assert np.abs(decode(encode(thirds), 20, 20).astype(int) - GREEN)[:, 3:-3].max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2), (7, 1999)])
@pytest.mark.parametrize("target", [(64, 64), (5, 9), (1, 1)])
def test_odd_sizes(encode, size: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.full((*size, 3), RED, np.uint8)
    assert (decode(encode(image), *target) == RED).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_fine_detail_is_averaged_not_sampled(encode, format: str) -> None:
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode(encode(board, format, quality=100), 32, 32)[2:-2, 2:-2].astype(int)
    assert np.abs(pixels - 127).max() <= 3


@pytest.mark.parametrize(("format", "settings"), [("PNG", {}), ("JPEG", {"quality": 95, "subsampling": 0})])
def test_shrinking_in_two_steps_is_close_to_one(encode, format: str, settings: dict[str, int]) -> None:
    y, x = np.mgrid[0:1.0:900j, 0:1.0:900j]
    waves = np.stack([np.sin(40 * x), np.sin(30 * y), np.sin(50 * (x + y))], -1)
    image = Image.fromarray((127 + 120 * waves).astype(np.uint8))
    exact = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    difference = np.abs(decode(encode(image, format, **settings), 64, 64) - exact)
    assert difference.mean() < 0.3
    assert difference.max() <= 3


# ---- grey


def test_grey_images_can_be_left_out(encode) -> None:
    for image in (Image.new("L", (8, 8), 5), Image.new("RGB", (8, 8), (9, 9, 9)), Image.new("1", (8, 8))):
        with pytest.raises(DataError, match=r"^grey$"):
            decode(encode(image), 4, 4, skip_grey=True)
        decode(encode(image), 4, 4)
    with pytest.raises(DataError, match=r"^grey$"):
        decode(encode(Image.new("RGB", (8, 8), (9, 9, 9)), "JPEG"), 4, 4, skip_grey=True)
    for almost in ((10, 9, 9), (9, 9, 10)):
        spot = Image.new("RGB", (8, 8), (9, 9, 9))
        spot.putpixel((0, 0), almost)
        decode(encode(spot), 4, 4, skip_grey=True)


# ---- damage


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_an_error(encode, noise, format: str) -> None:
    data = encode(noise(0, 64, 64), format)
    for size in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(DataError, match=r"truncated|damaged|not a JPEG"):
            decode(data[:size], 8, 8)


def test_reasons(encode, noise) -> None:
    png = encode(noise(0, 64, 64))
    cases = {
        b"": "empty file",
        b"plain text": "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
        encode(noise(0), "PPM"): "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
        encode(noise(0), "PCX"): "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
        encode(np.ones((8, 8), np.float32), "TIFF"): "numbers of 32 bits",
        encode(np.ones((8, 8), np.int32), "TIFF"): "numbers of 32 bits",
        encode(noise(0, 64, 64), "JPEG")[:1000]: "truncated",
        png[:60] + bytes([png[60] ^ 255]) + png[61:]: "damaged: ",
    }
    for data, reason in cases.items():
        with pytest.raises(DataError, match=f"^{reason}"):
            decode(data, 8, 8)


@pytest.mark.parametrize("size", [(5000, 5001), (10_000, 10_000), (50_000, 50_000)])
@pytest.mark.parametrize("heard", ["error", "ignore"])
def test_the_size_is_checked_before_decoding(size: tuple[int, int], heard: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(heard)
        with pytest.raises(DataError, match=r"^larger than 25 megapixels$"):
            decode(png_header(*size), 8, 8)
    with pytest.raises(DataError, match=r"truncated|damaged"):
        decode(png_header(5000, 5000), 8, 8)


def gif_header(width: int, height: int) -> bytes:
    """A GIF of 1 x 1 pixels by its head, with a frame of another size in it."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2"
    )


def bmp_header(width: int, height: int) -> bytes:
    return struct.pack("<2sIII IiiHHIIiiII", b"BM", 58, 0, 54, 40, width, height, 1, 24, 0, 4, 0, 0, 0, 0) + b"\0" * 4


def tiff_header(width: int, height: int) -> bytes:
    """Bits a sample 8, no compression, black is 0; its one strip, of 4 bytes, lies at the end."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 8 * 12 + 4, 278: height, 279: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 8


@pytest.mark.parametrize("header", [gif_header, bmp_header, tiff_header])
def test_the_size_is_checked_before_decoding_in_other_formats(header: Callable[[int, int], bytes]) -> None:
    with pytest.raises(DataError, match=r"^larger than 25 megapixels$"):
        decode(header(5000, 5001), 8, 8)
    with pytest.raises(DataError, match=r"truncated|damaged"):
        decode(header(5000, 5000), 8, 8)


def test_within_pillow_warnings_bombs_are_errors_and_remarks_are_silent() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pillow_warnings():
            with pytest.raises(Image.DecompressionBombWarning):
                warnings.warn("a bomb", Image.DecompressionBombWarning, stacklevel=1)
            warnings.warn_explicit("corrupt EXIF", UserWarning, "TiffImagePlugin.py", 1, "PIL.TiffImagePlugin")
        warnings.warn_explicit("corrupt EXIF", UserWarning, "TiffImagePlugin.py", 1, "PIL.TiffImagePlugin")
    assert len(heard) == 1
