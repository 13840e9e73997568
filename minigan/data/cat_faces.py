"""Cat faces from pictures with nine marks on each: the eyes made level, the face cut out.

The marks are those of the Kaggle "cat-dataset": beside each picture X.jpg a file X.jpg.cat of one line,
"9 x1 y1 ... x9 y9": left eye, right eye, mouth, three points of the left ear, three of the right, in pixels from the
picture's upper left corner. Left and right are as one looks at the picture.
"""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minigan.data.sources import DataError

# Pillow is imported where it is first needed, as in the rest of minigan.data.
if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Marks = npt.NDArray[np.float64]  # (9, 2): x and y of each mark

LEFT_EYE, RIGHT_EYE, MOUTH, OUTER_LEFT_EAR, OUTER_RIGHT_EAR = 0, 1, 2, 3, 8
BORDER = (128, 128, 128)  # what turning brings in from outside of the picture
MAX_BYTES = 1000  # of an annotation: its line has about 80
# No "nan", no "inf", and no number so large that sums of squares lose their meaning.
_NUMBER = re.compile(rb"[+-]?\d{1,6}(\.\d{0,6})?")


@dataclass(frozen=True)
class Face:
    """Where a face is: turn the picture counter-clockwise by `degrees` about the pixel `centre`, then cut out `box`.

    box: left, top, right, bottom in whole pixels, inside the picture; right and bottom are the first outside the face.
    """

    degrees: float
    centre: tuple[float, float]
    box: tuple[int, int, int, int]

    @property
    def smaller_side(self) -> int:
        left, top, right, bottom = self.box
        return min(right - left, bottom - top)


def parse_marks(annotation: bytes) -> Marks:
    """The marks in the bytes of an annotation. Raises DataError for anything but nine points."""
    if len(annotation) > MAX_BYTES:
        raise DataError(f"annotation: expected at most {MAX_BYTES:,} bytes, got {len(annotation):,}")
    words = annotation.split()
    if len(words) != 19 or words[0] != b"9":
        raise DataError(f"annotation: expected 9 and then 18 numbers, got {len(words)} words")
    if not all(map(_NUMBER.fullmatch, words)):
        raise DataError("annotation: expected numbers of pixels, got something else")
    return np.array([float(word) for word in words[1:]]).reshape(9, 2)


def find_face(marks: Marks, width: int, height: int) -> Face:
    """Where the face is in a picture of this size. Raises DataError for eyes that cannot be those of a face in it.

    The face is as wide as the outer points of the ears are apart once the eyes are level, and as high; the eyes are in
    the middle, two fifths from the top. What would be outside of the picture is cut off, so it may not be square.
    """
    left_eye, right_eye, mouth = marks[LEFT_EYE], marks[RIGHT_EYE], marks[MOUTH]
    if left_eye[0] > right_eye[0] and left_eye[1] < right_eye[1] and mouth[0] > right_eye[0]:
        left_eye, right_eye = right_eye, left_eye  # they were marked the wrong way round
    for x, y in (left_eye, right_eye):
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(f"annotation: an eye at {x:g}, {y:g} is outside of the picture, {width} x {height}")
    across = right_eye - left_eye
    distance = math.hypot(*across)
    if distance == 0:
        raise DataError("annotation: both eyes are in one place")
    x, y = (left_eye + right_eye) / 2
    # After the turn the x axis runs along `across`, so that is where the ears are projected.
    side = abs(float((marks[OUTER_RIGHT_EAR] - marks[OUTER_LEFT_EAR]) @ across)) / distance
    left, top = x - side / 2, y - side * 2 / 5
    box = (
        max(math.floor(left), 0),
        max(math.floor(top), 0),
        min(math.floor(left + side), width),
        min(math.floor(top + side), height),
    )
    return Face(math.degrees(math.atan2(across[1], across[0])), (float(x), float(y)), box)


def cut_out(picture: "PillowImage", face: Face) -> "PillowImage":
    """The face upright, at its own size, with grey where it reached over the picture's border as it was turned."""
    from PIL.Image import Resampling

    x, y = face.centre
    # Pillow counts from the corner of the first pixel, marks from its middle.
    turned = picture.rotate(face.degrees, Resampling.BICUBIC, center=(x + 0.5, y + 0.5), fillcolor=BORDER)
    return turned.crop(face.box)
