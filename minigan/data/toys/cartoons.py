"""Toy cartoons: heads in flat colours with bold outlines, most of them yellow. Nobody's characters.

Every head has the same anatomy, so that a small network can learn it: two big round eyes that touch, a nose
below them, a mouth, two ears, a neck and a shirt. Shape, skin, hair, hat, beard and mood differ. The numbers
are unit coordinates (see canvas.py); the right half of the head is written down and mirrored.
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
    symmetric,
    widened,
)

INK: Colour = (32, 26, 32)
WHITE: Colour = (255, 255, 252)
MOUTH: Colour = (128, 34, 42)
TONGUE: Colour = (232, 104, 106)
LINE = 0.038  # how wide an outline is

YELLOW: Colour = (255, 214, 58)
OTHER_SKINS: tuple[Colour, ...] = (
    (250, 202, 164), (232, 170, 122), (176, 114, 72), (124, 78, 52), (160, 210, 110), (140, 196, 232),
)  # fmt: skip
HAIR: tuple[Colour, ...] = (
    (54, 44, 50), (104, 62, 40), (160, 88, 42), (214, 84, 44), (246, 240, 224), (150, 152, 164),
    (66, 110, 206), (206, 78, 150), (72, 152, 98), (126, 84, 176),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (222, 62, 60), (52, 116, 202), (60, 160, 104), (246, 246, 240), (244, 140, 46), (140, 88, 176),
    (70, 72, 92), (238, 126, 168), (64, 178, 190),
)  # fmt: skip
BACKGROUNDS: tuple[Colour, ...] = (
    (132, 204, 240), (166, 222, 170), (250, 178, 142), (196, 172, 232), (244, 240, 226), (242, 158, 184),
    (110, 164, 186), (232, 110, 92), (92, 106, 156), (116, 190, 176),
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """What the parts must know of one another: where the skull ends, and its colours."""

    top: float  # y
    temple: float  # half the width at the forehead
    jaw: float  # half the width at the mouth
    chin: float  # y
    skin: Colour
    hair: Colour

    def outline(self) -> np.ndarray:
        cheek = 0.5 * (self.temple + self.jaw)
        half = [
            (0.0, self.top), (0.62 * self.temple, self.top + 0.07), (self.temple, -0.3), (cheek, 0.06),
            (self.jaw, 0.36), (0.62 * self.jaw, self.chin - 0.06), (0.0, self.chin),
        ]  # fmt: skip
        return closed_curve(symmetric(half))


def draw_one(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """One head on a flat background. The random draws never depend on the size, so neither does the head."""
    is_yellow = rng.random() < 0.65
    skin = jitter(rng, YELLOW if is_yellow else OTHER_SKINS[rng.integers(len(OTHER_SKINS))], 0.04, 4.0)
    hair = jitter(rng, _away_from(rng, HAIR, skin), 0.08, 5.0)
    head = Head(
        top=rng.uniform(-0.66, -0.54),
        temple=rng.uniform(0.44, 0.54),
        jaw=rng.uniform(0.4, 0.56),
        chin=rng.uniform(0.6, 0.7),
        skin=skin,
        hair=hair,
    )
    clothes = jitter(rng, _away_from(rng, CLOTHES, skin), 0.06, 5.0)
    canvas = Canvas(height, width)
    _draw_background(rng, canvas, skin, hair)

    canvas.pose = Pose(
        rotation=rng.uniform(-0.09, 0.09),
        scale=(rng.uniform(0.98, 1.06), rng.uniform(0.98, 1.05)),
        shift=(rng.uniform(-0.05, 0.05), rng.uniform(0.08, 0.14)),
        turn=rng.normal(0, 0.06),
        nod=rng.normal(0, 0.02),
    )
    draw_behind, draw_above = STYLES[rng.integers(len(STYLES))]
    if draw_behind is not None:
        draw_behind(rng, canvas, head)
    _draw_shirt(rng, canvas, head, clothes)
    _draw_ears(canvas, head)
    canvas.outlined([head.outline()], skin, INK, LINE)
    if draw_behind is None:
        _draw_beard(rng, canvas, head)
    _draw_mouth(rng, canvas)
    _draw_brows(rng, canvas, head)
    if draw_above is not None:
        draw_above(rng, canvas, head)
    _draw_eyes(rng, canvas, head)
    _draw_nose(rng, canvas, head)
    return canvas.finish()


def _away_from(rng: np.random.Generator, colours: tuple[Colour, ...], other: Colour) -> Colour:
    """One of the colours that are not too near to the other one."""
    distant = [colour for colour in colours if math.dist(colour, other) > 75]
    return distant[rng.integers(len(distant))]


# ---- behind and below the head ----


def _draw_background(rng: np.random.Generator, canvas: Canvas, skin: Colour, hair: Colour) -> None:
    """One flat colour; often with rays, spots, or a wall below a line."""
    distant = sorted(BACKGROUNDS, key=lambda choice: min(math.dist(choice, skin), math.dist(choice, hair)))
    distant = distant[len(distant) // 2 :]
    colour = jitter(rng, distant[rng.integers(len(distant))], 0.05, 6.0)
    second = mix(colour, WHITE, 0.3) if brightness(colour) < 190 else mix(colour, INK, 0.1)
    canvas.fill(np.array([(-9.0, -9.0), (9.0, -9.0), (9.0, 9.0), (-9.0, 9.0)]), colour)
    pattern = ("none", "none", "rays", "spots", "wall")[rng.integers(5)]
    if pattern == "rays":
        turn = rng.uniform(0, 2 * np.pi)
        for angle in turn + np.arange(8) * (np.pi / 4):
            rim = np.array([angle, angle + np.pi / 8])
            canvas.fill(np.concatenate([[(0, 0)], 9 * np.stack([np.cos(rim), np.sin(rim)], axis=1)]), second)
    elif pattern == "spots":
        for x, y in rng.uniform(-1, 1, (9, 2)) * canvas.reach():
            canvas.fill(ellipse(x, y, 0.13, 0.13), second)
    elif pattern == "wall":
        y = rng.uniform(0.1, 0.5)
        canvas.fill(np.array([(-9.0, y), (9.0, y), (9.0, 9.0), (-9.0, 9.0)]), second)


def _draw_shirt(rng: np.random.Generator, canvas: Canvas, head: Head, clothes: Colour) -> None:
    """Neck and shoulders, and one of: a round neckline, a collar with a tie, a turtleneck, stripes."""
    slope = rng.uniform(0.5, 0.66)
    shoulders = np.concatenate([bezier((0.24, 0.66), (slope, 0.72), (slope + 0.1, 1.2)), [(0.9, 4.0)]])
    body = symmetric(shoulders)
    canvas.outlined([body], clothes, INK, LINE)
    kind = rng.integers(4)
    if kind == 3:
        layer = canvas.layer(clothes)
        for y in (0.88, 1.08):
            layer.line(bezier((-0.9, y - 0.1), (0, y + 0.08), (0.9, y - 0.1)), mix(clothes, WHITE, 0.6), 0.09)
        canvas.paste(layer, [body])
    neck = clothes if kind == 2 else mix(head.skin, INK, 0.14)
    half_neck = [(0.2, 0.4), (0.21, 0.7), (0.15, 0.8), (0.05, 0.83)]
    canvas.outlined([symmetric(half_neck)], neck, INK, LINE)
    if kind == 1:
        tie = CLOTHES[rng.integers(len(CLOTHES))]
        canvas.outlined([symmetric([(0.05, 0.82), (0.1, 1.5)])], tie, INK, LINE * 0.8)
        collar = np.array([(0.2, 0.66), (0.3, 0.8), (0.16, 0.94), (0.02, 0.83), (0.14, 0.79)])
        canvas.outlined(both(collar), WHITE, INK, LINE * 0.8)


def _draw_ears(canvas: Canvas, head: Head) -> None:
    x = 0.5 * (head.temple + head.jaw)
    canvas.outlined(both(ellipse(x + 0.03, 0.12, 0.11, 0.13)), head.skin, INK, LINE)
    for line in both(bezier((x + 0.1, 0.06), (x + 0.02, 0.05), (x + 0.06, 0.18))):
        canvas.line(line, INK, LINE * 0.8)


# ---- the face ----


def _draw_eyes(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """Two round eyes that touch, both looking the same way; lids, brows and glasses come and go."""
    radius = rng.uniform(0.2, 0.25)
    x, y = radius * rng.uniform(0.94, 1.06), -0.08
    look = rng.uniform(-0.4, 0.4, 2) * radius
    pupil = rng.uniform(0.055, 0.085)
    lids = rng.uniform(0.45, 0.75) if rng.random() < 0.25 else 1.0  # how far open the eyes are
    lashes, glasses = rng.random() < 0.25, rng.random() < 0.2
    frame = _away_from(rng, CLOTHES, head.skin)
    for direction in (-1.0, 1.0):
        centre_x = direction * x
        eye = ellipse(centre_x, y, radius, radius)
        if lashes and not glasses:
            for angle in (0.35, 0.75, 1.15):
                tip = np.array([centre_x + direction * 1.42 * radius * math.cos(angle),
                                y - 1.42 * radius * math.sin(angle)])  # fmt: skip
                canvas.line(np.array([(centre_x, y), tip]), INK, LINE)
        if glasses:
            canvas.fill(widened(eye, 0.1), INK)
            canvas.fill(widened(eye, 0.07), frame)
        canvas.outlined([eye], WHITE, INK, LINE)
        canvas.fill(ellipse(centre_x + look[0], y + look[1], pupil, pupil), INK)
        if lids < 1:
            lid = np.minimum(eye, (9.0, y + radius * (1 - 2 * lids)))
            canvas.fill(lid, mix(head.skin, INK, 0.2))
            canvas.line(_lower_edge(lid), INK, LINE)
    if glasses:
        x_rim = x + radius
        for line in both(np.array([(x_rim + 0.05, y - 0.02), (0.5 * (head.temple + head.jaw) + 0.02, y + 0.06)])):
            canvas.line(line, frame, 0.06)


def _lower_edge(shape: np.ndarray) -> np.ndarray:
    """(n, 2) -> (2, 2): from the lowest point farthest left to the one farthest right."""
    lowest = shape[shape[:, 1] == shape[:, 1].max()]
    return lowest[[lowest[:, 0].argmin(), lowest[:, 0].argmax()]]


def _draw_brows(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """Drawn before hair and hats, which may hide them."""
    x, y = 0.22, rng.uniform(-0.44, -0.38)
    mood, arch = rng.uniform(-0.08, 0.08), rng.uniform(0.02, 0.1)
    heavy = rng.uniform(0.04, 0.085)
    brow = bezier((x - 0.15, y + mood), (x, y - arch), (x + 0.17, y + 0.01 - mood))
    for line in both(brow):
        canvas.line(line, mix(head.hair, INK, 0.55), heavy)


def _draw_nose(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """Round, long, hanging or pointed to one side: always on top of the inner corners of the eyes."""
    colour = mix(head.skin, (226, 84, 40), rng.uniform(0.05, 0.3))
    width, length = rng.uniform(0.09, 0.13), rng.uniform(0.09, 0.13)
    kind = rng.integers(3)
    if kind == 0:
        shape = ellipse(0, 0.13, width, length)
    elif kind == 1:
        half = [(0.05, 0.02), (width, 0.17), (0.5 * width, 0.15 + length)]
        shape = closed_curve(symmetric(half))
    else:
        side = rng.choice([-1.0, 1.0])
        points = [(-0.07, 0.05), (0.06, 0.05), (0.12 + width, 0.15), (0.1, 0.22), (-0.07, 0.2)]
        shape = closed_curve(np.array(points) * (side, 1.0))
    canvas.outlined([shape], colour, INK, LINE * 0.9)


def _draw_beard(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """A full beard, a goatee, a moustache, or most often nothing."""
    kind = rng.choice(["none", "full", "goatee", "moustache"], p=[0.46, 0.19, 0.13, 0.22])
    jaw, chin = head.jaw, head.chin
    if kind == "full":
        cheek = 0.5 * (head.temple + jaw)
        drop = rng.uniform(0.03, 0.16)
        half = [
            (0.0, 0.27), (0.2, 0.24), (0.34, 0.3), (cheek - 0.02, 0.08), (jaw + 0.02, 0.4),
            (0.6 * jaw, chin + 0.3 * drop), (0.0, chin + drop),
        ]  # fmt: skip
        canvas.outlined([closed_curve(symmetric(half))], head.hair, INK, LINE)
    elif kind == "goatee":
        half = [(0.1, 0.5), (0.17, 0.56), (0.08, chin + 0.1)]
        canvas.outlined([closed_curve(symmetric(half))], head.hair, INK, LINE)
    elif kind == "moustache":
        droop = rng.uniform(-0.06, 0.12)
        half = [(0.03, 0.24), (0.2, 0.26), (0.32, 0.34 + droop), (0.16, 0.36), (0.03, 0.33)]
        canvas.outlined([closed_curve(symmetric(half))], head.hair, INK, LINE)


def _draw_mouth(rng: np.random.Generator, canvas: Canvas) -> None:
    """A grin with teeth, an open laugh, a smile, a frown, or a small round O."""
    kind = rng.choice(["grin", "laugh", "smile", "frown", "o"], p=[0.24, 0.22, 0.34, 0.12, 0.08])
    half, tilt = rng.uniform(0.2, 0.3), rng.uniform(-0.04, 0.04)
    left, right, y = (-half, 0.39 - tilt), (half, 0.39 + tilt), 0.4
    if kind in ("grin", "laugh"):
        low = bezier(right, (0.0, y + 0.36), left)
        shape = np.concatenate([bezier(left, (0.0, y + 0.08), right), low])
        canvas.outlined([shape], WHITE if kind == "grin" else MOUTH, INK, LINE * 0.85)
        if kind == "laugh":
            canvas.fill(ellipse(0, 0.525, 0.1, 0.045), TONGUE)
        else:
            for x in (-0.08, 0.08):
                canvas.line(np.array([(x, 0.43), (x, 0.54)]), INK, LINE * 0.5)
    elif kind == "o":
        canvas.outlined([ellipse(tilt, 0.46, 0.08, 0.09)], MOUTH, INK, LINE * 0.85)
    else:
        bend = rng.uniform(0.08, 0.26) * (1 if kind == "smile" else -0.6)
        canvas.line(bezier(left, (0.0, y + 0.06 + bend), right, samples=16), INK, LINE * 1.4)


# ---- hair and hats: some of it goes behind the head, some in front ----

Part = Callable[[np.random.Generator, Canvas, Head], None]


def _cap(head: Head, lift: float, hairline: list[tuple[float, float]]) -> np.ndarray:
    """Hair that stands lift above the skull, down to a hairline whose right half is given from outside in."""
    half = [
        (0.0, head.top - lift), (0.66 * head.temple, head.top + 0.06 - lift),
        (head.temple + 0.03 + 0.3 * lift, -0.36), (head.temple + 0.02, -0.14), *hairline,
    ]  # fmt: skip
    return closed_curve(symmetric(half))


def _draw_cap(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """Short hair with one of three hairlines: straight, pointed in the middle, parted."""
    t = head.temple
    hairlines = (
        [(t - 0.07, -0.3), (0.2, -0.42), (0.0, -0.42)],
        [(t - 0.06, -0.34), (0.22, -0.5), (0.0, -0.4)],
        [(t - 0.05, -0.28), (0.24, -0.4), (0.0, -0.54)],
    )
    shape = _cap(head, rng.uniform(0.05, 0.14), hairlines[rng.integers(3)])
    canvas.outlined([shape], head.hair, INK, LINE)


def _draw_spikes(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    count = int(rng.integers(5, 8))
    angles = np.linspace(-0.12, np.pi + 0.12, 2 * count + 1)
    height = np.where(np.arange(2 * count + 1) % 2, rng.uniform(0.26, 0.36), 0.02)
    lean = rng.uniform(-0.12, 0.12) * np.sin(angles)
    crown = np.stack(
        [(head.temple + height) * np.cos(angles) + lean, -0.3 - (-0.3 - head.top + height) * np.sin(angles)],
        axis=1,
    )
    steps = np.linspace(-head.temple + 0.05, head.temple - 0.05, 8)
    hairline = np.stack([steps, np.resize([-0.36, -0.5], 8)], axis=1)
    canvas.outlined([closed_curve(np.concatenate([crown, hairline]))], head.hair, INK, LINE)


def _draw_curls(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    radius, bulge = rng.uniform(0.15, 0.2), rng.uniform(0.0, 0.08)
    angles = np.linspace(0.05, np.pi - 0.05, 7)
    curls = [
        ellipse((head.temple + bulge) * math.cos(a), -0.3 + (head.top + 0.3 - bulge) * math.sin(a), radius, radius)
        for a in angles
    ]
    middle = [ellipse(x, head.top + 0.12, 0.16, 0.12) for x in (-0.2, 0.0, 0.2)]
    canvas.outlined(curls + middle, head.hair, INK, LINE)


def _draw_afro_behind(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    size = rng.uniform(0.7, 0.82)
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    puffs = [ellipse(size * math.cos(a), -0.18 + 0.84 * size * math.sin(a), 0.2, 0.2, samples=16) for a in angles]
    canvas.outlined([*puffs, ellipse(0, -0.18, size, size * 0.84)], head.hair, INK, LINE)


def _draw_afro(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    t = head.temple
    puffs = [ellipse(x, head.top + 0.1 + 0.5 * x * x, 0.15, 0.12) for x in np.linspace(-0.85 * t, 0.85 * t, 6)]
    for puff in puffs:
        canvas.fill(puff + np.array((0, 0.02)), mix(head.hair, INK, 0.5))
    for puff in [*puffs, ellipse(0, head.top + 0.05, t, 0.12)]:
        canvas.fill(puff, head.hair)


def _draw_mohawk(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    height = rng.uniform(0.2, 0.3)
    half = [
        (0.0, head.top - height - 0.04), (0.06, head.top - 0.7 * height), (0.15, head.top - height),
        (0.16, head.top - 0.4 * height), (0.23, head.top - 0.5 * height), (0.17, head.top + 0.06),
        (0.0, -0.44),
    ]  # fmt: skip
    canvas.outlined([closed_curve(symmetric(half))], head.hair, INK, LINE)


def _draw_bun_behind(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    radius = rng.uniform(0.18, 0.26)
    canvas.outlined([ellipse(0, head.top - 0.09, radius, 0.9 * radius)], head.hair, INK, LINE)


def _draw_pigtails_behind(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    high, long = rng.uniform(-0.4, -0.1), rng.uniform(0.2, 0.34)
    x = head.temple + 0.16
    band = CLOTHES[rng.integers(len(CLOTHES))]
    canvas.outlined(both(ellipse(x, high + long - 0.04, 0.19, long)), head.hair, INK, LINE)
    canvas.outlined(both(ellipse(head.temple + 0.06, high - 0.02, 0.09, 0.09)), band, INK, LINE)


def _draw_parted(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    t = head.temple
    hairline = [(t - 0.02, -0.12), (t - 0.1, -0.34), (0.2, -0.46), (0.0, head.top + 0.02)]
    canvas.outlined([_cap(head, rng.uniform(0.04, 0.1), hairline)], head.hair, INK, LINE)


def _draw_long_behind(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    bottom, wide = rng.uniform(0.25, 0.95), rng.uniform(0.62, 0.76)
    half = [(0.0, head.top - 0.06), (0.42, head.top), (0.62, -0.2), (wide, bottom - 0.12), (0.5, bottom)]
    canvas.outlined([closed_curve(symmetric(half))], head.hair, INK, LINE)


def _draw_fringe(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    t, y = head.temple, rng.uniform(-0.46, -0.38)
    hairline = [(t + 0.01, 0.02), (t - 0.07, 0.0), (t - 0.1, y + 0.04), (0.2, y), (0.0, y)]
    canvas.outlined([_cap(head, rng.uniform(0.05, 0.11), hairline)], head.hair, INK, LINE)


def _draw_quiff(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """A wave that rises on one side and breaks over the brow."""
    side, t, top = rng.choice([-1.0, 1.0]), head.temple, head.top
    points = np.array(
        [(-t - 0.02, -0.16), (-t - 0.03, -0.44), (-0.36, top - 0.06), (0.1, top - 0.18), (0.46, top - 0.24),
         (0.64, top - 0.08), (0.5, top + 0.12), (t + 0.03, -0.34), (t + 0.01, -0.16), (t - 0.06, -0.36),
         (0.1, top + 0.16), (-0.24, top + 0.12), (-t + 0.08, -0.36)]
    )  # fmt: skip
    canvas.outlined([closed_curve(points * (side, 1.0))], head.hair, INK, LINE)


def _draw_tufts(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    """A bald head with hair above the ears, and a shine."""
    size = rng.uniform(0.1, 0.15)
    t = head.temple
    tufts = [ellipse(t + 0.01, y, size, size) for y in (-0.24, -0.08)]
    canvas.outlined([side for tuft in tufts for side in both(tuft)], head.hair, INK, LINE)
    _draw_bald(rng, canvas, head)


def _draw_bald(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    shine = ellipse(-0.5 * head.temple, head.top + 0.16, 0.11, 0.055)
    canvas.fill(shine, mix(head.skin, WHITE, 0.6))


def _draw_baseball_cap(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    colour, side, t = _away_from(rng, CLOTHES, head.skin), rng.choice([-1.0, 1.0]), head.temple
    crown = _cap(head, 0.14, [(t, -0.38), (0.2, -0.42), (0.0, -0.43)])
    canvas.outlined([crown], colour, INK, LINE)
    peak = np.array([(-0.3, -0.46), (0.2, -0.52), (t + 0.26, -0.42), (t + 0.3, -0.34), (0.2, -0.38)])
    canvas.outlined([closed_curve(peak * (side, 1.0))], mix(colour, INK, 0.25), INK, LINE)
    canvas.fill(ellipse(side * 0.08, head.top - 0.0, 0.1, 0.09), WHITE)


def _draw_beanie(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    colour = _away_from(rng, CLOTHES, head.skin)
    second, t = _away_from(rng, CLOTHES, colour), head.temple
    if rng.random() < 0.6:
        canvas.outlined([ellipse(0, head.top - 0.22, 0.12, 0.11)], second, INK, LINE)
    crown = _cap(head, 0.16, [(t, -0.4), (0.2, -0.44), (0.0, -0.45)])
    canvas.outlined([crown], colour, INK, LINE)
    half = [
        (0.0, -0.54), (t - 0.1, -0.52), (t + 0.06, -0.44), (t + 0.05, -0.3), (t - 0.1, -0.38), (0.0, -0.41),
    ]  # fmt: skip
    canvas.outlined([closed_curve(symmetric(half))], second, INK, LINE)


def _draw_bowler(rng: np.random.Generator, canvas: Canvas, head: Head) -> None:
    colour = _away_from(rng, ((60, 56, 68), (110, 74, 56), (96, 104, 88), (226, 200, 140)), head.skin)
    t, tall = head.temple, rng.uniform(0.2, 0.32)
    half = [(0.0, head.top - tall), (0.26, head.top - tall + 0.03), (t - 0.06, head.top), (t - 0.06, -0.4)]
    canvas.outlined([closed_curve(symmetric(half))], colour, INK, LINE)
    canvas.fill(symmetric([(t - 0.08, -0.58), (t - 0.06, -0.45)]), CLOTHES[rng.integers(len(CLOTHES))])
    canvas.outlined([ellipse(0, -0.44, t + 0.2, 0.075)], colour, INK, LINE)


STYLES: tuple[tuple[Part | None, Part | None], ...] = (
    (None, _draw_cap), (None, _draw_cap), (None, _draw_spikes), (None, _draw_spikes), (None, _draw_curls),
    (_draw_afro_behind, _draw_afro), (None, _draw_mohawk), (_draw_bun_behind, _draw_parted),
    (_draw_pigtails_behind, _draw_parted), (_draw_long_behind, _draw_parted),
    (_draw_long_behind, _draw_fringe), (None, _draw_quiff), (None, _draw_tufts), (None, _draw_bald),
    (None, _draw_baseball_cap), (None, _draw_beanie), (None, _draw_bowler),
)  # fmt: skip
