"""Max-pooling on the CPU: loops over rows, and over images for its gradient."""

import numpy as np

from minigan.backend import Array
from minigan.cpu import jit, parallel
from minigan.ops.geometry import Pair

Windows = tuple[Pair, Pair, Pair]  # kernel, stride, padding


def output_shape(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, ...]:
    n, h, w, c = x.shape
    return n, *((i + 2 * p - k) // s + 1 for i, k, s, p in zip((h, w), kernel, stride, padding, strict=True)), c


@jit
def _max_pool_loop(start, stop, x, kh, kw, sh, sw, ph, pw, y, index):  # type: ignore[no-untyped-def]
    """For rows start ... stop - 1 of all images' outputs: the maxima so far, tap by tap, for all channels at once."""
    _, h, w, channels = x.shape
    _, p, q, _ = y.shape
    for row in range(start, stop):
        n, i = row // p, row % p
        for j in range(q):
            best, where = y[n, i, j], index[n, i, j]
            first = True
            for a in range(max(i * sh - ph, 0), min(i * sh - ph + kh, h)):
                for b in range(max(j * sw - pw, 0), min(j * sw - pw + kw, w)):
                    values, position = x[n, a, b], np.int32(a * w + b)
                    for c in range(channels):
                        # The first of equals wins; a NaN wins over everything.
                        better = first or values[c] > best[c] or values[c] != values[c]
                        best[c] = values[c] if better else best[c]
                        where[c] = position if better else where[c]
                    first = False


def max_pool(x: Array, windows: Windows) -> tuple[Array, Array]:
    y = np.empty(output_shape(x, *windows), x.dtype)
    index = np.empty(y.shape, np.int32)
    parallel(_max_pool_loop, y.shape[0] * y.shape[1], x, *(i for pair in windows for i in pair), y, index)
    return y, index


@jit
def _put_loop(start, stop, gy, index, gx):  # type: ignore[no-untyped-def]
    """gx (N, H W, C) += gy (N, P Q, C) at the positions `index` of its images; an image is one thread's alone."""
    for n in range(start, stop):
        gx[n] = 0
        for i in range(gy.shape[1]):
            for c in range(gy.shape[2]):
                gx[n, index[n, i, c], c] += gy[n, i, c]


def _pixels(x: Array) -> Array:
    """(N, H, W, C) -> (N, H W, C)."""
    return np.ascontiguousarray(x).reshape(len(x), -1, x.shape[-1])


def scatter(gy: Array, index: Array, size: Pair, windows: Windows) -> Array:
    gx = np.empty((len(gy), *size, gy.shape[-1]), gy.dtype)
    parallel(_put_loop, len(gy), _pixels(gy), _pixels(index), _pixels(gx))
    return gx


def gather(x: Array, index: Array, windows: Windows) -> Array:
    return np.take_along_axis(_pixels(x), _pixels(index), 1).reshape(index.shape)
