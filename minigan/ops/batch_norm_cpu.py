"""Batch normalisation on the CPU."""

from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.ops.batch_norm_arrays import given_statistics, update_running

# Rows are reduced in chunks of about so many elements, which stay in a core's cache for their second reading, but of
# no more rows than this: each is a float32 sum, whose rounding grows with its length; the chunks' sums are added in
# float64. How the rows are cut depends on the shape alone, so the sums do not depend on the number of threads.
CHUNK_ELEMENTS = 32_768
CHUNK_ROWS = 64


@jit
def _moments_loop(start, stop, x, rows, means, squares):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1 of x (groups, M, C): the mean, and the sum of squared differences from it.

    Both by differences from the chunk's first row, so that no digits are lost where the mean is large; the mean, too,
    is returned as its difference from that row. means and squares: (groups, chunks of a group, C).
    """
    for i in range(start, stop):
        group, chunk = i // means.shape[1], i % means.shape[1]
        part, average, square = x[group], means[group, chunk], squares[group, chunk]
        first, last = chunk * rows, min((chunk + 1) * rows, len(part))
        average[:] = 0
        square[:] = 0
        for row in range(first, last):
            for c in range(x.shape[2]):
                average[c] += part[row, c] - part[first, c]
        for c in range(x.shape[2]):
            average[c] /= last - first
        for row in range(first, last):
            for c in range(x.shape[2]):
                square[c] += (part[row, c] - part[first, c] - average[c]) ** 2


@jit
def _statistics_loop(x, rows, means, squares, gamma, epsilon, found):  # type: ignore[no-untyped-def]
    """Combines the chunks' moments, after Chan et al., 1983, into what `statistics` returns: found (4, groups, C)."""
    _, count, channels = x.shape
    for group in range(len(x)):
        average, variance, inverse, scale = found[0, group], found[1, group], found[2, group], found[3, group]
        average[:] = 0
        variance[:] = 0
        for chunk in range(means.shape[1]):
            first = chunk * rows
            size = min(rows, count - first)
            for c in range(channels):
                average[c] += size * (np.float64(x[group, first, c]) + means[group, chunk, c])
        for c in range(channels):
            average[c] /= count
        for chunk in range(means.shape[1]):
            first = chunk * rows
            size = min(rows, count - first)
            for c in range(channels):
                difference = np.float64(x[group, first, c]) + means[group, chunk, c] - average[c]
                variance[c] += squares[group, chunk, c] + size * difference**2
        for c in range(channels):
            variance[c] /= count
            inverse[c] = 1 / np.sqrt(variance[c] + epsilon)
            scale[c] = gamma[c] * inverse[c]


@jit
def _affine(average, scale, beta, affine):  # type: ignore[no-untyped-def]
    """Normalisation as scale (x - centre) + shift, of x's dtype; the shift has what the centre lost by rounding.

    affine (3, C): centre, scale, shift.
    """
    centre, factor, shift = affine[0], affine[1], affine[2]
    for c in range(len(average)):
        centre[c], factor[c] = average[c], scale[c]
        shift[c] = beta[c] - scale[c] * (average[c] - np.float64(centre[c]))


@jit
def _normalize_loop(start, stop, x, average, scale, beta, slope, y):  # type: ignore[no-untyped-def]
    """For rows start ... stop - 1 of all groups of x (groups, M, C)."""
    _, count, channels = x.shape
    affine = np.empty((3, channels), x.dtype)
    centre, factor, shift = affine[0], affine[1], affine[2]
    for group in range(len(x)):
        first, last = max(start - group * count, 0), min(stop - group * count, count)
        if first < last:
            _affine(average[group], scale[group], beta[group], affine)
        for i in range(first, last):
            for c in range(channels):
                value = factor[c] * (x[group, i, c] - centre[c]) + shift[c]
                below = slope * value
                y[group, i, c] = value if value > 0 else below


@jit
def _gradient_sums_loop(start, stop, x, gy, average, scale, beta, slope, rows, sums):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1 of all groups: the sums of g and of g (x - mean), g = gy behind a LeakyReLU.

    sums: (2, groups, chunks of a group, C).
    """
    _, count, channels = x.shape
    chunks = sums.shape[2]
    affine = np.empty((3, channels), x.dtype)
    centre, factor, shift = affine[0], affine[1], affine[2]
    for group in range(len(x)):
        first, last = max(start - group * chunks, 0), min(stop - group * chunks, chunks)
        if first < last:
            _affine(average[group], scale[group], beta[group], affine)
        for chunk in range(first, last):
            total, product = sums[0, group, chunk], sums[1, group, chunk]
            total[:] = 0
            product[:] = 0
            for i in range(chunk * rows, min((chunk + 1) * rows, count)):
                for c in range(channels):
                    difference = x[group, i, c] - centre[c]
                    below = slope * gy[group, i, c]
                    g = gy[group, i, c] if factor[c] * difference + shift[c] > 0 else below
                    total[c] += g
                    product[c] += g * difference


@jit
def _totals_loop(sums, average, scale, inverse, share, totals, coefficients):  # type: ignore[no-untyped-def]
    """totals (2, groups, C): ggamma and gbeta of each group; coefficients (3, groups, C): see `_combine_loop`.

    gx = gamma / sigma (g - mean(g) - x^ mean(g x^)), where x^ = (x - mean) / sigma. share: 1 / M, for the means; 0
    where mean and variance are given and do not depend on x.
    """
    _, groups, chunks, channels = sums.shape
    for group in range(groups):
        ggamma, gbeta = totals[0, group], totals[1, group]
        ggamma[:] = 0
        gbeta[:] = 0
        for chunk in range(chunks):
            for c in range(channels):
                gbeta[c] += sums[0, group, chunk, c]
                ggamma[c] += sums[1, group, chunk, c]
        for c in range(channels):
            # Sums are about the centre, the mean as it is after rounding to x's dtype.
            rest = average[group, c] - np.float64(sums.dtype.type(average[group, c]))
            ggamma[c] = (ggamma[c] - rest * gbeta[c]) * inverse[group, c]
            x_scale = -scale[group, c] * inverse[group, c] * ggamma[c] * share
            coefficients[0, group, c], coefficients[1, group, c] = scale[group, c], x_scale
            coefficients[2, group, c] = -scale[group, c] * gbeta[c] * share - x_scale * rest


@jit
def _combine_loop(start, stop, gy, x, average, scale, beta, slope, coefficients, gx):  # type: ignore[no-untyped-def]
    """gx = coefficients[0] g + coefficients[1] (x - centre) + coefficients[2], for rows start ... stop - 1."""
    _, count, channels = x.shape
    affine = np.empty((3, channels), x.dtype)
    centre, factor, shift = affine[0], affine[1], affine[2]
    for group in range(len(x)):
        first, last = max(start - group * count, 0), min(stop - group * count, count)
        if first < last:
            _affine(average[group], scale[group], beta[group], affine)
        of_g, of_x, constant = coefficients[0, group], coefficients[1, group], coefficients[2, group]
        for i in range(first, last):
            for c in range(channels):
                difference = x[group, i, c] - centre[c]
                below = slope * gy[group, i, c]
                g = gy[group, i, c] if factor[c] * difference + shift[c] > 0 else below
                gx[group, i, c] = of_g[c] * g + of_x[c] * difference + constant[c]


def _groups(x: Array, count: int) -> Array:
    """(count x N, ..., C) as (count, M, C), which shares its memory if it is in C order."""
    return np.ascontiguousarray(x).reshape(count, x.size // max(1, count * x.shape[-1]), x.shape[-1])


def _chunks(x: Array) -> tuple[int, int]:
    """Of a group of x (groups, M, C): the rows in a chunk, and the number of chunks."""
    rows = min(max(1, CHUNK_ELEMENTS // x.shape[2]), CHUNK_ROWS)
    return rows, -(-x.shape[1] // rows)


def _grain(x: Array, rows: int = 1) -> int:
    """How many times `rows` rows of x are worth a thread."""
    return max(1, ELEMENTS_PER_THREAD // (rows * x.shape[2]))


def statistics(
    x: Array,
    gamma: Array,
    epsilon: float,
    groups: int = 1,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.0,
) -> tuple[Array, ...]:
    parts = _groups(x, groups)
    rows, count = _chunks(parts)
    means, squares = np.empty((2, groups, count, x.shape[-1]), x.dtype)
    parallel(_moments_loop, groups * count, parts, rows, means, squares, grain=_grain(parts, rows))
    found = np.empty((4, groups, x.shape[-1]))
    _statistics_loop(parts, rows, means, squares, np.ascontiguousarray(gamma), float(epsilon), found)
    update_running(found[0], found[1], parts.shape[1], running_mean, running_var, momentum)
    return tuple(found)


def normalize(x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0) -> Array:
    """average, scale (groups, C); beta (C,), or (groups, C)."""
    y = np.empty(x.shape, x.dtype)
    part, out = (_groups(a, len(average)) for a in (x, y))
    shift = np.ascontiguousarray(np.broadcast_to(beta, average.shape))
    arguments = part, *map(np.ascontiguousarray, (average, scale)), shift, x.dtype.type(slope), out
    parallel(_normalize_loop, part.shape[0] * part.shape[1], *arguments, grain=_grain(part))
    return y


def normalize_given(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float, slope: float
) -> Array:
    average, inverse = given_statistics(mean, variance, epsilon)
    return normalize(x, average, gamma * inverse, beta, slope)


def gradients(
    x: Array,
    gamma: Array,
    average: Array,
    inverse: Array,
    gy: Array,
    beta: Array,
    slope: float = 1.0,
    given: bool = False,
    _: Any = None,
) -> tuple[Array, ...]:
    """gx (..., C), ggamma (C,), gbeta (C,), and (2, groups, C) the latter two of each group, as float64.

    average and inverse = 1 / sqrt(variance + epsilon) are float64, (groups, C).
    """
    gx, groups = np.empty(x.shape, x.dtype), len(average)
    part, part_gy, out = (_groups(a, groups) for a in (x, gy, gx))
    rows, count = _chunks(part)
    average, inverse = (np.ascontiguousarray(a) for a in (average, inverse))
    scale = gamma * inverse
    leaky = average, scale, np.ascontiguousarray(np.broadcast_to(beta, average.shape)), x.dtype.type(slope)
    sums = np.empty((2, groups, count, x.shape[-1]), x.dtype)
    parallel(_gradient_sums_loop, groups * count, part, part_gy, *leaky, rows, sums, grain=_grain(part, rows))
    totals, coefficients = np.empty((2, *average.shape)), np.empty((3, *average.shape), x.dtype)
    share = 0.0 if given else 1 / max(1, part.shape[1])
    _totals_loop(sums, average, scale, inverse, share, totals, coefficients)
    parallel(
        _combine_loop, groups * part.shape[1], part_gy, part, *leaky, coefficients, out, grain=_grain(part)
    )  # fmt: skip
    ggamma, gbeta = totals.sum(1).astype(x.dtype)
    return gx, ggamma, gbeta, totals
