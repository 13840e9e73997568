"""Toy portraits: softly shaded faces of people who do not exist, drawn from soft spots and a few curves.

Every face has the same anatomy, so that a small network can learn it: an oval head on neck and shoulders,
eyes a little above the middle, nose, lips, two ears. Skin, hair, age, beard, glasses, clothes, the light and
the backdrop differ. The numbers are unit coordinates (see canvas.py); the right half is written down and
mirrored.
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
    mix,
    stroke,
    symmetric,
)

WHITE: Colour = (250, 246, 242)
INK: Colour = (30, 20, 20)
UMBER: Colour = (66, 22, 16)  # what the shadows of skin tend to
ROSE: Colour = (206, 72, 78)

SKINS: tuple[Colour, ...] = (
    (248, 214, 190), (240, 196, 164), (226, 172, 136), (206, 150, 108), (172, 116, 80), (134, 86, 60),
    (98, 62, 46),
)  # fmt: skip
HAIR: tuple[Colour, ...] = (
    (34, 28, 28), (58, 40, 32), (92, 60, 40), (134, 88, 52), (196, 150, 92), (226, 192, 130), (156, 70, 38),
    (150, 146, 144), (220, 216, 212),
)  # fmt: skip
EYES: tuple[Colour, ...] = ((74, 46, 28), (96, 62, 34), (70, 112, 152), (86, 118, 76), (110, 120, 126))
CLOTHES: tuple[Colour, ...] = (
    (46, 58, 92), (150, 46, 50), (238, 234, 228), (58, 58, 62), (74, 112, 86), (110, 146, 186), (196, 150, 84),
    (120, 82, 124), (186, 108, 96),
)  # fmt: skip
BACKDROPS: tuple[Colour, ...] = (
    (112, 134, 160), (150, 144, 136), (96, 118, 104), (178, 160, 138), (124, 108, 132), (186, 196, 206),
    (86, 82, 88), (198, 176, 166), (140, 168, 176), (214, 208, 196),
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """What the parts must know of one another."""

    skin: Colour
    hair: Colour
    clothes: Colour
    light: float  # where the light comes from: -1 left, 1 right
    cheek: float  # half the width of the face at its widest
    jaw: float  # half the width at the mouth
    chin: float  # y

    def shade(self, share: float) -> Colour:
        """The skin, darker."""
        return mix(self.skin, UMBER, share)

    def glow(self, share: float) -> Colour:
        """The skin, lighter."""
        return mix(self.skin, (255, 240, 222), share)

    def outline(self) -> np.ndarray:
        half = [
            (0.0, -0.64), (0.3, -0.56), (self.cheek - 0.02, -0.26), (self.cheek, 0.02), (self.jaw, 0.34),
            (0.46 * self.jaw, self.chin - 0.05), (0.0, self.chin),
        ]  # fmt: skip
        return closed_curve(symmetric(half))


def draw_one(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """One portrait. The random draws never depend on the size, so neither does the person."""
    darkness = rng.integers(len(SKINS))
    # Dark skin goes with dark or grey hair.
    hairs = HAIR if darkness < 3 else HAIR[:3] + HAIR[-2:-1]
    person = Person(
        skin=jitter(rng, SKINS[darkness], 0.04, 3.0),
        hair=jitter(rng, hairs[rng.integers(len(hairs))], 0.1, 3.0),
        clothes=jitter(rng, CLOTHES[rng.integers(len(CLOTHES))], 0.1, 5.0),
        light=rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0),
        cheek=rng.uniform(0.44, 0.5),
        jaw=rng.uniform(0.33, 0.4),
        chin=rng.uniform(0.58, 0.66),
    )
    canvas = Canvas(height, width)
    _draw_backdrop(rng, canvas, person)
    canvas.pose = Pose(
        rotation=rng.uniform(-0.08, 0.08),
        scale=(rng.uniform(0.98, 1.06), rng.uniform(0.98, 1.06)),
        shift=(rng.uniform(-0.04, 0.04), rng.uniform(0.04, 0.1)),
        turn=rng.normal(0, 0.07),
        nod=rng.normal(0, 0.03),
    )
    draw_behind, draw_front, may_have_beard = STYLES[rng.integers(len(STYLES))]
    if draw_behind is not None:
        draw_behind(rng, canvas, person)
    _draw_shoulders(rng, canvas, person)

    face = person.outline()
    layer = canvas.layer(person.skin)
    _draw_skin(rng, layer, person, face)
    if may_have_beard and rng.random() < 0.55:
        _draw_beard(rng, layer, person)
    _draw_mouth(rng, layer, person)
    _draw_nose(rng, layer, person)
    _draw_eyes(rng, layer, person)
    canvas.paste(layer, [face])
    if draw_front is not None:
        draw_front(rng, canvas, person)
    if rng.random() < 0.2:
        _draw_glasses(rng, canvas, person)
    return canvas.finish()


# ---- behind and below the face ----


def _draw_backdrop(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    """A cloudy gradient, lighter towards the light, that stands out from the hair and the skin."""
    distant = sorted(BACKDROPS, key=lambda choice: min(math.dist(choice, person.hair), math.dist(choice, person.skin)))[
        len(BACKDROPS) // 2 :
    ]
    colour = jitter(rng, distant[rng.integers(len(distant))], 0.08, 5.0)
    tilt = rng.uniform(-0.6, 0.6)
    angle = tilt if person.light < 0 else np.pi + tilt
    canvas.gradient(mix(colour, WHITE, rng.uniform(0.15, 0.4)), mix(colour, INK, rng.uniform(0.15, 0.4)), angle)
    x, y, size = rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.2), rng.uniform(0.4, 0.7)
    canvas.soft_fill([ellipse(x, y, size, size)], mix(colour, WHITE, 0.35), blur=0.25, opacity=0.5)


def _draw_shoulders(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    """Clothes with a round or pointed neckline or a collar, the neck, and the shadow of the chin on it."""
    slope, clothes = rng.uniform(0.6, 0.74), person.clothes
    edge = np.concatenate([bezier((0.22, 0.62), (slope, 0.74), (slope + 0.16, 1.3)), [(1.0, 4.0)]])
    body = symmetric(edge)
    layer = canvas.layer(clothes)
    layer.soft_rim([body], mix(clothes, INK, 0.6), blur=0.1, opacity=0.7)
    lit = ellipse(0.45 * person.light, 0.95, 0.25, 0.14)
    layer.soft_fill([lit], mix(clothes, WHITE, 0.3), blur=0.1, opacity=0.7)
    canvas.paste(layer, [body])

    depth = (0.84, 1.02, 0.88, 0.76)[kind := int(rng.integers(4))]
    if kind == 2:
        canvas.fill(symmetric([(0.24, 0.66), (0.0, 1.3)]), WHITE)
    neck = symmetric([(0.2, 0.3), (0.21, 0.66), (0.25, 0.7), (0.14, 0.8 if kind != 1 else 0.84), (0.0, depth)])
    canvas.fill(neck, person.shade(0.16))
    canvas.soft_fill([ellipse(-0.06 * person.light, 0.6, 0.19, 0.13)], person.shade(0.45), blur=0.05, opacity=0.9)
    if kind == 2:
        collar = np.array([(0.2, 0.62), (0.3, 0.74), (0.16, 0.98), (0.0, 0.88), (0.15, 0.8)])
        for side in both(collar):
            canvas.fill(side, mix(WHITE, INK, 0.12 if side[0, 0] * person.light > 0 else 0.28))
    for ear in both(ellipse(person.cheek + 0.005, 0.05, 0.06, 0.12)):
        canvas.fill(ear, person.shade(0.1 if ear[0, 0] * person.light > 0 else 0.3))
        canvas.fill((ear - ear.mean(axis=0)) * 0.55 + ear.mean(axis=0), person.shade(0.36))


def _draw_skin(rng: np.random.Generator, layer: Canvas, person: Person, face: np.ndarray) -> None:
    """Light from one side, a darker rim, red cheeks, sockets for the eyes."""
    light = person.light
    layer.soft_fill([ellipse(0.2 * light, -0.3, 0.24, 0.2)], person.glow(0.5), blur=0.14, opacity=0.8)
    layer.soft_fill([ellipse(-0.5 * np.sign(light), 0.1, 0.26, 0.7)], person.shade(0.4), blur=0.14, opacity=abs(light))
    layer.soft_rim([face], person.shade(0.55), blur=0.07, opacity=0.75)
    cheeks = both(ellipse(0.27, 0.2, 0.1, 0.07))
    layer.soft_fill(cheeks, mix(person.skin, ROSE, 0.4), blur=0.07, opacity=rng.uniform(0.2, 0.7))
    layer.soft_fill(both(ellipse(0.195, -0.1, 0.14, 0.075)), person.shade(0.38), blur=0.045, opacity=0.8)


# ---- the face ----


def _draw_eyes(rng: np.random.Generator, layer: Canvas, person: Person) -> None:
    """Almonds with iris, pupil, highlight and upper lid, under a brow."""
    iris = EYES[rng.integers(len(EYES) if brightness(person.skin) > 150 else 2)]
    size = np.array([rng.uniform(1.05, 1.22), rng.uniform(0.95, 1.35)])
    slant, spacing = rng.uniform(-0.02, 0.02), rng.uniform(0.185, 0.21)
    gaze = rng.normal(0, 0.012)
    heavy, arch, tilt = rng.uniform(0.035, 0.075), rng.uniform(0.02, 0.07), rng.uniform(-0.03, 0.012)
    height = rng.uniform(-0.22, -0.19)
    brow_colour = mix(mix(person.hair, INK, 0.3), person.skin, 0.1)
    upper = bezier((-0.115, 0.015), (-0.02, -0.105), (0.115, 0.0 - slant))
    almond = np.concatenate([upper, bezier((0.115, 0.0 - slant), (0.02, 0.075), (-0.115, 0.015))])
    for direction in (-1.0, 1.0):
        centre = np.array([direction * spacing, -0.07])
        mirror = size * (direction, 1.0)
        x, y = centre[0] + gaze, centre[1] - 0.008
        layer.fill(almond * mirror + centre, mix(WHITE, person.skin, 0.2))
        layer.fill(ellipse(x, y, 0.056, 0.05 * size[1]), mix(iris, INK, 0.4))
        layer.fill(ellipse(x, y + 0.008, 0.044, 0.037 * size[1]), iris)
        layer.fill(ellipse(x, y, 0.024, 0.026), INK)
        layer.fill(ellipse(x + 0.018 * np.sign(person.light), y - 0.018, 0.013, 0.013), WHITE)
        layer.fill(stroke(upper * mirror + centre, 0.045), mix(person.shade(0.75), INK, 0.5))
        fold = bezier((-0.1, -0.04), (0.0, -0.12), (0.11, -0.035)) * mirror + centre
        layer.fill(stroke(fold, 0.016), person.shade(0.5))
        brow = bezier((-0.12, height + 0.01 + tilt), (0.03, height - arch), (0.17, height + 0.03 - tilt))
        layer.fill(stroke(brow * (direction, 1.0) + (direction * spacing, 0.0), heavy), brow_colour)


def _draw_nose(rng: np.random.Generator, layer: Canvas, person: Person) -> None:
    """A lit ridge, a shaded side, two wings with nostrils, and a shadow below."""
    tip, wide = rng.uniform(0.17, 0.23), rng.uniform(0.07, 0.105)
    side = np.sign(person.light)
    shaded = bezier((-0.07 * side, -0.1), (-0.06 * side, 0.06), (-wide * side, tip))
    layer.soft_fill([stroke(shaded, 0.08)], person.shade(0.45), blur=0.025, opacity=0.75)
    layer.soft_fill([ellipse(0, tip + 0.05, wide, 0.025)], person.shade(0.5), blur=0.03, opacity=0.8)
    layer.soft_fill(
        [stroke(bezier((0.015 * side, -0.1), (0.02 * side, 0.05), (0.02 * side, tip)), 0.05),
         ellipse(0.015 * side, tip - 0.02, 0.04, 0.035)],
        person.glow(0.6), blur=0.02, opacity=0.8,
    )  # fmt: skip
    for wing in both(bezier((wide - 0.015, tip - 0.04), (wide + 0.035, tip + 0.01), (wide - 0.025, tip + 0.035))):
        layer.fill(stroke(wing, 0.028), person.shade(0.5))
    for nostril in both(ellipse(0.42 * wide, tip + 0.035, 0.024, 0.013)):
        layer.fill(nostril, person.shade(0.75))


def _draw_mouth(rng: np.random.Generator, layer: Canvas, person: Person) -> None:
    """Two lips, closed in a smile or open so that teeth show, and a soft shadow below."""
    half, full, smile = rng.uniform(0.14, 0.19), rng.uniform(0.03, 0.055), rng.uniform(0.0, 0.06)
    lips = mix(mix(person.skin, ROSE, rng.uniform(0.35, 0.75)), UMBER, 0.15)
    y = 0.385
    right, left = (half, y - smile), (-half, y - smile)
    layer.soft_fill([ellipse(0, y + full + 0.06, 0.1, 0.02)], person.shade(0.4), blur=0.03, opacity=0.7)
    opening = full * rng.uniform(0.8, 1.5) if rng.random() < 0.4 else 0.0
    top = np.concatenate([bezier(left, (-0.05, y - 1.6 * full), (0, y - 0.5 * full)),
                          bezier((0, y - 0.5 * full), (0.05, y - 1.6 * full), right)])  # fmt: skip
    bottom = bezier(right, (0, y + 2.6 * full + 1.4 * opening + smile), left)
    layer.fill(np.concatenate([top, bottom]), lips)
    seam_top, seam = bezier(left, (0, y + smile), right), bezier(right, (0, y + 2 * opening + smile), left)
    if opening:
        layer.fill(np.concatenate([seam_top, seam]), mix(WHITE, person.shade(0.2), 0.12))
    layer.fill(stroke(seam_top, 0.022), mix(lips, UMBER, 0.65))
    light = ellipse(0.03 * person.light, y + 0.75 * full + opening, 0.055, 0.014)
    layer.soft_fill([light], mix(lips, WHITE, 0.45), blur=0.012, opacity=0.8)


def _draw_beard(rng: np.random.Generator, layer: Canvas, person: Person) -> None:
    """A full beard, stubble, a moustache, or one around the mouth; its edges fade into the skin."""
    kind = rng.choice(["full", "stubble", "moustache", "round"], p=[0.35, 0.3, 0.15, 0.2])
    colour = mix(person.hair, person.skin, 0.15)
    moustache = symmetric([(0.0, 0.285), (0.1, 0.285), (0.2, 0.37), (0.17, 0.4), (0.06, 0.345), (0.0, 0.345)])
    if kind in ("full", "stubble"):
        half = [
            (0.0, 0.3), (0.14, 0.3), (0.24, 0.32), (0.36, 0.16), (person.cheek - 0.03, -0.12), (0.7, -0.12),
            (0.7, 0.9), (0.0, 0.9),
        ]  # fmt: skip
        solid = 0.95 if kind == "full" else 0.4
        layer.soft_fill([symmetric(half)], colour, blur=0.03, opacity=solid)
    elif kind == "moustache":
        layer.soft_fill([moustache], colour, blur=0.015, opacity=0.95)
    else:
        half = [(0.16, 0.34), (0.21, 0.42), (0.17, 0.6), (0.0, 0.68)]
        layer.soft_fill([moustache, symmetric([(0.0, 0.44), *half])], colour, blur=0.02, opacity=0.9)


def _draw_glasses(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    frames: tuple[Colour, ...] = ((36, 32, 34), (96, 60, 40), (236, 226, 206), (60, 74, 104), (158, 40, 48))
    visible = [frame for frame in frames if math.dist(frame, person.skin) > 90]
    colour = visible[rng.integers(len(visible))]
    thick, roundness = rng.uniform(0.02, 0.034), rng.uniform(0.45, 1.0)
    circle = ellipse(0, 0, 1, 1, samples=40)
    rim = np.sign(circle) * np.abs(circle) ** roundness * (0.155, 0.125)  # nearer to a rectangle below 1
    for direction in (-1.0, 1.0):
        place = rim * (direction, 1.0) + (direction * 0.2, -0.06)
        canvas.line(np.concatenate([place, place[:2]]), colour, thick)
    canvas.line(bezier((-0.05, -0.08), (0, -0.11), (0.05, -0.08)), colour, thick)
    for arm in both(np.array([(0.35, -0.08), (person.cheek - 0.02, -0.06)])):
        canvas.line(arm, colour, thick)


# ---- hair: some of it goes behind the face, some in front ----

Part = Callable[[np.random.Generator, Canvas, Person], None]


def _draw_hair(rng: np.random.Generator, canvas: Canvas, person: Person, shape: np.ndarray, dark: float) -> None:
    """One mass of hair: darker at its rim, with a soft shine on the side of the light and a few strands."""
    colour = mix(person.hair, INK, dark)
    layer = canvas.layer(colour)
    layer.soft_rim([shape], mix(colour, INK, 0.6), blur=0.06, opacity=0.7)
    shine = mix(colour, (255, 236, 206), 0.22 if brightness(colour) < 90 else 0.4)
    if dark < 0.2:
        place = bezier(
            (0.42 * person.light - 0.3, -0.46),
            (0.42 * person.light, -0.72),
            (0.42 * person.light + 0.3, -0.4),
        )
        layer.soft_fill([stroke(place, 0.16)], shine, blur=0.05, opacity=0.8)
        for x in rng.uniform(-0.5, 0.5, 6):
            strand = bezier((1.15 * x, -0.2), (1.2 * x, -0.55), (0.5 * x, -0.8))
            layer.line(strand, mix(colour, shine, 0.25), 0.012)
    canvas.paste(layer, [shape])


def _cap(person: Person, lift: float, hairline: list[tuple[float, float]]) -> np.ndarray:
    """Hair that stands lift above the skull, down to a hairline whose right half is given from outside in."""
    cheek = person.cheek
    half = [
        (0.0, -0.66 - lift), (0.34, -0.58 - lift), (cheek + 0.02 + 0.4 * lift, -0.3), (cheek + 0.03, -0.02),
        *hairline,
    ]  # fmt: skip
    return closed_curve(symmetric(half))


def _draw_short(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    cheek, y = person.cheek, rng.uniform(-0.46, -0.36)
    hairline = [(cheek - 0.04, -0.06), (cheek - 0.07, -0.28), (0.26, y), (0.0, y - rng.uniform(-0.04, 0.05))]
    _draw_hair(rng, canvas, person, _cap(person, rng.uniform(0.04, 0.16), hairline), 0.0)


def _draw_receding(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    cheek = person.cheek
    hairline = [(cheek - 0.04, -0.06), (cheek - 0.05, -0.3), (0.28, -0.56), (0.12, -0.52), (0.0, -0.46)]
    _draw_hair(rng, canvas, person, _cap(person, rng.uniform(0.02, 0.06), hairline), 0.0)


def _draw_side_parting(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    """Hair combed over from one side, in a wave."""
    cheek, lift, side = person.cheek, rng.uniform(0.04, 0.14), rng.choice([-1.0, 1.0])
    points = [
        (-cheek - 0.03, -0.02), (-cheek - 0.05, -0.34), (-0.36, -0.6 - lift), (0.05, -0.7 - lift),
        (0.4, -0.58 - lift), (cheek + 0.06, -0.28), (cheek + 0.03, 0.0), (cheek - 0.04, -0.1), (cheek - 0.06, -0.28),
        (0.2, -0.38), (-0.1, -0.46), (-0.26, -0.56), (-cheek + 0.09, -0.34), (-cheek + 0.04, -0.06),
    ]  # fmt: skip
    _draw_hair(rng, canvas, person, closed_curve(np.array(points) * (side, 1.0)), 0.0)


def _draw_parted(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    """Long hair in front: parted in the middle or nearly so, and down to the cheeks."""
    cheek, part, low = person.cheek, rng.uniform(-0.18, 0.18), rng.uniform(0.2, 0.5)
    half = [(cheek + 0.09, -0.3), (cheek + 0.1, low), (cheek - 0.03, low), (cheek - 0.04, 0.0), (0.3, -0.34)]
    right = [(part, -0.74), (0.34, -0.66), *half, (part + 0.06, -0.56)]
    left = [(-x, y) for x, y in half]
    points = [*right, (part - 0.06, -0.56), *left[::-1], (-0.34, -0.66)]
    _draw_hair(rng, canvas, person, closed_curve(np.array(points)), 0.0)


def _draw_fringe(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    cheek, y, low = person.cheek, rng.uniform(-0.3, -0.24), rng.uniform(0.1, 0.4)
    hairline = [(cheek + 0.06, low), (cheek - 0.04, low), (cheek - 0.08, y + 0.06), (0.2, y), (0.0, y - 0.01)]
    _draw_hair(rng, canvas, person, _cap(person, rng.uniform(0.06, 0.12), hairline), 0.0)


def _draw_long_behind(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    wide, bottom = rng.uniform(0.58, 0.7), rng.uniform(0.5, 1.2)
    half = [(0.0, -0.72), (0.4, -0.6), (0.58, -0.2), (wide, 0.3), (wide - 0.02, bottom - 0.1), (0.4, bottom)]
    _draw_hair(rng, canvas, person, closed_curve(symmetric(half)), 0.3)


def _draw_curls_behind(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    """A round mass with an uneven rim, small or large."""
    size, low = rng.uniform(0.64, 0.82), rng.uniform(-0.3, -0.12)
    angles = np.linspace(0, 2 * np.pi, 26, endpoint=False)
    radii = size * (1 + np.resize([0.045, -0.03], 26) + rng.uniform(-0.015, 0.015, 26))
    rim = np.stack([radii * np.cos(angles), low + 0.92 * radii * np.sin(angles)], axis=1)
    _draw_hair(rng, canvas, person, closed_curve(rim, samples=4), 0.12)


def _draw_curls(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    cheek = person.cheek
    x = np.linspace(-cheek, cheek, 11)
    hairline = np.stack([x, -0.42 + 0.5 * x * x + np.resize([0.03, -0.03], 11)], axis=1)
    crown = np.array([(cheek + 0.06, -0.4), (0.3, -0.72), (0.0, -0.78), (-0.3, -0.72), (-cheek - 0.06, -0.4)])
    _draw_hair(rng, canvas, person, closed_curve(np.concatenate([crown, hairline])), 0.0)


def _draw_bun_behind(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    _draw_hair(rng, canvas, person, ellipse(rng.uniform(-0.1, 0.1), -0.76, 0.22, 0.18), 0.15)


def _draw_pulled_back(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    cheek = person.cheek
    hairline = [(cheek - 0.03, -0.06), (cheek - 0.06, -0.26), (0.22, -0.48), (0.0, -0.52)]
    _draw_hair(rng, canvas, person, _cap(person, 0.03, hairline), 0.0)


def _draw_scarf(rng: np.random.Generator, canvas: Canvas, person: Person) -> None:
    """A headscarf that frames the face and falls over the shoulders."""
    colour = jitter(rng, CLOTHES[rng.integers(len(CLOTHES))], 0.1, 5.0)
    cheek = person.cheek
    outer = [
        (0.0, -0.78), (0.38, -0.68), (0.58, -0.26), (0.6, 0.3), (0.5, 0.62), (0.66, 1.0), (0.4, 1.3),
        (0.0, 1.3),
    ]  # fmt: skip
    opening = [
        (0.0, -0.5), (0.26, -0.45), (cheek - 0.06, -0.22), (cheek - 0.05, 0.08), (0.3, 0.42), (0.0, 0.62),
    ]  # fmt: skip
    inner, rim = closed_curve(symmetric(opening)), closed_curve(symmetric(outer))
    layer = canvas.layer(colour)
    layer.soft_rim([rim], mix(colour, INK, 0.6), blur=0.08, opacity=0.7)
    layer.soft_fill([inner], mix(colour, INK, 0.6), blur=0.06, opacity=0.8)
    layer.soft_fill([ellipse(0.3 * person.light, -0.6, 0.2, 0.08)], mix(colour, WHITE, 0.4), blur=0.07, opacity=0.7)
    for x in (-0.1, 0.12):
        layer.fill(stroke(bezier((x - 0.3, 0.7), (x, 0.85), (x + 0.25, 0.68)), 0.03), mix(colour, INK, 0.3))
    # One outline with the face left out: around the rim, in through the chin, around the opening backwards.
    canvas.paste(layer, [np.concatenate([rim, rim[:1], inner[:1], inner[::-1]])])


STYLES: tuple[tuple[Part | None, Part | None, bool], ...] = (  # behind, in front, whether a beard may go with it
    (None, _draw_short, True),
    (None, _draw_short, True),
    (None, _draw_side_parting, True),
    (None, _draw_side_parting, True),
    (None, _draw_receding, True),
    (None, None, True),
    (_draw_curls_behind, _draw_curls, False),
    (_draw_long_behind, _draw_parted, False),
    (_draw_long_behind, _draw_parted, False),
    (_draw_long_behind, _draw_fringe, False),
    (_draw_bun_behind, _draw_pulled_back, False),
    (None, _draw_scarf, False),
)
