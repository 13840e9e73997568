"""What every toy picture is drawn with: curves, colours, a pose, and a canvas in unit coordinates.

Unit coordinates do not know the size of the picture: (0, 0) is the centre, x grows to the right and y
downwards, and the shorter side of the picture spans -1 ... 1. So one drawing serves every size. Shapes
are arrays of points, (n, 2), x before y.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]


# ---- colours ----


def jitter(rng: np.random.Generator, colour: Colour, brightness: float = 0.08, tint: float = 5.0) -> Colour:
    """A neighbour of colour: all channels brighter or darker by one factor, then each moved a little."""
    values = np.array(colour) * rng.uniform(1 - brightness, 1 + brightness) + rng.normal(0, tint, 3)
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue


def mix(a: Colour, b: Colour, share_of_b: float) -> Colour:
    """The colour between a (at 0) and b (at 1)."""
    red, green, blue = (round(p + (q - p) * share_of_b) for p, q in zip(a, b, strict=True))
    return red, green, blue


def brightness(colour: Colour) -> float:
    """How light a colour looks, 0 (black) to 255 (white): the luma of ITU-R BT.601."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


# ---- shapes ----


@lru_cache
def _closed_basis(count: int, samples: int) -> np.ndarray:
    """(count * samples, count): the weights of a closed Catmull-Rom spline through count points."""
    t = np.arange(samples) / samples
    # The weights of the previous point, the segment's two ends, and the next point.
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1
    )
    basis = np.zeros((count, samples, count))
    for segment in range(count):
        for neighbour in range(4):
            basis[segment, :, (segment + neighbour - 1) % count] += weights[:, neighbour]
    return basis.reshape(count * samples, count)


def closed_curve(points: np.ndarray, samples: int = 8) -> np.ndarray:
    """(n, 2) -> (n * samples, 2): a smooth closed curve through all the points."""
    return _closed_basis(len(points), samples) @ points


@lru_cache
def _quadratic_basis(samples: int) -> np.ndarray:
    t = np.linspace(0, 1, samples)
    return np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)


def bezier(start: ArrayLike, control: ArrayLike, end: ArrayLike, samples: int = 10) -> np.ndarray:
    """(samples, 2): the curve from start to end that leaves towards control and arrives from it."""
    return _quadratic_basis(samples) @ np.array([start, control, end], dtype=float)


@lru_cache
def _circle(samples: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, samples, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, samples: int = 28) -> np.ndarray:
    """(samples, 2): an upright ellipse around (x, y)."""
    return _circle(samples) * (radius_x, radius_y) + (x, y)


@lru_cache
def _half_sine(samples: int) -> np.ndarray:
    return np.sin(np.linspace(0, np.pi, samples))[:, None]


def stroke(line: np.ndarray, width: float) -> np.ndarray:
    """(n, 2) -> (2n, 2): a brush stroke along line, widest in the middle, pointed at both ends."""
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = along[1], along[-2]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.hypot(along[:, 0], along[:, 1])[:, None]
    offset = across * (0.5 * width * _half_sine(len(line)))
    return np.concatenate([line + offset, (line - offset)[::-1]])


def widened(points: np.ndarray, distance: float) -> np.ndarray:
    """(n, 2) -> (n, 2): a closed shape whose rim has moved outwards; pointed corners become rounder."""
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    along = after - before
    twice_the_area = (points[:, 0] * along[:, 1]).sum()  # above 0 where the points run clockwise
    outwards = np.stack([along[:, 1], -along[:, 0]], axis=1) / (np.hypot(along[:, 0], along[:, 1])[:, None] + 1e-9)
    return points + outwards * (distance if twice_the_area > 0 else -distance)


def mirrored(points: np.ndarray) -> np.ndarray:
    """The shape on the other side of the vertical axis."""
    return points * (-1.0, 1.0)


def both(points: np.ndarray) -> list[np.ndarray]:
    """The shape and its mirror image: a right ear and a left one."""
    return [points, mirrored(points)]


def symmetric(half: ArrayLike) -> np.ndarray:
    """The outline whose right side, from top to bottom, is half. A point on the axis comes once."""
    right = np.asarray(half, dtype=float)
    return np.concatenate([right, mirrored(right[right[:, 0] != 0])[::-1]])


# ---- pose ----


@dataclass(frozen=True)
class Pose:
    """Where a head stands and looks. turn and nod slide what is near the middle of the face to the right and
    down while its rim stays, as on a turning ball; then the head is scaled, rotated and shifted."""

    rotation: float = 0.0  # radians, clockwise
    scale: Point = (1.0, 1.0)
    shift: Point = (0.0, 0.0)
    turn: float = 0.0
    nod: float = 0.0

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) -> (n, 2)."""
        nearness = np.exp(-2.0 * np.einsum("nc,nc->n", points, points))
        return (points + nearness[:, None] * self._slide) @ self._matrix + self.shift

    @cached_property
    def _slide(self) -> np.ndarray:
        return np.array([self.turn, self.nod])

    @cached_property
    def _matrix(self) -> np.ndarray:
        sine, cosine = np.sin(self.rotation), np.cos(self.rotation)
        return np.array([[cosine, sine], [-sine, cosine]]) * np.array(self.scale)[:, None]


# ---- canvas ----


class Canvas:
    """A picture drawn several times larger than asked for and reduced at the end, which antialiases it.

    Every drawing method takes shapes in unit coordinates and passes them through the current pose.
    """

    def __init__(self, height: int, width: int, pose: Pose | None = None, colour: Colour = (0, 0, 0)) -> None:
        short = min(height, width)
        # Small pictures need more samples a pixel: their thin lines are far below one pixel.
        self.factor = 4 if short <= 48 else 3 if short <= 160 else 2
        self.height, self.width = height, width
        self.pose = pose or Pose()
        self.unit = 0.5 * short * self.factor  # pixels of the large picture in one unit
        self.image = Image.new("RGB", (width * self.factor, height * self.factor), colour)
        self._draw = ImageDraw.Draw(self.image)

    def layer(self, colour: Colour) -> "Canvas":
        """A canvas of the same size and pose, all of one colour, to draw on and then to cut out."""
        return Canvas(self.height, self.width, self.pose, colour)

    def reach(self) -> tuple[float, float]:
        """The unit coordinates of the lower right corner: 1 along the shorter side, more along the longer."""
        short = min(self.height, self.width)
        return self.width / short, self.height / short

    def gradient(self, start: Colour, end: Colour, angle: float) -> None:
        """Cover the whole canvas from start to end. angle 0: left to right; pi/2: downwards."""
        cosine, sine = np.cos(angle), np.sin(angle)
        ramp = np.linspace(-1, 1, 32)
        share = 0.5 + 0.5 * (ramp * cosine + ramp[:, None] * sine) / (abs(cosine) + abs(sine))
        first, last = np.array(start), np.array(end)
        picture = (first + share[..., None] * (last - first)).astype(np.uint8)
        self.image.paste(Image.fromarray(picture).resize(self.image.size, Image.Resampling.BILINEAR))

    def fill(self, points: np.ndarray, colour: Colour) -> None:
        """Fill a closed shape, (n, 2)."""
        self._draw.polygon(self._pixels(points).ravel().tolist(), fill=colour)

    def line(self, points: np.ndarray, colour: Colour, width: float) -> None:
        """Draw an open line, (n, 2), of one width; never thinner than one pixel of the large picture."""
        pixels = self._pixels(points).ravel().tolist()
        self._draw.line(pixels, fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def outlined(self, shapes: list[np.ndarray], colour: Colour, ink: Colour, width: float) -> None:
        """Fill closed shapes that touch as one, with a line of ink around them that is width wide."""
        for points in shapes:
            self.fill(widened(points, width), ink)
        for points in shapes:
            self.fill(points, colour)

    def soft_fill(self, shapes: list[np.ndarray], colour: Colour, blur: float, opacity: float = 1.0) -> None:
        """Fill shapes with edges that fade over about blur units."""
        self._paint_softly(shapes, colour, blur, outside=0, inside=round(255 * opacity))

    def soft_rim(self, shapes: list[np.ndarray], colour: Colour, blur: float, opacity: float) -> None:
        """Tint what lies at and just beyond the rim of the shapes, which makes them look round."""
        self._paint_softly(shapes, colour, blur, outside=round(255 * opacity), inside=0)

    def paste(self, layer: "Canvas", shapes: list[np.ndarray]) -> None:
        """Lay down the part of the layer that is inside the shapes."""
        pixels = [self._pixels(points) for points in shapes]
        box = left, top, right, bottom = self._box(pixels, margin=1)
        if left >= right or top >= bottom:
            return
        mask = Image.new("L", (right - left, bottom - top))
        draw = ImageDraw.Draw(mask)
        for each in pixels:
            draw.polygon((each - (left, top)).ravel().tolist(), fill=255)
        self.image.paste(layer.image.crop(box), (left, top), mask)

    def finish(self) -> Image.Image:
        """The picture at the size asked for, RGB."""
        return self.image.reduce(self.factor)

    def _paint_softly(self, shapes: list[np.ndarray], colour: Colour, blur: float, outside: int, inside: int) -> None:
        """Lay colour down through a blurred mask: how much of it outside and inside of the shapes, 0 ... 255.

        The mask covers the shapes' box only, and is coarse, since a soft edge has no detail to lose: one of
        its pixels is half as wide as the blur, but no smaller than a pixel of the finished picture.
        """
        sigma = blur * self.unit
        step = max(self.factor, 0.5 * sigma)
        pixels = [self._pixels(points) for points in shapes]
        left, top, right, bottom = self._box(pixels, margin=3 * sigma + 2 * step)
        width, height = right - left, bottom - top
        if width <= 0 or height <= 0:
            return

        mask = Image.new("L", (math.ceil(width / step), math.ceil(height / step)), outside)
        draw = ImageDraw.Draw(mask)
        for each in pixels:
            draw.polygon(((each - (left, top)) / step).ravel().tolist(), fill=inside)
        # A mask has hard steps; less than 0.7 pixels of blur would leave them to be seen.
        mask = mask.filter(ImageFilter.GaussianBlur(max(0.7, sigma / step)))
        box = (0, 0, width / step, height / step)
        self.image.paste(colour, (left, top), mask.resize((width, height), Image.Resampling.BILINEAR, box))

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) units -> (n, 2) pixels of the large picture."""
        centre = (0.5 * self.image.width, 0.5 * self.image.height)
        return self.pose(points) * self.unit + centre  # Pillow truncates: a corner falls into the pixel it is in

    def _box(self, pixels: list[np.ndarray], margin: float) -> tuple[int, int, int, int]:
        """left, top, right, bottom of all the shapes with a margin, as far as they are inside the picture."""
        points = np.concatenate(pixels)
        left, top = (max(0, math.floor(value - margin)) for value in points.min(axis=0).tolist())
        right, bottom = (math.ceil(value + margin) for value in points.max(axis=0).tolist())
        return left, top, min(right, self.image.width), min(bottom, self.image.height)
