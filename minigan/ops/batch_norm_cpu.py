"""Batch normalisation on the CPU."""

import numpy as np

from minigan.backend import Array
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.ops.batch_norm_arrays import given_statistics, update_running

# Rows are reduced in chunks of about so many elements, which stay in a core's cache for their second reading, but of
# no more rows than this: each is a float32 sum, whose rounding grows with its length; the chunks' sums are added in
# float64. How the rows are cut depends on the shape alone, so the sums do not depend on the number of threads.
CHUNK_ELEMENTS = 32_768
CHUNK_ROWS = 64


# All groups of a batch are rows of one matrix x (groups x count, C), each with so many chunks.


@jit
def _moments_loop(start, stop, x, count, chunks, rows, means, squares):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1 of x: the mean, and the sum of squared differences from it.

    Both by differences from the chunk's first row, so that no digits are lost where the mean is large; the mean, too,
    is returned as its difference from that row.
    """
    for chunk in range(start, stop):
        first = chunk // chunks * count + chunk % chunks * rows
        last = min(first + rows, (chunk // chunks + 1) * count)
        average, square = means[chunk], squares[chunk]
        average[:] = 0
        square[:] = 0
        for i in range(first, last):
            for c in range(x.shape[1]):
                average[c] += x[i, c] - x[first, c]
        for c in range(x.shape[1]):
            average[c] /= last - first
        for i in range(first, last):
            for c in range(x.shape[1]):
                square[c] += (x[i, c] - x[first, c] - average[c]) ** 2


@jit
def _statistics_loop(x, count, chunks, rows, means, squares, gamma, epsilon, found):  # type: ignore[no-untyped-def]
    """Combines the chunks' moments, after Chan et al., 1983, into what `statistics` returns: found (4, groups, C).

    found holds zeros.
    """
    for group in range(found.shape[1]):
        average, variance, inverse, scale = found[0, group], found[1, group], found[2, group], found[3, group]
        for i in range(chunks):
            chunk, first = group * chunks + i, group * count + i * rows
            share = min(rows, count - i * rows) / count
            for c in range(x.shape[1]):
                average[c] += share * (np.float64(x[first, c]) + means[chunk, c])
        for i in range(chunks):
            chunk, first = group * chunks + i, group * count + i * rows
            share = min(rows, count - i * rows) / count
            for c in range(x.shape[1]):
                difference = np.float64(x[first, c]) + means[chunk, c] - average[c]
                variance[c] += np.float64(squares[chunk, c]) / count + share * difference * difference
        for c in range(x.shape[1]):
            inverse[c] = 1 / np.sqrt(variance[c] + epsilon)
            scale[c] = gamma[c] * inverse[c]


@jit
def _affine_loop(average, scale, beta, affine):  # type: ignore[no-untyped-def]
    """Normalisation as scale (x - centre) + shift, of x's dtype; the shift has what the centre lost by rounding.

    affine (3, groups, C): centre, scale, shift.
    """
    for group in range(len(average)):
        for c in range(average.shape[1]):
            mean, factor = average[group, c], scale[group, c]
            affine[0, group, c], affine[1, group, c] = mean, factor
            affine[2, group, c] = beta[group, c] - factor * (mean - np.float64(affine[0, group, c]))


@jit
def _normalize_loop(start, stop, x, count, affine, slope, y):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        group = i // count
        centre, scale, shift = affine[0, group], affine[1, group], affine[2, group]
        for c in range(x.shape[1]):
            value = scale[c] * (x[i, c] - centre[c]) + shift[c]
            below = slope * value
            y[i, c] = value if value > 0 else below


@jit
def _gradient_sums_loop(start, stop, x, gy, count, chunks, rows, affine, slope, sums):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1: the sums of g and of g (x - centre), where g is gy behind a LeakyReLU."""
    for chunk in range(start, stop):
        group = chunk // chunks
        first = group * count + chunk % chunks * rows
        centre, scale, shift = affine[0, group], affine[1, group], affine[2, group]
        total, product = sums[0, chunk], sums[1, chunk]
        total[:] = 0
        product[:] = 0
        for i in range(first, min(first + rows, (group + 1) * count)):
            for c in range(x.shape[1]):
                difference, below = x[i, c] - centre[c], slope * gy[i, c]
                g = gy[i, c] if scale[c] * difference + shift[c] > 0 else below
                total[c] += g
                product[c] += g * difference


@jit
def _totals_loop(sums, chunks, average, inverse, scale, affine, share, totals, coefficients):  # type: ignore[no-untyped-def]
    """totals (2, groups, C), of zeros: ggamma, gbeta of each group. coefficients (3, groups, C): see `_combine_loop`.

    gx = gamma / sigma (g - mean(g) - x^ mean(g x^)), where x^ = (x - mean) / sigma. share: 1 / count, for the means; 0
    where mean and variance are given and do not depend on x.
    """
    for group in range(len(average)):
        ggamma, gbeta = totals[0, group], totals[1, group]
        for chunk in range(group * chunks, (group + 1) * chunks):
            for c in range(len(gbeta)):
                gbeta[c] += sums[0, chunk, c]
                ggamma[c] += sums[1, chunk, c]
        for c in range(len(gbeta)):
            lost = average[group, c] - np.float64(affine[0, group, c])  # by the centre's rounding
            ggamma[c] = (ggamma[c] - lost * gbeta[c]) * inverse[group, c]
            x_scale = -scale[group, c] * inverse[group, c] * ggamma[c] * share
            coefficients[0, group, c], coefficients[1, group, c] = scale[group, c], x_scale
            coefficients[2, group, c] = -scale[group, c] * gbeta[c] * share - x_scale * lost


@jit
def _combine_loop(start, stop, x, gy, count, affine, slope, coefficients, gx):  # type: ignore[no-untyped-def]
    """gx = coefficients[0] g + coefficients[1] (x - centre) + coefficients[2], for rows start ... stop - 1."""
    for i in range(start, stop):
        group = i // count
        centre, scale, shift = affine[0, group], affine[1, group], affine[2, group]
        of_g, of_x, constant = coefficients[0, group], coefficients[1, group], coefficients[2, group]
        for c in range(x.shape[1]):
            difference, below = x[i, c] - centre[c], slope * gy[i, c]
            g = gy[i, c] if scale[c] * difference + shift[c] > 0 else below
            gx[i, c] = of_g[c] * g + of_x[c] * difference + constant[c]


def _rows(x: Array) -> Array:
    """(..., C) as a matrix (M, C), which shares its memory if it is in C order."""
    return np.ascontiguousarray(x).reshape(x.size // max(1, x.shape[-1]), x.shape[-1])


def _cut(x: Array, groups: int) -> tuple[int, int, int]:
    """Of a matrix x of all groups: rows of a group, its chunks, and rows in a chunk."""
    count, rows = len(x) // groups, min(max(1, CHUNK_ELEMENTS // x.shape[1]), CHUNK_ROWS)
    return count, -(-count // rows), rows


def _grain(x: Array, rows: int = 1) -> int:
    """How many times `rows` rows of x are worth a thread."""
    return max(1, ELEMENTS_PER_THREAD // (rows * x.shape[1]))


def statistics(
    x: Array,
    gamma: Array,
    epsilon: float,
    groups: int = 1,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.0,
) -> tuple[Array, ...]:
    x = _rows(x)
    count, chunks, rows = _cut(x, groups)
    means, squares = np.empty((2, groups * chunks, x.shape[1]), x.dtype)
    parallel(_moments_loop, len(means), x, count, chunks, rows, means, squares, grain=_grain(x, rows))
    found = np.zeros((4, groups, x.shape[1]))
    _statistics_loop(x, count, chunks, rows, means, squares, np.ascontiguousarray(gamma), float(epsilon), found)
    update_running(found[0], found[1], count, running_mean, running_var, momentum)
    return tuple(found)


def _affine(dtype: np.dtype, average: Array, scale: Array, beta: Array) -> Array:
    affine, shift = np.empty((3, *average.shape), dtype), np.array(np.broadcast_to(beta, average.shape), order="C")
    _affine_loop(np.ascontiguousarray(average), np.ascontiguousarray(scale), shift, affine)
    return affine


def normalize(x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0, _: bool = False) -> Array:
    """average, scale (groups, C); beta (C,), or (groups, C)."""
    y = np.empty(x.shape, x.dtype)
    x, affine = _rows(x), _affine(x.dtype, average, scale, beta)
    count = len(x) // len(average)
    parallel(_normalize_loop, len(x), x, count, affine, x.dtype.type(slope), _rows(y), grain=_grain(x))
    return y


def normalize_given(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float, slope: float, _: bool
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
) -> tuple[Array, ...]:
    """gx (..., C), ggamma (C,), gbeta (C,), and (2, groups, C) the latter two of each group, as float64.

    average and inverse = 1 / sqrt(variance + epsilon) are float64, (groups, C).
    """
    gx = np.empty(x.shape, x.dtype)
    x, gy = _rows(x), _rows(gy)
    count, chunks, rows = _cut(x, len(average))
    average, inverse = np.ascontiguousarray(average), np.ascontiguousarray(inverse)
    scale = gamma * inverse
    leaky = _affine(x.dtype, average, scale, beta), x.dtype.type(slope)
    sums = np.empty((2, len(average) * chunks, x.shape[1]), x.dtype)
    parallel(_gradient_sums_loop, sums.shape[1], x, gy, count, chunks, rows, *leaky, sums, grain=_grain(x, rows))
    totals, coefficients = np.zeros((2, *average.shape)), np.empty((3, *average.shape), x.dtype)
    share = 0.0 if given else 1 / max(1, count)
    _totals_loop(sums, chunks, average, inverse, scale, leaky[0], share, totals, coefficients)
    parallel(_combine_loop, len(x), x, gy, count, *leaky, coefficients, _rows(gx), grain=_grain(x))
    ggamma, gbeta = totals.sum(1).astype(x.dtype)
    return gx, ggamma, gbeta, totals
