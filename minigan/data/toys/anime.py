"""Toy anime faces: large shining eyes, coloured hair with a fringe, a small mouth. Nobody's characters.

Every face has the same anatomy, so that a small network can learn it: hair behind, a pointed chin, two tall
eyes, a fringe above them and a strand on each side. Cut, colours, eyes, mouth, clothes and ornaments differ.
The numbers are unit coordinates (see canvas.py); the right half is written down and mirrored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minigan.data.toys.canvas import (
    Canvas,
    Colour,
    Pose,
    bezier,
    both,
    brightness,
    closed_curve,
    ellipse,
    jitter,
    mirrored,
    mix,
    stroke,
    symmetric,
)

WHITE: Colour = (255, 253, 252)
INK: Colour = (48, 30, 46)
DUSK: Colour = (70, 44, 96)  # what shadows tend to
BLUSH: Colour = (246, 124, 124)
LINE = 0.018

SKINS: tuple[Colour, ...] = (
    (255, 232, 216), (255, 226, 206), (252, 218, 192), (226, 176, 140), (180, 126, 94),
)  # fmt: skip
HAIR: tuple[Colour, ...] = (
    (66, 58, 78), (112, 74, 58), (172, 112, 66), (248, 214, 118), (240, 148, 72), (214, 70, 76),
    (248, 156, 190), (186, 136, 222), (94, 88, 180), (84, 146, 226), (120, 208, 222), (104, 190, 140),
    (226, 228, 238), (168, 174, 192),
)  # fmt: skip
EYES: tuple[Colour, ...] = (
    (58, 134, 226), (64, 172, 104), (204, 62, 74), (150, 84, 206), (226, 162, 40), (140, 88, 58),
    (40, 178, 190), (236, 104, 160),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (52, 66, 116), (244, 244, 250), (206, 66, 80), (70, 70, 84), (120, 178, 150), (244, 196, 96),
    (150, 120, 200), (236, 150, 170), (90, 150, 206),
)  # fmt: skip
BACKGROUNDS: tuple[Colour, ...] = (
    (196, 226, 250), (250, 214, 224), (214, 240, 216), (252, 238, 200), (226, 214, 248), (244, 244, 246),
    (122, 152, 200), (202, 134, 150), (110, 160, 150), (104, 92, 142), (240, 180, 140),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """The colours that the parts share."""

    skin: Colour
    hair: Colour
    clothes: Colour
    accent: Colour  # ribbons, clips, hems

    @property
    def hair_line(self) -> Colour:
        return mix(mix(self.hair, DUSK, 0.5), INK, 0.35)

    @property
    def hair_shade(self) -> Colour:
        return mix(self.hair, DUSK, 0.3)

    @property
    def hair_light(self) -> Colour:
        return mix(self.hair, WHITE, 0.3 if brightness(self.hair) < 110 else 0.55)

    @property
    def skin_line(self) -> Colour:
        return mix(self.skin, (126, 56, 50), 0.65)

    @property
    def skin_shade(self) -> Colour:
        return mix(self.skin, (206, 116, 124), 0.38)


FACE = closed_curve(
    symmetric([(0.0, -0.55), (0.36, -0.4), (0.49, -0.02), (0.47, 0.24), (0.29, 0.48), (0.05, 0.63)]),
    samples=6,
)


def draw_one(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """One face on a soft background. The random draws never depend on the size, so neither does the face."""
    look = Look(
        skin=jitter(rng, SKINS[rng.choice(len(SKINS), p=[0.3, 0.27, 0.2, 0.13, 0.1])], 0.02, 2.0),
        hair=jitter(rng, HAIR[rng.integers(len(HAIR))], 0.07, 6.0),
        clothes=jitter(rng, CLOTHES[rng.integers(len(CLOTHES))], 0.05, 4.0),
        accent=jitter(rng, (CLOTHES + EYES)[rng.integers(len(CLOTHES + EYES))], 0.05, 4.0),
    )
    canvas = Canvas(height, width)
    _draw_background(rng, canvas, look)
    canvas.pose = Pose(
        rotation=rng.uniform(-0.11, 0.11),
        scale=(rng.uniform(0.98, 1.08), rng.uniform(0.98, 1.06)),
        shift=(rng.uniform(-0.05, 0.05), rng.uniform(0.06, 0.12)),
        turn=rng.normal(0, 0.05),
        nod=rng.normal(0, 0.025),
    )
    crown = BEHIND[rng.integers(len(BEHIND))](rng, canvas, look)
    _draw_body(rng, canvas, look)
    fringe = _fringe(rng)

    layer = canvas.layer(look.skin)
    layer.fill(fringe + np.array((0.015, 0.055)), look.skin_shade)
    glow = rng.uniform(0.35, 0.75)
    layer.soft_fill(both(ellipse(0.31, 0.33, 0.1, 0.055)), BLUSH, blur=0.045, opacity=glow)
    _draw_mouth(rng, layer, look)
    canvas.outlined([FACE], look.skin, look.skin_line, LINE)
    canvas.paste(layer, [FACE])
    _draw_eyes(rng, canvas, look)
    _draw_front_hair(rng, canvas, look, [fringe, *crown])
    _draw_ornament(rng, canvas, look)
    return canvas.finish()


# ---- behind the face ----


def _draw_background(rng: np.random.Generator, canvas: Canvas, look: Look) -> None:
    """A gradient that stands out from the hair, sometimes with lights, petals or a large disc."""
    contrasting = sorted(BACKGROUNDS, key=lambda choice: math.dist(choice, look.hair))[len(BACKGROUNDS) // 2 :]
    colour = jitter(rng, contrasting[rng.integers(len(contrasting))], 0.06, 6.0)
    canvas.gradient(mix(colour, WHITE, 0.45), mix(colour, DUSK, 0.12), rng.uniform(0.2, np.pi - 0.2))
    pattern = ("none", "none", "lights", "petals", "disc")[rng.integers(5)]
    light = mix(colour, WHITE, 0.6)
    places = rng.uniform(-1, 1, (8, 2)) * canvas.reach()
    if pattern == "lights":
        dots = [ellipse(x, y, size, size) for (x, y), size in zip(places, rng.uniform(0.06, 0.2, 8), strict=True)]
        canvas.soft_fill(dots, light, blur=0.02, opacity=0.6)
    elif pattern == "petals":
        for place, angle in zip(places, rng.uniform(0, np.pi, 8), strict=True):
            tip = 0.12 * np.array([math.cos(angle), math.sin(angle)])
            canvas.fill(stroke(np.linspace(place - tip, place + tip, 8), 0.11), mix((255, 170, 190), light, 0.3))
    elif pattern == "disc":
        canvas.fill(ellipse(0, 0, 0.9, 0.9, samples=60), light)


def _draw_body(rng: np.random.Generator, canvas: Canvas, look: Look) -> None:
    """Neck and shoulders in a sailor suit, a shirt with a tie, a hood, or a plain top."""
    slope = rng.uniform(0.5, 0.6)
    shoulders = np.concatenate([bezier((0.16, 0.74), (slope, 0.78), (slope + 0.1, 1.25)), [(0.9, 4.0)]])
    line = mix(look.clothes, INK, 0.6)
    kind = rng.integers(4)
    if kind == 2:
        half = [(0.0, 0.52), (0.4, 0.56), (0.54, 0.72), (0.3, 0.98), (0.0, 1.05)]
        canvas.outlined([closed_curve(symmetric(half))], mix(look.clothes, DUSK, 0.2), line, LINE)
    canvas.outlined([symmetric(shoulders)], look.clothes, line, LINE)
    canvas.outlined([symmetric([(0.13, 0.4), (0.14, 0.76), (0.0, 0.92)])], look.skin, look.skin_line, LINE)
    canvas.fill(symmetric([(0.13, 0.45), (0.135, 0.68), (0.0, 0.74)]), look.skin_shade)
    if kind in (0, 1):
        collar = np.array([(0.14, 0.7), (0.46, 0.8), (0.34, 1.06), (0.02, 0.98)])
        colour = look.accent if kind == 0 else WHITE
        canvas.outlined(both(collar), colour, mix(colour, INK, 0.6), LINE)
        bow = np.array([(0.0, 0.98), (0.18, 0.9), (0.18, 1.1)])
        tie = symmetric([(0.05, 0.95), (0.09, 1.5)])
        second = look.accent if kind == 1 else mix(look.accent, (255, 60, 80), 0.6)
        canvas.outlined(both(bow) if kind == 0 else [tie], second, mix(second, INK, 0.6), LINE)


def _draw_long(rng: np.random.Generator, canvas: Canvas, look: Look) -> list[np.ndarray]:
    wide, wave = rng.uniform(0.62, 0.74), rng.uniform(0.0, 0.06)
    half = [
        (0.0, -0.72), (0.42, -0.6), (0.62, -0.2), (wide - wave, 0.2), (wide + wave, 0.55), (wide - wave, 0.9),
        (wide, 1.4), (0.0, 1.6),
    ]  # fmt: skip
    _draw_shaded(canvas, look, [closed_curve(symmetric(half))])
    return []


def _draw_bob(rng: np.random.Generator, canvas: Canvas, look: Look) -> list[np.ndarray]:
    low, wide = rng.uniform(0.45, 0.7), rng.uniform(0.6, 0.7)
    half = [
        (0.0, -0.72), (0.42, -0.6), (0.62, -0.2), (wide, 0.2), (wide - 0.06, low - 0.04), (0.4, low),
        (0.2, 0.4),
    ]  # fmt: skip
    _draw_shaded(canvas, look, [closed_curve(symmetric(half))])
    return []


def _draw_spiky(rng: np.random.Generator, canvas: Canvas, look: Look) -> list[np.ndarray]:
    """Short hair: pointed locks, two at the neck in the shade, those of the crown with the fringe."""
    sweep, length = rng.choice([-1.0, 1.0]) * rng.uniform(0.03, 0.1), rng.uniform(0.76, 0.84)
    _draw_shaded(canvas, look, both(stroke(bezier((0.3, -0.1), (0.6, 0.2), (0.62, 0.56)), 0.3)))
    locks = []
    for angle in np.linspace(-0.02, np.pi + 0.02, 9) + rng.uniform(-0.06, 0.06, 9):
        direction = np.array([math.cos(angle), -math.sin(angle)])
        tip = (length + rng.uniform(-0.06, 0.06)) * direction + (sweep, -0.04)
        control = 0.62 * direction + np.array((-0.4 * sweep, -0.08))
        locks.append(stroke(bezier(0.25 * direction + (0.0, -0.12), control, tip), 0.27))
    return locks


def _draw_twin_tails(rng: np.random.Generator, canvas: Canvas, look: Look) -> list[np.ndarray]:
    high, out, low = rng.uniform(-0.5, -0.3), rng.uniform(0.9, 1.08), rng.uniform(0.6, 1.2)
    tail = np.concatenate([
        bezier((0.48, high), (out, high - 0.2), (out - 0.06, 0.3 * low)),
        bezier((out - 0.06, 0.3 * low), (out - 0.12, 0.7 * low), (0.72, low)),
        bezier((0.72, low), (0.68, 0.3), (0.46, high + 0.16)),
    ])  # fmt: skip
    _draw_shaded(canvas, look, both(tail))
    _draw_shaded(canvas, look, [ellipse(0, -0.1, 0.6, 0.62)])
    canvas.outlined(both(ellipse(0.57, high, 0.08, 0.1)), look.accent, mix(look.accent, INK, 0.6), LINE)
    return []


def _draw_ponytail(rng: np.random.Generator, canvas: Canvas, look: Look) -> list[np.ndarray]:
    side, low = rng.choice([-1.0, 1.0]), rng.uniform(0.4, 0.9)
    tail = np.concatenate([
        bezier((0.2, -0.7), (0.8, -1.0), (0.86, -0.2)),
        bezier((0.86, -0.2), (0.9, 0.4 * low), (0.66, low)),
        bezier((0.66, low), (0.66, 0.0), (0.4, -0.4)),
    ])  # fmt: skip
    _draw_shaded(canvas, look, [tail * (side, 1.0)])
    _draw_shaded(canvas, look, [ellipse(0, -0.1, 0.6, 0.62)])
    return []


def _draw_buns(rng: np.random.Generator, canvas: Canvas, look: Look) -> list[np.ndarray]:
    size, x = rng.uniform(0.19, 0.25), rng.uniform(0.44, 0.54)
    _draw_shaded(canvas, look, both(ellipse(x, -0.62, size, size)))
    canvas.outlined(both(ellipse(x - 0.07, -0.5, 0.12, 0.08)), look.accent, mix(look.accent, INK, 0.6), LINE)
    _draw_shaded(canvas, look, [ellipse(0, -0.1, 0.6, 0.62)])
    return []


def _draw_braids(rng: np.random.Generator, canvas: Canvas, look: Look) -> list[np.ndarray]:
    """Two braids that hang in front of where the shoulders will be: drawn wide, so that they still show."""
    x = rng.uniform(0.6, 0.68)
    _draw_shaded(canvas, look, [ellipse(0, -0.1, 0.61, 0.62)])
    for y in np.arange(1.1, 0.2, -0.17):
        _draw_shaded(canvas, look, both(ellipse(x, y, 0.12, 0.11)))
    return []


def _draw_shaded(canvas: Canvas, look: Look, shapes: list[np.ndarray]) -> None:
    """Hair behind the face lies in the shade."""
    canvas.outlined(shapes, look.hair_shade, look.hair_line, LINE)


Behind = Callable[[np.random.Generator, Canvas, Look], list[np.ndarray]]  # returns what joins the fringe
BEHIND: tuple[Behind, ...] = (
    _draw_long, _draw_long, _draw_bob, _draw_bob, _draw_spiky, _draw_spiky, _draw_twin_tails, _draw_twin_tails,
    _draw_ponytail, _draw_buns, _draw_braids,
)  # fmt: skip


# ---- the face ----


def _draw_eyes(rng: np.random.Generator, canvas: Canvas, look: Look) -> None:
    """Tall eyes: white, iris from dark to light, pupil, two highlights, a heavy upper lid, and a brow."""
    iris = jitter(rng, EYES[rng.integers(len(EYES))], 0.08, 6.0)
    other = jitter(rng, EYES[rng.integers(len(EYES))]) if rng.random() < 0.04 else iris
    size = np.array([rng.uniform(0.95, 1.12), rng.uniform(0.88, 1.12)])
    slant, spacing = rng.uniform(-0.035, 0.035), rng.uniform(0.235, 0.26)
    gaze = np.array([rng.normal(0, 0.012), rng.normal(0, 0.008)])
    mood, lift = rng.uniform(-0.045, 0.045), rng.uniform(0.0, 0.06)
    eye = [(-0.12, 0.02), (-0.07, -0.13), (0.05, -0.155), (0.13, -0.05), (0.11, 0.1), (0.01, 0.16), (-0.09, 0.12)]
    corner = (0.19, -0.02 + slant)
    lid = np.concatenate([
        bezier((-0.14, -0.02), (-0.06, -0.24), (0.06, -0.18)), bezier((0.06, -0.18), (0.13, -0.14), corner),
        bezier(corner, (0.13, -0.09), (0.05, -0.125)), bezier((0.05, -0.125), (-0.05, -0.15), (-0.14, -0.02)),
    ])  # fmt: skip
    lash = mix(look.hair_line, INK, 0.6)
    for direction, colour in ((1.0, iris), (-1.0, other)):
        centre = np.array([direction * spacing, 0.15])

        def place(shape: np.ndarray, towards: float = direction, centre: np.ndarray = centre) -> np.ndarray:
            return shape * size * (towards, 1.0) + centre

        def ball(x: float, y: float, radius_x: float, radius_y: float, centre: np.ndarray = centre) -> np.ndarray:
            return ellipse(x, y, radius_x, radius_y) * size + centre + gaze

        deep = mix(colour, INK, 0.62)
        canvas.fill(place(closed_curve(np.array(eye))), WHITE)
        canvas.fill(ball(0, 0.0, 0.095, 0.14), deep)
        canvas.fill(ball(0, 0.02, 0.08, 0.115), colour)
        canvas.fill(ball(0, 0.075, 0.058, 0.052), mix(colour, WHITE, 0.5))
        canvas.fill(ball(0, -0.01, 0.042, 0.065), mix(deep, INK, 0.6))
        canvas.fill(ball(-0.035, -0.06, 0.038, 0.045), (255, 255, 255))
        canvas.fill(ball(0.04, 0.07, 0.018, 0.02), (255, 255, 255))
        canvas.fill(place(lid), lash)
        canvas.line(place(bezier((-0.05, 0.165), (0.03, 0.185), (0.1, 0.12))), mix(look.skin_line, INK, 0.4), LINE)
        brow = bezier((-0.1, -0.25 - lift + mood), (0.02, -0.31 - lift), (0.14, -0.24 - lift - mood))
        canvas.fill(stroke(brow * (direction, 1.0) + centre, 0.034), look.hair_line)


def _draw_mouth(rng: np.random.Generator, layer: Canvas, look: Look) -> None:
    """A dot of a nose, and a mouth that smiles, laughs, pouts or is like a cat's."""
    layer.fill(stroke(bezier((0.0, 0.33), (0.03, 0.36), (-0.005, 0.37)), 0.025), look.skin_line)
    kind = rng.choice(["smile", "laugh", "pout", "cat", "o"], p=[0.38, 0.34, 0.08, 0.1, 0.1])
    half, y = rng.uniform(0.08, 0.12), 0.45
    if kind == "laugh":
        depth = rng.uniform(0.1, 0.16)
        shape = np.concatenate(
            [bezier((-half, y), (0, y + 0.02), (half, y)), bezier((half, y), (0, y + 2 * depth), (-half, y))]
        )
        layer.outlined([shape], (196, 66, 78), look.skin_line, LINE * 0.8)
        layer.fill(ellipse(0, y + 0.75 * depth, 0.4 * half, 0.2 * depth), (250, 150, 150))
    elif kind == "cat":
        for side in both(bezier((0, y), (0.5 * half, y + 0.06), (half, y - 0.01))):
            layer.line(side, look.skin_line, LINE * 1.2)
    elif kind == "o":
        layer.outlined([ellipse(0, y + 0.02, 0.045, 0.05)], (196, 66, 78), look.skin_line, LINE * 0.8)
    else:
        bend = 0.06 if kind == "smile" else -0.05
        layer.fill(stroke(bezier((-half, y), (0, y + bend), (half, y)), 0.035), look.skin_line)


# ---- before the face ----


def _fringe(rng: np.random.Generator) -> np.ndarray:
    """(n, 2): the hair from crown to brow, in locks: even, swept, parted or wild."""
    kind = rng.choice(["even", "swept", "parted", "wild"])
    count = int(rng.integers(5, 8))
    if kind == "parted":
        count = 4
    roots = np.linspace(0.5, -0.5, count + 1)
    tips = np.stack([0.5 * (roots[1:] + roots[:-1]), np.full(count, rng.uniform(-0.05, 0.03))], axis=1)
    gaps = np.stack([roots, -0.2 + 0.1 * np.abs(roots)], axis=1)
    if kind == "swept":
        side = rng.choice([-1.0, 1.0])
        tips += np.stack([np.full(count, 0.13 * side), 0.3 * side * tips[:, 0]], axis=1)
        gaps[:, 1] += 0.2 * side * gaps[:, 0] - 0.04
    elif kind == "parted":
        tips[:, 0] *= 1.35
        tips[:, 1] += (0.1, -0.04, -0.04, 0.1)
        gaps[1:-1, 1] = (-0.16, -0.46, -0.16)
    elif kind == "wild":
        tips += rng.uniform((-0.07, -0.1), (0.07, 0.12), (count, 2))
        gaps[:, 1] -= 0.06
    edge = []
    for right, tip, left in zip(gaps[:-1], tips, gaps[1:], strict=True):
        for start, end, gap in ((right, tip, right), (tip, left, left)):
            belly = (0.8 * gap[0] + 0.2 * tip[0], 0.3 * gap[1] + 0.7 * tip[1])
            edge.append(bezier(start, belly, end, samples=6))
    left_side = bezier((-0.6, 0.14), (-0.68, -0.7), (0, -0.74), samples=14)
    return np.concatenate([left_side, mirrored(left_side)[::-1], *edge])


def _draw_front_hair(rng: np.random.Generator, canvas: Canvas, look: Look, top: list[np.ndarray]) -> None:
    """Side strands, then the fringe with its parting lines, shade and shine; sometimes a hair that stands up."""
    low, bend = rng.uniform(0.3, 0.85), rng.uniform(-0.06, 0.08)
    tip = (0.5 + bend, low)
    strand = np.concatenate([bezier((0.6, -0.2), (0.68 + bend, 0.2), tip), bezier(tip, (0.5, 0.25), (0.42, -0.2))])
    canvas.outlined(both(strand), look.hair, look.hair_line, LINE)
    if rng.random() < 0.3:
        side = rng.choice([-1.0, 1.0])
        tuft = bezier((0.0, -0.68), (0.06, -1.0), (0.26, -0.9)) * (side, 1.0)
        canvas.outlined([stroke(tuft, 0.09)], look.hair, look.hair_line, LINE)
    canvas.outlined(top, look.hair, look.hair_line, LINE)

    shine = rng.uniform(-0.46, -0.38)
    arc = bezier((-0.46, shine + 0.16), (0, shine - 0.16), (0.46, shine + 0.16), samples=16)
    teeth = np.resize([0.02, 0.07], 16)[:, None] * np.sin(np.linspace(0, np.pi, 16))[:, None]
    canvas.fill(np.concatenate([arc - teeth * (0, 0.7), (arc + teeth * (0, 0.9))[::-1]]), look.hair_light)
    for x in (-0.24, 0.03, 0.27):
        canvas.fill(stroke(bezier((0.9 * x, -0.2), (1.1 * x, -0.4), (0.5 * x, -0.6)), 0.018), look.hair_line)


def _draw_ornament(rng: np.random.Generator, canvas: Canvas, look: Look) -> None:
    """A bow, a clip, a hair band, cat ears, a flower, glasses, or nothing."""
    kind = rng.choice(
        ["none", "bow", "clip", "band", "ears", "flower", "glasses"],
        p=[0.4, 0.12, 0.12, 0.09, 0.1, 0.09, 0.08],
    )
    side = np.array([rng.choice([-1.0, 1.0]), 1.0])
    line = mix(look.accent, INK, 0.6)
    if kind == "bow":
        wing = np.array([(0.0, 0.0), (0.1, -0.12), (0.22, -0.12), (0.22, 0.1), (0.1, 0.08)])
        place = np.array([0.4, -0.6]) * side
        canvas.outlined([closed_curve(wing) + place, closed_curve(mirrored(wing)) + place], look.accent, line, LINE)
        canvas.outlined([ellipse(place[0], place[1], 0.055, 0.06)], mix(look.accent, WHITE, 0.25), line, LINE)
    elif kind == "clip":
        for y in (-0.3, -0.22):
            canvas.line(np.array([(0.34, y), (0.5, y + 0.05)]) * side, look.accent, 0.045)
    elif kind == "band":
        canvas.fill(stroke(bezier((-0.62, -0.2), (0, -1.0), (0.62, -0.2), samples=20), 0.12), look.accent)
    elif kind == "ears":
        ear = closed_curve(np.array([(0.2, -0.62), (0.42, -0.95), (0.52, -0.96), (0.58, -0.4), (0.4, -0.5)]))
        canvas.outlined(both(ear), look.hair, look.hair_line, LINE)
        inner = (ear - (0.44, -0.6)) * (0.5, 0.62) + (0.45, -0.63)
        canvas.fill(both(inner)[0], BLUSH)
        canvas.fill(both(inner)[1], BLUSH)
    elif kind == "flower":
        x, y = np.array([0.46, -0.42]) * side
        petals = [ellipse(x + 0.08 * math.cos(a), y + 0.08 * math.sin(a), 0.065, 0.065) for a in np.arange(5) * 1.2566]
        canvas.outlined(petals, look.accent, line, LINE)
        canvas.fill(ellipse(x, y, 0.045, 0.045), (255, 226, 110))
    elif kind == "glasses":
        for rim in both(ellipse(0.25, 0.17, 0.19, 0.19)):
            canvas.line(np.concatenate([rim, rim[:2]]), line, 0.025)
        canvas.line(np.array([(-0.06, 0.14), (0.06, 0.14)]), line, 0.025)
