"""Winograd's minimal filtering: its matrices, and how a filter of any size and stride is cut for them.

Four outputs of a filter with r taps need not 4 r multiplications but 4 + r - 1 = n: outputs and filter are polynomials,
known by their values at n points, and values are multiplied one by one (Winograd, "Arithmetic complexity of
computations", 1980). Here the filters have two or three taps. Those of others are cut into groups: tap t of stride s
reads pixel s p + t, so taps e, e + s, e + 2 s together are a filter of stride 1 on every s-th pixel.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

TILE = 4  # outputs on each axis
# The finite points for groups of so many taps; infinity is another one. Fractions near 1, in pairs of both signs, keep
# the powers small, and the differences from being small (Barabasz et al., "Error analysis and improving the accuracy of
# Winograd convolution for deep neural networks", 2020).
POINTS = {2: (0, 3 / 4, -3 / 4, -3 / 2), 3: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}


@dataclass(frozen=True)
class Matrix:
    """A matrix with many zeros, as `_combine` takes it: four or six coefficients of each row, and their columns."""

    coefficients: np.ndarray
    columns: np.ndarray

    @staticmethod
    def of(dense: np.ndarray, dtype: np.dtype) -> "Matrix":
        width = 4 if max(np.count_nonzero(dense, axis=1)) <= 4 else 6
        matrix = Matrix(np.zeros((len(dense), width), dtype), np.zeros((len(dense), width), np.int64))
        for i, row in enumerate(dense):
            (at,) = np.nonzero(row)
            matrix.coefficients[i, : len(at)], matrix.columns[i, : len(at)] = row[at], at
        return matrix


@dataclass(frozen=True)
class Transform:
    """The matrices of F(4, taps), with a row or a column for each of the n points.

    input: B^T (n, n). filter: G (n, taps). gradient: A (n, 4). output: A^T (4, n). filter_gradient: G^T (taps, n).
    """

    points: int
    input: Matrix
    filter: Matrix
    gradient: Matrix
    output: Matrix
    filter_gradient: Matrix


@cache
def transform(taps: int, dtype: np.dtype) -> Transform:
    """By Lagrange's interpolation, with its denominators in G: then B^T and A are exact in float32."""
    points = POINTS[taps]
    n = len(points) + 1
    others = [[q for q in points if q != p] for p in points]
    b, g, a = np.zeros((n, n)), np.zeros((n, taps)), np.zeros((n, TILE))
    for i, p in enumerate(points):
        b[i, :-1] = np.poly(others[i])[::-1]
        g[i] = np.power(float(p), np.arange(taps)) / np.prod([p - q for q in others[i]])
        a[i] = np.power(float(p), np.arange(TILE))
    b[-1] = np.poly(points)[::-1]
    g[-1, -1] = a[-1, -1] = 1  # infinity: the leading coefficients
    return Transform(n, *(Matrix.of(matrix, dtype) for matrix in (b, g, a, a.T, g.T)))


# ---- how a layer is cut into groups of taps ------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """The groups along one axis.

    Group i reads the windows that begin `offsets[i]` after each tile's first pixel, with filter taps `taps[i]`, where
    -1 stands for none.
    """

    offsets: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]


def group_size(r: int, stride: int) -> int:
    """Two or three taps: whatever takes fewer multiplications."""
    return min(POINTS, key=lambda taps: (TILE + taps - 1) * -(-r // (stride * taps)))


def read_groups(size: int, r: int, stride: int, pad: int) -> Groups:
    """Along one axis of the input, for output pixels."""
    firsts = [first + e for first in range(0, r, stride * size) for e in range(stride)]
    taps = [[t if t < r else -1 for t in range(first, first + stride * size, stride)] for first in firsts]
    return Groups(tuple(first - pad for first in firsts), tuple(map(tuple, taps)))


def turned_groups(size: int, r: int, stride: int, pad: int) -> Groups:
    """Along one axis of the output's gradient, for input pixels.

    For stride 1 groups that add up; else one for each remainder e of the input pixels, stride i + e.

    That pixel is read by tap t of output i + k where e + pad = stride k + t.
    """
    least = [-((r - 1 - e - pad) // stride) for e in range(stride)]  # the smallest k with t < r
    if stride == 1:
        windows = [(0, least[0] + size * i) for i in range(-(-r // size))]
    else:
        last = (stride - 1 + pad) // stride
        # One window for all remainders, where it is no larger than theirs.
        windows = [(e, min(least) if last - min(least) < size else least[e]) for e in range(stride)]
    taps = [[e + pad - stride * (begin + i) for i in range(size)] for e, begin in windows]
    checked = tuple(tuple(t if 0 <= t < r else -1 for t in group) for group in taps)
    return Groups(tuple(begin for _, begin in windows), checked)
