"""Nearest-neighbour upsampling on the CPU: loops over rows, and for its gradient too."""

import numpy as np

from minigan.backend import Array
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel


@jit
def _sum_blocks_loop(start, stop, x, scale, y):  # type: ignore[no-untyped-def]
    """Rows start ... stop - 1 of all images of y."""
    _, height, width, channels = y.shape
    for row in range(start, stop):
        n, i = row // height, row % height
        for j in range(width):
            y[n, i, j] = 0
            for a in range(scale):
                for b in range(scale):
                    for c in range(channels):
                        y[n, i, j, c] += x[n, i * scale + a, j * scale + b, c]


@jit
def _upsample_loop(start, stop, x, scale, y):  # type: ignore[no-untyped-def]
    """Rows start ... stop - 1 of all images of y."""
    _, height, width, channels = y.shape
    for row in range(start, stop):
        n, i = row // height, row % height
        for j in range(width):
            for c in range(channels):
                y[n, i, j, c] = x[n, i // scale, j // scale, c]


def upsample(x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = np.empty((n, h * scale, w * scale, c), x.dtype)
    grain = max(1, ELEMENTS_PER_THREAD // (scale * w * c)) if x.size else 1
    parallel(_upsample_loop, n * y.shape[1], np.ascontiguousarray(x), scale, y, grain=grain)
    return y


def sum_blocks(x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = np.empty((n, h // scale, w // scale, c), x.dtype)
    grain = max(1, ELEMENTS_PER_THREAD // (scale * w * c)) if x.size else 1
    parallel(_sum_blocks_loop, n * y.shape[1], np.ascontiguousarray(x), scale, y, grain=grain)
    return y
