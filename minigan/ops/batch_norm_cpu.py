"""Batch normalisation on the CPU."""

from collections.abc import Iterator

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
    """For chunks start ... stop - 1 of x (M, C): the mean, and the sum of squared differences from it.

    Both by differences from the chunk's first row, so that no digits are lost where the mean is large; the mean, too,
    is returned as its difference from that row.
    """
    for chunk in range(start, stop):
        first, last = chunk * rows, min((chunk + 1) * rows, len(x))
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
def _gradient_sums_loop(start, stop, x, gy, average, scale, shift, slope, rows, sums, products):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1 of (M, C): the sums of g and of g (x - mean), g = gy behind a LeakyReLU."""
    for chunk in range(start, stop):
        total, product = sums[chunk], products[chunk]
        total[:] = 0
        product[:] = 0
        for i in range(chunk * rows, min((chunk + 1) * rows, len(x))):
            for c in range(x.shape[1]):
                below = slope * gy[i, c]
                g = gy[i, c] if scale[c] * (x[i, c] - average[c]) + shift[c] > 0 else below
                total[c] += g
                product[c] += g * (x[i, c] - average[c])


@jit
def _normalize_loop(start, stop, x, average, scale, shift, slope, y):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for c in range(x.shape[1]):
            value = scale[c] * (x[i, c] - average[c]) + shift[c]
            below = slope * value
            y[i, c] = value if value > 0 else below


@jit
def _combine_loop(start, stop, gy, x, average, scale, shift, slope, gx_scale, x_scale, gx_shift, gx):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for c in range(x.shape[1]):
            below = slope * gy[i, c]
            g = gy[i, c] if scale[c] * (x[i, c] - average[c]) + shift[c] > 0 else below
            gx[i, c] = gx_scale[c] * g + x_scale[c] * (x[i, c] - average[c]) + gx_shift[c]


def _chunks(x: Array) -> tuple[int, int]:
    """Rows in a chunk, and the number of chunks."""
    rows = min(max(1, CHUNK_ELEMENTS // x.shape[1]), CHUNK_ROWS)
    return rows, -(-len(x) // rows)


def _grain(x: Array, rows: int = 1) -> int:
    """How many times `rows` rows of x are worth a thread."""
    return max(1, ELEMENTS_PER_THREAD // (rows * x.shape[1]))


def _moments(x: Array) -> tuple[Array, Array]:
    """(..., C) -> mean (C,) and biased variance (C,), as float64; by chunks, combined after Chan et al., 1983."""
    x = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    rows, count = _chunks(x)
    means, squares = np.empty((2, count, x.shape[1]), x.dtype)
    parallel(_moments_loop, count, x, rows, means, squares, grain=_grain(x, rows))
    means = means + x[::rows].astype(np.float64)
    sizes = np.full((count, 1), rows, np.float64)
    sizes[-1] = len(x) - (count - 1) * rows
    average = (sizes * means).sum(0) / len(x)
    variance = (squares + sizes * (means - average) ** 2).sum(0) / len(x)
    return average, variance


def _groups(x: Array, count: int) -> Iterator[Array]:
    """(count x N, ..., C) as so many parts (M, C), which share its memory if it is in C order."""
    return iter(np.ascontiguousarray(x).reshape(count, x.size // max(1, count * x.shape[-1]), x.shape[-1]))


def statistics(
    x: Array,
    gamma: Array,
    epsilon: float,
    groups: int = 1,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.0,
) -> tuple[Array, ...]:
    average, variance = (np.stack(found) for found in zip(*map(_moments, _groups(x, groups)), strict=True))
    update_running(average, variance, x.size // average.size, running_mean, running_var, momentum)
    inverse = (variance + epsilon) ** -0.5
    return average, variance, inverse, gamma * inverse


def _affine(dtype: np.dtype, average: Array, scale: Array, beta: Array) -> tuple[Array, ...]:
    """Normalisation as scale (x - centre) + shift, of x's dtype; the shift has what the centre lost by rounding."""
    centre = average.astype(dtype)
    shift = beta - scale * (average - centre)
    return tuple(np.ascontiguousarray(a, dtype) for a in (centre, scale, shift))


def normalize(x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0, _: bool = False) -> Array:
    """average, scale (groups, C); beta (C,), or (groups, C)."""
    y = np.empty(x.shape, x.dtype)
    parts, outs = (_groups(a, len(average)) for a in (x, y))
    affine = zip(average, scale, np.broadcast_to(beta, average.shape), strict=True)
    for part, out, one in zip(parts, outs, affine, strict=True):
        parallel(
            _normalize_loop, len(part), part, *_affine(x.dtype, *one), x.dtype.type(slope), out, grain=_grain(part)
        )
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
    gx, groups = np.empty(x.shape, x.dtype), len(average)
    totals = np.empty((2, *average.shape))
    for i, (part, part_gy, out) in enumerate(zip(*(_groups(a, groups) for a in (x, gy, gx)), strict=True)):
        totals[:, i] = _gradients(part, gamma, average[i], inverse[i], part_gy, beta, slope, given, out)
    ggamma, gbeta = totals.sum(1).astype(x.dtype)
    return gx, ggamma, gbeta, totals


def _gradients(
    x: Array,
    gamma: Array,
    average: Array,
    inverse: Array,
    gy: Array,
    beta: Array,
    slope: float,
    given: bool,
    gx: Array,
) -> tuple[Array, Array]:
    """Of one group, (M, C): puts gx into its place, returns ggamma and gbeta as float64."""
    rows, count = _chunks(x)
    leaky = *_affine(x.dtype, average, gamma * inverse, beta), x.dtype.type(slope)
    centre = leaky[0]
    sums, products = np.empty((2, count, x.shape[-1]), x.dtype)
    parallel(_gradient_sums_loop, count, x, gy, *leaky, rows, sums, products, grain=_grain(x, rows))
    gbeta = sums.sum(0, dtype=np.float64)
    ggamma = (products.sum(0, dtype=np.float64) - (average - centre) * gbeta) * inverse
    # gx = gamma / sigma (g - mean(g) - x^ mean(g x^)), where x^ = (x - mean) / sigma; the means are 0 where mean and
    # variance are given and do not depend on x
    gx_scale = gamma * inverse
    share = 0.0 if given else 1 / len(x)
    x_scale = -gx_scale * inverse * ggamma * share
    gx_shift = -gx_scale * gbeta * share - x_scale * (average - centre)
    coefficients = (a.astype(x.dtype) for a in (gx_scale, x_scale, gx_shift))
    parallel(_combine_loop, len(x), gy, x, *leaky, *coefficients, gx, grain=_grain(x))
    return ggamma, gbeta
