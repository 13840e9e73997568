"""Toy cats: cat faces drawn from a few dozen curves.

The anatomy is always the same, so that a small network can learn it: two ears inside the frame, two large
eyes, a nose, a muzzle. Coat, markings, ears, eyes, pose and background differ from cat to cat. The numbers
are unit coordinates (see canvas.py); the right half of the face is written down and mirrored.
"""

import math
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
)

WHITE: Colour = (250, 248, 244)
PINK: Colour = (232, 150, 150)
ROSE: Colour = (205, 112, 112)
INK: Colour = (34, 26, 28)

EYES: dict[str, Colour] = {
    "green": (138, 190, 84),
    "yellow": (240, 204, 72),
    "copper": (226, 138, 46),
    "blue": (88, 166, 228),
}


@dataclass(frozen=True)
class Coat:
    """The colours of one kind of cat, and which markings it wears: plain, tabby, points or patches."""

    fur: Colour
    dark: Colour  # stripes, points, dark patches
    light: Colour  # muzzle, chin, eyebrows
    nose: Colour
    eyes: tuple[str, ...]
    markings: str = "plain"
    white_share: float = 0.0  # how often it also has a white blaze, muzzle and chest


COATS: tuple[Coat, ...] = (
    # black, often a tuxedo
    Coat((50, 47, 54), (30, 28, 33), (84, 79, 86), (128, 92, 96), ("green", "yellow", "copper"), "plain", 0.5),
    # solid grey
    Coat(
        (130, 137, 152),
        (92, 98, 112),
        (172, 178, 190),
        (98, 88, 98),
        ("copper", "yellow", "green"),
        "plain",
        0.3,
    ),
    # silver tabby
    Coat((172, 168, 164), (84, 80, 82), (232, 228, 222), ROSE, ("green", "yellow"), "tabby", 0.25),
    # brown tabby
    Coat(
        (164, 124, 84),
        (76, 52, 36),
        (232, 208, 172),
        (186, 98, 86),
        ("green", "yellow", "copper"),
        "tabby",
        0.3,
    ),
    # ginger tabby
    Coat((234, 150, 68), (186, 94, 30), (252, 222, 178), ROSE, ("yellow", "copper", "green"), "tabby", 0.35),
    # cream
    Coat((240, 212, 170), (220, 176, 124), (254, 242, 224), ROSE, ("copper", "blue", "yellow"), "tabby", 0.15),
    # white
    Coat((244, 242, 240), (214, 210, 212), WHITE, PINK, ("blue", "green", "yellow", "copper")),
    # chocolate brown
    Coat((112, 74, 54), (72, 46, 34), (160, 118, 92), (78, 50, 46), ("yellow", "green"), "plain", 0.2),
    # siamese: pale with a dark mask
    Coat((238, 224, 200), (82, 60, 52), (246, 236, 218), (52, 38, 38), ("blue",), "points"),
    # blue point
    Coat((230, 230, 232), (112, 116, 130), (244, 244, 244), (84, 80, 90), ("blue",), "points"),
    # calico: white with ginger and black patches
    Coat((247, 243, 236), (52, 46, 48), WHITE, PINK, ("green", "yellow", "copper"), "patches"),
)
GINGER: Colour = (232, 144, 62)

BACKGROUNDS: tuple[Colour, ...] = (
    (64, 104, 140), (70, 120, 106), (122, 88, 138), (160, 88, 84), (92, 108, 66), (78, 80, 118),
    (150, 104, 60), (196, 224, 240), (206, 232, 208), (248, 220, 202), (236, 214, 236), (250, 238, 196),
    (224, 222, 216), (182, 214, 214),
)  # fmt: skip
COLLARS: tuple[Colour, ...] = ((206, 52, 56), (48, 104, 196), (40, 150, 120), (236, 176, 40), (160, 70, 160))


def draw_one(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """One cat on a plain background. The random draws never depend on the size, so neither does the cat."""
    coat = _individual(rng, COATS[rng.integers(len(COATS))])
    has_white = rng.random() < coat.white_share
    canvas = Canvas(height, width)
    _draw_background(rng, canvas, coat.fur)

    canvas.pose = Pose(
        rotation=rng.uniform(-0.13, 0.13),
        scale=(rng.uniform(0.99, 1.13), rng.uniform(1.0, 1.1)),
        shift=(rng.uniform(-0.05, 0.05), rng.uniform(0.04, 0.1)),
        turn=rng.normal(0, 0.05),
        nod=rng.normal(0, 0.03),
    )
    _draw_body(rng, canvas, coat, has_white)

    head, ears = _head_outline(rng), _ears(rng)
    layer = canvas.layer(coat.fur)
    _draw_ears(layer, coat, ears)
    layer.fill(head, coat.fur)
    _draw_markings(rng, layer, coat, has_white)
    layer.soft_rim([head, *ears.outlines], mix(coat.fur, INK, 0.45), blur=0.1, opacity=0.75)
    _draw_muzzle(rng, layer, coat, has_white)
    _draw_eyes(rng, layer, coat)
    canvas.paste(layer, [head, *ears.outlines])
    _draw_whiskers(rng, canvas, coat)
    return canvas.finish()


def _individual(rng: np.random.Generator, coat: Coat) -> Coat:
    """The same coat in slightly different colours."""
    return Coat(
        jitter(rng, coat.fur),
        jitter(rng, coat.dark, 0.08, 3.0),
        jitter(rng, coat.light, 0.03, 3.0),
        jitter(rng, coat.nose),
        coat.eyes,
        coat.markings,
        coat.white_share,
    )


# ---- behind the head ----


def _draw_background(rng: np.random.Generator, canvas: Canvas, fur: Colour) -> None:
    """A gradient that stands out from the fur, sometimes with large soft lights, stripes or a halo."""
    contrasting = sorted(BACKGROUNDS, key=lambda choice: math.dist(choice, fur))[len(BACKGROUNDS) // 2 :]
    colour = jitter(rng, contrasting[rng.integers(len(contrasting))], 0.08, 7.0)
    paler, deeper = mix(colour, WHITE, rng.uniform(0.1, 0.3)), mix(colour, INK, rng.uniform(0.05, 0.25))
    canvas.gradient(paler, deeper, rng.uniform(0, 2 * np.pi))
    pattern = ("none", "none", "lights", "stripes", "halo")[rng.integers(5)]
    reach_x, reach_y = canvas.reach()
    if pattern == "lights":
        for _ in range(6):
            radius = rng.uniform(0.1, 0.3)
            x, y = rng.uniform(-1, 1, 2) * (reach_x, reach_y)
            canvas.soft_fill([ellipse(x, y, radius, radius)], mix(colour, WHITE, 0.5), blur=0.03, opacity=0.35)
    elif pattern == "stripes":
        step, slant = rng.uniform(0.3, 0.5), rng.uniform(-0.6, 0.6)
        edges = np.arange(-reach_x - abs(slant) * reach_y, reach_x + abs(slant) * reach_y, step)
        lean = slant * reach_y
        bands = [
            np.array(
                [
                    (x - lean, -reach_y),
                    (x - lean + step / 2, -reach_y),
                    (x + lean + step / 2, reach_y),
                    (x + lean, reach_y),
                ]
            )
            for x in edges
        ]
        canvas.soft_fill(bands, mix(colour, WHITE, 0.45), blur=0.04, opacity=0.4)
    elif pattern == "halo":
        canvas.soft_fill([ellipse(0, 0, 0.85, 0.85)], mix(colour, WHITE, 0.5), blur=0.2, opacity=0.7)


def _draw_body(rng: np.random.Generator, canvas: Canvas, coat: Coat, has_white: bool) -> None:
    """Shoulders and chest below the chin, and sometimes a collar with a bell."""
    shoulder = rng.uniform(0.62, 0.8)
    # Down to -4: below the lower edge of a picture four times as high as wide.
    body = np.concatenate([bezier((0.4, 0.4), (shoulder, 0.6), (shoulder + 0.12, 1.3)), [(0.9, 4.0)]])
    shape = np.concatenate([body, mirrored(body)[::-1]])
    canvas.fill(shape, mix(coat.fur, INK, 0.22))
    chest = WHITE if has_white else coat.light
    canvas.soft_fill([ellipse(0, 0.95, 0.3, 0.4)], mix(chest, INK, 0.12), blur=0.08, opacity=0.9)
    if rng.random() < 0.25:
        collar = COLLARS[rng.integers(len(COLLARS))]
        canvas.line(bezier((-0.6, 0.6), (0, 1.0), (0.6, 0.6)), collar, 0.12)
        canvas.fill(ellipse(0, 0.86, 0.085, 0.085), (150, 108, 24))
        canvas.fill(ellipse(-0.005, 0.852, 0.068, 0.068), (250, 214, 92))


# ---- the head ----


def _head_outline(rng: np.random.Generator) -> np.ndarray:
    """(n, 2): a wide rounded head, with tufts on the cheeks of the fluffier cats."""
    cheek, chin = rng.uniform(-0.03, 0.05), rng.uniform(-0.03, 0.02)
    half = np.array(
        [
            (0.28, -0.49),
            (0.55, -0.3),
            (0.69, 0.02),
            (0.7 + cheek, 0.3),
            (0.52 + cheek, 0.54),
            (0.25, 0.68 + chin),
        ]
    )
    points = np.concatenate([[(0.0, -0.53)], half, [(0.0, 0.71 + chin)], mirrored(half)[::-1]])
    outline = closed_curve(points)
    # Saw teeth of four samples each, strongest at the height of the cheeks, none at the brow and the chin.
    fluff = max(0.0, rng.uniform(-0.04, 0.09))
    x, y = outline.T
    strength = fluff * np.exp(-(((y - 0.34) / 0.22) ** 2)) * np.abs(x) / 0.7
    tooth = np.resize([1.0, 0.55, 0.2, 0.0], len(outline) // 2)
    tooth = np.concatenate([tooth[::-1], tooth])  # the points run clockwise: down on the right, up on the left
    return outline + (strength * tooth)[:, None] * np.stack([np.sign(x), np.full_like(y, 0.5)], axis=1)


@dataclass(frozen=True)
class _Ears:
    """Shapes, (n, 2): two outlines, and two inner ears or, when the tips are folded over them, two flaps."""

    outlines: list[np.ndarray]
    inner: list[np.ndarray]
    flaps: list[np.ndarray]


def _ears(rng: np.random.Generator) -> _Ears:
    folded = rng.random() < 0.1
    tip = np.array([rng.uniform(0.5, 0.66), rng.uniform(-0.86, -0.74)]) * (1.0, 0.86 if folded else 1.0)
    inner_base = np.array([rng.uniform(0.12, 0.2), -0.4])
    outer_base = np.array([0.66, rng.uniform(-0.16, -0.06)])

    # A triangle with slightly bulging sides and a rounded tip.
    roundness = rng.uniform(0.1, 0.3)
    before, after = tip + (inner_base - tip) * roundness, tip + (outer_base - tip) * roundness
    bulge_in, bulge_out = (inner_base + before) / 2 - (0.05, 0.03), (outer_base + after) / 2 + (0.04, -0.02)
    outline = np.concatenate(
        [
            bezier(inner_base, bulge_in, before),
            bezier(before, tip, after),
            bezier(after, bulge_out, outer_base),
        ]
    )
    if not folded:
        middle = np.array([0.45, -0.3])
        return _Ears(both(outline), inner=both(middle + (outline - middle) * (0.62, 0.7)), flaps=[])

    crease_in, crease_out = inner_base * 0.5 + tip * 0.5, outer_base * 0.45 + tip * 0.55
    hanging_tip = (tip[0] - 0.06, -0.3)
    flap = np.concatenate(
        [
            bezier(crease_in, tip * (1.0, 1.03), crease_out),
            bezier(crease_out, (tip[0] + 0.04, -0.36), hanging_tip),
            bezier(hanging_tip, (tip[0] - 0.2, -0.42), crease_in),
        ]
    )
    return _Ears(both(outline), inner=[], flaps=both(flap))


def _draw_ears(layer: Canvas, coat: Coat, ears: _Ears) -> None:
    colour = coat.dark if coat.markings == "points" else coat.fur
    for outline in ears.outlines:
        layer.fill(outline, colour)
    for flap in ears.flaps:
        shadow = flap + np.array([0.0, 0.05])
        layer.soft_fill([shadow], mix(colour, INK, 0.6), blur=0.03)
        layer.fill(flap, mix(colour, WHITE, 0.08))
    if not ears.inner:
        return

    inside = mix(PINK, colour, 0.15 if brightness(colour) > 110 else 0.5)
    for inner in ears.inner:
        layer.fill(inner, inside)
    deep = [ellipse(x, -0.4, 0.16, 0.16) for x in (-0.46, 0.46)]
    layer.soft_fill(deep, mix(inside, INK, 0.35), blur=0.08, opacity=0.8)
    # Hairs that grow over the inner ear from the side of the brow.
    hair = mix(colour, coat.light, 0.6)
    for x, y in ((0.33, -0.62), (0.4, -0.58), (0.46, -0.52)):
        for side in both(stroke(bezier((x - 0.14, -0.3), (x - 0.12, y + 0.12), (x, y)), 0.07)):
            layer.fill(side, hair)


# ---- markings ----


def _draw_markings(rng: np.random.Generator, layer: Canvas, coat: Coat, has_white: bool) -> None:
    light_from_above = mix(coat.fur, WHITE, 0.3)
    layer.soft_fill([ellipse(0, -0.3, 0.35, 0.2)], light_from_above, blur=0.2, opacity=0.5)
    if coat.markings == "tabby":
        _draw_stripes(rng, layer, coat)
    elif coat.markings == "points":
        layer.soft_fill([ellipse(0, 0.26, rng.uniform(0.3, 0.42), 0.36)], coat.dark, blur=0.13, opacity=0.95)
    elif coat.markings == "patches":
        _draw_patches(rng, layer, coat)
    if has_white:
        _draw_blaze(rng, layer)


def _draw_stripes(rng: np.random.Generator, layer: Canvas, coat: Coat) -> None:
    """The M of the forehead, the lines from the eyes to the cheeks, and pale eyebrows."""
    pale = mix(coat.fur, coat.light, 0.7)
    layer.soft_fill([ellipse(x, -0.12, 0.13, 0.12) for x in (-0.3, 0.3)], pale, blur=0.05, opacity=0.9)
    colour = mix(coat.fur, coat.dark, rng.uniform(0.7, 1.0))
    width = rng.uniform(0.07, 0.11)
    lines = [
        bezier((0.1, -0.14), (0.13, -0.3), (0.07, -0.52)),
        bezier((0.1, -0.16), (0.24, -0.34), (0.27, -0.5)),
        bezier((0.26, -0.3), (0.42, -0.3), (0.5, -0.14)),
        bezier((0.48, 0.06), (0.6, 0.06), (0.76, -0.04)),
        bezier((0.46, 0.2), (0.6, 0.22), (0.78, 0.14)),
        bezier((0.44, 0.36), (0.58, 0.4), (0.74, 0.34)),
    ]
    for line in lines:
        for side in both(stroke(line, width)):
            layer.fill(side, colour)
    layer.fill(stroke(bezier((0.0, -0.2), (0.0, -0.3), (0.0, -0.52)), width * 0.9), colour)


def _draw_patches(rng: np.random.Generator, layer: Canvas, coat: Coat) -> None:
    """Ginger over one ear and eye, black over the other; sometimes a spot on a cheek."""
    side = rng.choice([-1.0, 1.0])
    for direction, colour in ((side, jitter(rng, GINGER)), (-side, coat.dark)):
        centre = np.array([direction * rng.uniform(0.42, 0.54), rng.uniform(-0.4, -0.2)])
        angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
        radii = rng.uniform(0.38, 0.5, 8)[:, None]
        blob = centre + radii * np.stack([np.cos(angles) * 0.85, np.sin(angles) * 1.15], axis=1)
        layer.soft_fill([closed_curve(blob)], colour, blur=0.03)
    if rng.random() < 0.4:
        layer.soft_fill([ellipse(side * 0.47, 0.4, 0.15, 0.12)], coat.dark, blur=0.03)


def _draw_blaze(rng: np.random.Generator, layer: Canvas) -> None:
    """White from the chin over the muzzle up between the eyes."""
    top, width = rng.uniform(-0.5, -0.1), rng.uniform(0.04, 0.1)
    low = rng.uniform(0.3, 0.46)
    half = np.array([(width, (top + 0.1) / 2), (width + 0.06, 0.18), (low, 0.38), (low * 1.1, 0.66), (0.0, 0.85)])
    shape = np.concatenate([[(0.0, top)], half, mirrored(half)[-2::-1]])
    layer.soft_fill([closed_curve(shape)], WHITE, blur=0.03)


# ---- the face ----


def _draw_muzzle(rng: np.random.Generator, layer: Canvas, coat: Coat, has_white: bool) -> None:
    """Two soft cushions and a chin, then nose, mouth, whisker spots and sometimes a tongue."""
    light = WHITE if has_white else mix(coat.fur, coat.light, 0.85)
    if coat.markings == "points":
        light = mix(coat.dark, coat.fur, 0.25)
    shapes = [
        ellipse(-0.13, 0.41, 0.18, 0.135),
        ellipse(0.13, 0.41, 0.18, 0.135),
        ellipse(0, 0.54, 0.14, 0.09),
    ]
    layer.soft_fill(shapes, light, blur=0.03, opacity=0.95)
    ink = mix(light, INK, 0.8)
    if rng.random() < 0.12:
        layer.fill(ellipse(0, 0.49, 0.055, 0.075), (236, 112, 126))
    mouth = rng.uniform(0.42, 0.46)
    layer.line(np.array([(0.0, 0.33), (0.0, 0.43)]), ink, 0.025)
    for side in both(bezier((0.0, 0.43), (0.07, mouth + 0.1), (0.17, mouth))):
        layer.line(side, ink, 0.028)
    nose = np.array(
        [
            (0.0, 0.25),
            (0.08, 0.235),
            (0.1, 0.275),
            (0.03, 0.345),
            (-0.03, 0.345),
            (-0.1, 0.275),
            (-0.08, 0.235),
        ]
    )
    layer.fill(closed_curve((nose - (0, 0.28)) * 1.16 + (0, 0.285)), mix(coat.nose, INK, 0.5))
    layer.fill(closed_curve(nose), coat.nose)
    layer.fill(ellipse(-0.03, 0.262, 0.028, 0.013), mix(coat.nose, WHITE, 0.5))
    for x, y in ((0.18, 0.39), (0.24, 0.42), (0.19, 0.45)):
        for side in both(ellipse(x, y, 0.012, 0.012, samples=8)):
            layer.fill(side, mix(light, INK, 0.5))


def _draw_eyes(rng: np.random.Generator, layer: Canvas, coat: Coat) -> None:
    """Almond eyes, large iris, a pupil from slit to round, and a highlight on the same side of both."""
    iris = jitter(rng, EYES[coat.eyes[rng.integers(len(coat.eyes))]], 0.08, 5.0)
    other = iris
    if brightness(coat.fur) > 235 and coat.markings == "plain" and rng.random() < 0.2:
        other = EYES["blue"]  # some white cats have odd eyes
    a, b = rng.uniform(0.17, 0.2), rng.uniform(0.135, 0.185)
    slant, spacing = rng.uniform(0.0, 0.05), rng.uniform(0.3, 0.335)
    pupil = b * rng.uniform(0.3, 0.85)
    gaze = np.array([rng.normal(0, 0.02), rng.normal(0, 0.012)])
    eye = np.array(
        [
            (-a, slant + 0.02),
            (-0.45 * a, -0.85 * b),
            (0.4 * a, -b),
            (a, -slant),
            (0.5 * a, 0.8 * b),
            (-0.4 * a, b * 0.95),
        ]
    )
    for direction, colour in ((1.0, iris), (-1.0, other)):
        centre = np.array([direction * spacing, 0.04])
        shape = closed_curve(eye) * (direction, 1.0)
        layer.fill(shape * 1.2 + centre, INK)
        layer.fill(shape + centre, mix(colour, INK, 0.3))
        layer.fill(shape * (0.86, 0.8) + centre + (0, 0.14 * b), colour)
        layer.fill(shape * (0.6, 0.4) + centre + (0, 0.45 * b), mix(colour, WHITE, 0.35))
        x, y = centre + gaze
        layer.fill(ellipse(x, y, pupil, 0.85 * b), (16, 12, 14))
        layer.fill(ellipse(x - 0.055, y - 0.4 * b, 0.045, 0.045), (255, 255, 255))
        layer.fill(ellipse(x + 0.05, y + 0.4 * b, 0.02, 0.02), mix(colour, WHITE, 0.7))


def _draw_whiskers(rng: np.random.Generator, canvas: Canvas, coat: Coat) -> None:
    colour = WHITE if brightness(coat.fur) < 190 else mix(coat.fur, INK, 0.55)
    droop = rng.uniform(-0.06, 0.06)
    for start, end in ((0.38, 0.26), (0.42, 0.42), (0.46, 0.58)):
        line = bezier((0.22, start), (0.5, start - 0.06), (0.9, end + droop))
        for side in both(line):
            canvas.line(side, colour, 0.012)
