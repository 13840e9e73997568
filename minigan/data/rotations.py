"""One picture becomes a data set: turned by every whole degree, and all of that once more in the mirror."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

# Pillow is imported where it is first needed, as in the rest of minigan.data.
if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

DEGREES = 360
SMOOTHING = 2  # each picture is turned at this many times its size and then reduced, which antialiases it


def rotations(picture: "PillowImage", height: int, width: int) -> npt.NDArray[np.uint8]:
    """The middle of picture, turned about its centre. Returns (720, height, width, 3), uint8.

    Picture i, up to 359, is turned by i degrees counter-clockwise; picture 360 + i is its mirror image. The
    middle is the largest rectangle of the wanted shape whose corners stay inside the picture at every angle;
    of a square picture, for square results, that is the inner square with 0.71 times the side.
    """
    from PIL import Image

    if height < 1 or width < 1:
        raise ValueError(f"height and width: expected at least 1, got {height} and {width}")
    large_height, large_width = SMOOTHING * height, SMOOTHING * width
    diagonal = math.hypot(large_height, large_width)
    side = math.ceil(diagonal)
    disc = _central_square(picture).resize((side, side), Image.Resampling.LANCZOS)  # the corners reach its rim

    turned = np.empty((DEGREES, height, width, 3), np.uint8)
    for degree in range(DEGREES):
        cosine = side / diagonal * math.cos(math.radians(degree))
        sine = side / diagonal * math.sin(math.radians(degree))
        # Pillow asks where in the disc each pixel (x, y) of the result comes from: (a x + b y + c, d x + e y + f).
        c = 0.5 * (side - cosine * large_width + sine * large_height)
        f = 0.5 * (side - sine * large_width - cosine * large_height)
        large = disc.transform(
            (large_width, large_height),
            Image.Transform.AFFINE,
            (cosine, -sine, c, sine, cosine, f),
            Image.Resampling.BICUBIC,
        )
        turned[degree] = np.asarray(large.reduce(SMOOTHING))
    return np.concatenate([turned, turned[:, :, ::-1]])


def _central_square(picture: "PillowImage") -> "PillowImage":
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.convert("RGB").crop((left, top, left + side, top + side))
