"""Drawn toy pictures, so that every example trains without a download. Drawings, not photographs."""

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from minigan.data.toys import anime, cartoons, cats, faces, photo

SMALLEST_SIDE = 8  # a face in fewer pixels is a smudge


def draw(kind: str, count: int, size: tuple[int, int] | int, seed: int) -> np.ndarray:
    """Draw count toy pictures of one kind: uint8, (count, height, width, 3).

    size is (height, width), or one number for a square. Picture i depends on the seed and on i alone, so a
    longer set begins with the shorter one, and the same picture can be had at every size.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {sorted(KINDS)}, got {kind!r}")
    if not _is_whole(count) or count < 0:
        raise ValueError(f"count: expected a whole number from 0, got {count!r}")
    if not _is_whole(seed) or seed < 0:
        raise ValueError(f"seed: expected a whole number from 0, got {seed!r}")
    height, width = _checked_size(size)
    return KINDS[kind](count, height, width, seed)


def _one_by_one(
    draw_one: Callable[[np.random.Generator, int, int], Image.Image],
    count: int,
    height: int,
    width: int,
    seed: int,
) -> np.ndarray:
    """(count, height, width, 3): each picture drawn with random numbers of its own."""
    pictures = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
        pictures[index] = np.asarray(draw_one(rng, height, width))
    return pictures


KINDS: dict[str, Callable[[int, int, int, int], np.ndarray]] = {  # of count, height, width, seed
    "anime": partial(_one_by_one, anime.draw_one),
    "cartoons": partial(_one_by_one, cartoons.draw_one),
    "cats": partial(_one_by_one, cats.draw_one),
    "faces": partial(_one_by_one, faces.draw_one),
    "photo": photo.draw_set,
}


def _checked_size(size: object) -> tuple[int, int]:
    pair = size if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(_is_whole(side) for side in pair):
        raise ValueError(f"size: expected a whole number or (height, width), got {size!r}")
    height, width = int(pair[0]), int(pair[1])
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(f"size: expected at least {SMALLEST_SIDE} pixels a side, got {size!r}")
    return height, width


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
