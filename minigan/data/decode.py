"""From the bytes of an image file to RGB pixels of one size."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minigan.data.sources import FORMATS_IN_WORDS, DataError

# Pillow is imported where it is first needed: it would take most of the time of `import minigan.data`.
if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 25_000_000
TOO_LARGE = f"larger than {MAX_PIXELS // 1_000_000} megapixels"
# Large images are first shrunk by a whole number, to no less than this many times the final size, then by the
# good filter. From 3 on the result is indistinguishable in most cases, says Pillow, and it is much faster.
REDUCING_GAP = 3


def decode(data: bytes, height: int, width: int, *, skip_grey: bool = False) -> Pixels:
    """The first frame of an image file of one of FORMATS, upright, on white, its centre cropped to the wanted shape.

    data: the bytes of the file. Returns (height, width, 3), uint8.
    With `skip_grey` an image without any colour, in whatever mode it is stored, is refused.
    Raises DataError, with the reason, for bytes that do not give a whole image or would give too large a one.
    """
    with _opened(data) as image:
        # A JPEG can be halved as it is decoded. One bound for both axes holds however it is turned.
        bound = REDUCING_GAP * max(height, width)
        image.draft(None, (bound, bound))
        rgb = _upright(image, _to_rgb(image))
        if skip_grey and _is_grey(rgb):
            raise DataError("grey")
        return np.array(_crop_and_resize(rgb, height, width))


def decode_stored(data: bytes) -> "PillowImage":
    """As `decode`, but an RGB picture of the file's own size and not turned: its pixels are where the file has them.

    It is for pictures with coordinates beside them, which count the stored pixels.
    """
    with _opened(data) as image:
        return _to_rgb(image)


@contextmanager
def _opened(data: bytes) -> Iterator["PillowImage"]:
    """An image file opened, its size checked, nothing decoded. What goes wrong within it is a DataError, too."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise DataError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(TOO_LARGE)
            if image.format == "TIFF" and image.mode in ("I", "F"):
                raise DataError("numbers of 32 bits, of which none is known to be white")
            yield image
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(f"not a {FORMATS_IN_WORDS} image") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(TOO_LARGE) from None
    except Exception as error:  # a damaged file may raise nearly anything in Pillow
        reason = "truncated" if "truncated" in str(error).lower() else f"damaged: {error}"
        raise DataError(reason) from error


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Within it Pillow's warning of a decompression bomb is an error; its remarks on metadata are silent.

    Enter it once, around all threads that decode: Python's warning filters belong to the whole process.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _to_rgb(image: "PillowImage") -> "PillowImage":
    """Any mode of Pillow's to "RGB"; what is transparent is laid on white."""
    from PIL import Image

    image.load()
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion clips; 65535 = 257 * 255
        grey16 = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey16 + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert("RGB")


def _upright(image: "PillowImage", pixels: "PillowImage") -> "PillowImage":
    """`pixels` turned as the EXIF data of the file `image` ask for."""
    from PIL.ExifTags import Base
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(Base.Orientation, 1))
    except Exception:  # EXIF data that cannot be read ask for nothing: viewers show such a picture as it lies
        turn = None
    return pixels if turn is None else pixels.transpose(turn)


def _is_grey(rgb: "PillowImage") -> bool:
    red, green, blue = (np.asarray(channel) for channel in rgb.split())
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _crop_and_resize(rgb: "PillowImage", height: int, width: int) -> "PillowImage":
    """The largest centred part with the aspect ratio width : height, resized to it with antialiasing."""
    from PIL.Image import Resampling

    crop_width = min(rgb.width, rgb.height * width / height)
    crop_height = min(rgb.height, rgb.width * height / width)
    box = (
        (rgb.width - crop_width) / 2,
        (rgb.height - crop_height) / 2,
        (rgb.width + crop_width) / 2,
        (rgb.height + crop_height) / 2,
    )
    return rgb.resize((width, height), Resampling.LANCZOS, box, reducing_gap=REDUCING_GAP)
