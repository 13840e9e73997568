"""A toy photo: one drawn landscape, turned by every degree and mirrored. A drawing, not a photograph.

There are a sun on one side, a house on the other, a tree, hills and a path, so that no two directions look alike.
Only the middle of the drawing is seen, up to 0.71 from its centre; what is farther out fills the corners when
the picture is turned. The numbers are unit coordinates (see canvas.py).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from minigan.data.rotations import rotations
from minigan.data.toys.canvas import Canvas, Colour, Point, Pose, bezier, closed_curve, ellipse, jitter, mix, stroke

SIDE = 512  # of the whole landscape, whatever the size of the pictures

WHITE: Colour = (255, 252, 244)
INK: Colour = (28, 26, 38)


@dataclass(frozen=True)
class Light:
    """The colours of one season and hour."""

    sky: Colour
    horizon: Colour
    sun: Colour
    mountains: Colour
    hills: Colour
    grass: Colour
    leaves: Colour
    flowers: Colour


LIGHTS: tuple[Light, ...] = (
    # a summer's noon
    Light(
        (62, 134, 214), (206, 230, 244), (255, 250, 220), (120, 142, 178), (104, 158, 84), (122, 178, 66),
        (48, 112, 50), (250, 222, 82),
    ),
    # sunset
    Light(
        (92, 80, 150), (255, 178, 104), (255, 238, 178), (128, 88, 130), (110, 96, 84), (132, 122, 66),
        (70, 70, 52), (246, 132, 92),
    ),
    # autumn
    Light(
        (116, 168, 212), (246, 232, 206), (255, 246, 206), (132, 128, 156), (176, 132, 66), (198, 160, 72),
        (206, 96, 36), (172, 52, 44),
    ),
    # winter
    Light(
        (142, 178, 214), (240, 236, 236), (255, 252, 236), (140, 156, 186), (206, 218, 232), (236, 240, 246),
        (66, 96, 92), (206, 60, 66),
    ),
    # spring
    Light(
        (108, 190, 222), (236, 244, 226), (255, 252, 226), (136, 166, 176), (148, 192, 104), (142, 200, 86),
        (240, 160, 186), (250, 250, 246),
    ),
)  # fmt: skip


def draw_set(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """(count, height, width, 3), uint8: the landscape of that seed, turned; after 720 it begins again."""
    if count == 0:
        return np.empty((0, height, width, 3), np.uint8)
    turned = rotations(draw_landscape(np.random.default_rng(seed)), height, width)
    return turned[np.arange(count) % len(turned)]


def draw_landscape(rng: np.random.Generator) -> Image.Image:
    """The whole landscape, upright, SIDE pixels square."""
    light = _individual(rng, LIGHTS[rng.integers(len(LIGHTS))])
    canvas = Canvas(SIDE, SIDE)
    sun_side = rng.choice([-1.0, 1.0])
    canvas.pose = Pose(scale=(sun_side, 1.0))  # drawn with the sun on the right

    sun = (rng.uniform(0.3, 0.46), rng.uniform(-0.5, -0.38))
    _draw_sky(rng, canvas, light, sun)
    _draw_mountains(rng, canvas, light)
    _draw_hills(rng, canvas, light)
    _draw_house(rng, canvas, light)
    _draw_meadow(rng, canvas, light)
    _draw_tree(rng, canvas, light)
    return _like_a_photo(rng, canvas.finish())


def _individual(rng: np.random.Generator, light: Light) -> Light:
    """The same hour in slightly different colours."""
    return Light(**{name: jitter(rng, colour, 0.06, 5.0) for name, colour in vars(light).items()})


def _draw_sky(rng: np.random.Generator, canvas: Canvas, light: Light, sun: Point) -> None:
    """Paler towards the horizon; the sun with its glow; clouds on the other side."""
    canvas.gradient(light.sky, mix(light.sky, light.horizon, 2.0), np.pi / 2)
    for radius, opacity in ((0.5, 0.45), (0.24, 0.6)):
        canvas.soft_fill([ellipse(*sun, radius, radius)], light.sun, blur=0.4 * radius, opacity=opacity)
    canvas.soft_fill([ellipse(*sun, 0.12, 0.12)], mix(light.sun, (255, 240, 150), 0.5), blur=0.012)
    canvas.soft_fill([ellipse(*sun, 0.09, 0.09)], WHITE, blur=0.03, opacity=0.8)
    for x, y, size in zip(rng.uniform(-0.8, 0.0, 4), (-0.72, -0.56, -0.42, -0.3), (1.2, 1.0, 0.8, 0.6), strict=True):
        puffs = [
            ellipse(x + size * dx, y + size * dy, size * rng.uniform(0.1, 0.17), size * rng.uniform(0.05, 0.08))
            for dx, dy in ((-0.2, 0.02), (-0.08, -0.03), (0.07, -0.04), (0.2, 0.02), (0.0, 0.03))
        ]
        canvas.soft_fill([puff + np.array((0, 0.025)) for puff in puffs], mix(light.sky, WHITE, 0.35), blur=0.03)
        canvas.soft_fill(puffs, mix(light.horizon, WHITE, 0.7), blur=0.018, opacity=0.92)


def _draw_mountains(rng: np.random.Generator, canvas: Canvas, light: Light) -> None:
    """Two ranges, the farther one paler, with snow on the sunny slopes."""
    for distance, base in ((0.5, -0.18), (0.15, -0.06)):
        colour = mix(light.mountains, light.horizon, distance)
        x = np.linspace(-1.1, 1.1, 12) + rng.uniform(-0.05, 0.05, 12)
        y = base - np.resize([0.04, 0.24], 12) * rng.uniform(0.6, 1.2, 12)
        ridge = np.stack([x, y], axis=1)
        canvas.fill(np.concatenate([ridge, [(1.2, 1.0), (-1.2, 1.0)]]), colour)
        for left, peak, right in zip(ridge[:-2:2], ridge[1:-1:2], ridge[2::2], strict=True):
            foot = 0.5 * (left + right) * (1.0, 0.0) + (0.0, base + 0.05)
            canvas.fill(np.array([left, peak, foot]), mix(colour, INK, 0.16 - 0.1 * distance))
            snow = np.array(
                [peak + 0.35 * (left - peak), peak, peak + 0.4 * (right - peak), peak + 0.22 * (foot - peak)]
            )
            canvas.fill(snow, mix(colour, WHITE, 0.75))
    haze = np.array([(-1.2, -0.1), (1.2, -0.1), (1.2, 0.1), (-1.2, 0.1)])
    canvas.soft_fill([haze], light.horizon, blur=0.07, opacity=0.55)


def _draw_hills(rng: np.random.Generator, canvas: Canvas, light: Light) -> None:
    """Three hills, nearer ones darker and richer, with dots of trees on the middle one."""
    for nearness, height in ((0.3, -0.04), (0.65, 0.07), (1.0, 0.2)):
        colour = mix(mix(light.hills, light.horizon, 0.5), light.hills, nearness)
        x = np.linspace(-1.3, 1.3, 7)
        crest = np.stack([x, height + rng.uniform(-0.06, 0.06, 7)], axis=1)
        hill = closed_curve(np.concatenate([crest, [(1.6, 1.4), (-1.6, 1.4)]]), samples=10)
        layer = canvas.layer(colour)
        layer.soft_rim([hill], mix(colour, light.sun, 0.4), blur=0.035, opacity=0.9)
        layer.soft_fill([ellipse(rng.uniform(-0.8, 0.2), height + 0.2, 0.6, 0.12)], mix(colour, INK, 0.3), 0.1, 0.7)
        canvas.paste(layer, [hill])
        if nearness == 0.65:
            for place in rng.uniform(-0.9, 0.9, 9):
                y = np.interp(place, x, crest[:, 1]) + rng.uniform(0.0, 0.05)
                size = rng.uniform(0.02, 0.04)
                canvas.fill(ellipse(place, y, size, 1.3 * size), mix(light.leaves, colour, 0.3))


def _draw_house(rng: np.random.Generator, canvas: Canvas, light: Light) -> None:
    """White or coloured walls, one side in the shade, a tiled roof with a chimney, windows and a door."""
    walls = ((246, 238, 222), (238, 206, 150), (214, 226, 232), (232, 180, 160))[rng.integers(4)]
    roof = ((178, 62, 46), (146, 78, 50), (92, 74, 86))[rng.integers(3)]
    place, size = np.array([rng.uniform(0.26, 0.36), rng.uniform(0.22, 0.27)]), rng.uniform(0.95, 1.1)

    def fill(points: list[tuple[float, float]], colour: Colour) -> None:
        canvas.fill(np.array(points) * size + place, mix(colour, light.horizon, 0.08))

    canvas.soft_fill([ellipse(place[0] - 0.1, place[1] + 0.16, 0.3, 0.04)], INK, blur=0.03, opacity=0.5)
    fill([(-0.24, -0.08), (-0.02, -0.04), (-0.02, 0.18), (-0.24, 0.13)], mix(walls, INK, 0.35))
    fill([(-0.02, -0.04), (0.1, -0.24), (0.22, -0.06), (0.22, 0.15), (-0.02, 0.18)], walls)
    fill([(0.02, -0.32), (0.07, -0.32), (0.07, -0.18), (0.02, -0.18)], mix(roof, INK, 0.4))
    fill([(-0.28, -0.06), (-0.14, -0.25), (0.1, -0.26), (-0.03, -0.01)], roof)
    fill(
        [(0.1, -0.27), (0.26, -0.04), (0.235, -0.03), (0.1, -0.225), (-0.01, -0.0), (-0.035, -0.01)],
        mix(roof, INK, 0.3),
    )
    for share in (0.25, 0.5, 0.75):
        start, end = np.array(
            [(-0.28 + 0.14 * share, -0.06 - 0.19 * share), (-0.03 + 0.13 * share, -0.01 - 0.25 * share)]
        )
        canvas.line(np.array([start, end]) * size + place, mix(roof, INK, 0.25), 0.008)
    glass = mix((70, 92, 120), light.sun, 0.2)
    for x, y in ((0.02, 0.0), (0.13, -0.01)):
        fill([(x - 0.008, y - 0.008), (x + 0.068, y - 0.014), (x + 0.068, y + 0.07), (x - 0.008, y + 0.076)], WHITE)
        fill([(x, y), (x + 0.06, y - 0.006), (x + 0.06, y + 0.062), (x, y + 0.068)], glass)
    fill([(0.075, 0.1), (0.125, 0.094), (0.125, 0.163), (0.075, 0.17)], mix(roof, INK, 0.5))
    fill([(-0.17, 0.0), (-0.1, 0.01), (-0.1, 0.08), (-0.17, 0.066)], mix(glass, INK, 0.4))


def _draw_meadow(rng: np.random.Generator, canvas: Canvas, light: Light) -> None:
    """The ground in front, with a path to the door, blades of grass and flowers."""
    crest = np.array([(-1.4, 0.3), (-0.6, 0.36), (0.0, 0.42), (0.4, 0.4), (1.0, 0.34), (1.6, 0.4)])
    ground = closed_curve(np.concatenate([crest, [(1.8, 1.6), (-1.8, 1.6)]]), samples=10)
    layer = canvas.layer(light.grass)
    layer.soft_rim([ground], mix(light.grass, light.sun, 0.45), blur=0.06, opacity=0.9)
    layer.soft_fill([ellipse(0, 1.1, 1.4, 0.36)], mix(light.grass, INK, 0.5), blur=0.2, opacity=0.8)
    path = np.concatenate(
        [bezier((0.34, 0.38), (0.05, 0.5), (0.3, 1.1)), bezier((0.62, 1.1), (0.22, 0.52), (0.4, 0.38))]
    )
    earth = mix((206, 178, 136), light.grass, 0.2)
    layer.soft_fill([path], earth, blur=0.012)
    layer.soft_fill([stroke(bezier((0.3, 0.42), (0.1, 0.54), (0.36, 1.1)), 0.04)], mix(earth, INK, 0.35), blur=0.012)
    for x, depth, lean in rng.uniform((-1, 0, -0.02), (1, 1, 0.02), (420, 3)):
        y = 0.42 + 0.6 * depth
        length = 0.02 + 0.05 * depth
        shade = mix(light.grass, INK if rng.random() < 0.6 else light.sun, rng.uniform(0.1, 0.35))
        if not -0.03 < x - 0.2 - 0.2 * depth < 0.22:
            layer.fill(np.array([(x - 0.006, y), (x + lean, y - length), (x + 0.006, y)]), shade)
    for x, depth in rng.uniform((-1.0, 0), (0.15, 1), (46, 2)):
        size = 0.007 + 0.013 * depth
        layer.fill(ellipse(x, 0.44 + 0.5 * depth, size, 0.8 * size, samples=10), jitter(rng, light.flowers))
    canvas.paste(layer, [ground])


def _draw_tree(rng: np.random.Generator, canvas: Canvas, light: Light) -> None:
    """A large tree opposite the sun, its crown of many leaves lit from the sun's side, its shadow on the grass."""
    x, y = rng.uniform(-0.38, -0.3), rng.uniform(0.44, 0.5)
    bark = mix((96, 66, 46), light.mountains, 0.15)
    canvas.soft_fill([ellipse(x - 0.22, y + 0.02, 0.3, 0.035)], INK, blur=0.025, opacity=0.5)
    trunk = np.concatenate([bezier((x + 0.07, y + 0.02), (x + 0.025, y - 0.1), (x + 0.035, y - 0.5)),
                            bezier((x - 0.03, y - 0.5), (x - 0.03, y - 0.1), (x - 0.08, y + 0.02))])  # fmt: skip
    canvas.fill(trunk, bark)
    canvas.fill(
        stroke(bezier((x + 0.04, y), (x + 0.01, y - 0.1), (x + 0.025, y - 0.4)), 0.025), mix(bark, light.sun, 0.4)
    )
    for dx, dy in ((0.16, -0.44), (-0.18, -0.42)):
        canvas.fill(stroke(bezier((x, y - 0.2), (x + 0.3 * dx, y - 0.3), (x + dx, y + dy)), 0.05), bark)
    centre = np.array([x, y - 0.54])
    angle, distance = rng.uniform(0, 2 * np.pi, 300), np.sqrt(rng.uniform(0, 1, 300))
    offsets = np.stack([0.27 * distance * np.cos(angle), 0.24 * distance * np.sin(angle)], axis=1)
    # From the dark leaves below and behind to the lit ones towards the sun.
    lit = offsets[:, 0] / 0.27 - offsets[:, 1] / 0.24 + rng.uniform(-0.7, 0.7, 300)
    for index in np.argsort(lit):
        share = float(np.clip((lit[index] + 1.6) / 3.2, 0, 1))
        dark, pale = mix(light.leaves, INK, 0.5), mix(light.leaves, light.sun, 0.45)
        size = rng.uniform(0.025, 0.055)
        leaf_x, leaf_y = centre + offsets[index]
        canvas.fill(ellipse(leaf_x, leaf_y, size, 0.8 * size, samples=12), mix(dark, pale, share))


def _like_a_photo(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """A lens is never quite sharp and a film never quite even."""
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7))).astype(float)
    return Image.fromarray(np.clip(values + rng.normal(0, 4, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8))
