"""Batch normalisation on the CPU."""

import numpy as np

from minigan.backend import Array
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel

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


def statistics(x: Array, gamma: Array, epsilon: float) -> tuple[Array, ...]:
    average, variance = _moments(x)
    inverse = (variance + epsilon) ** -0.5
    return average, variance, inverse, gamma * inverse


def _affine(dtype: np.dtype, average: Array, scale: Array, beta: Array) -> tuple[Array, ...]:
    """Normalisation as scale (x - centre) + shift, of x's dtype; the shift has what the centre lost by rounding."""
    centre = average.astype(dtype)
    shift = beta - scale * (average - centre)
    return tuple(np.ascontiguousarray(a, dtype) for a in (centre, scale, shift))


def normalize(x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0) -> Array:
    y = np.empty(x.shape, x.dtype)
    flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    arguments = *_affine(x.dtype, average, scale, beta), x.dtype.type(slope), y.reshape(flat.shape)
    parallel(_normalize_loop, len(flat), flat, *arguments, grain=_grain(flat))
    return y


def gradients(
    x: Array, gamma: Array, average: Array, inverse: Array, gy: Array, beta: Array, slope: float = 1.0
) -> tuple[Array, Array, Array]:
    """gx (..., C), ggamma (C,), gbeta (C,); average and inverse = 1 / sqrt(variance + epsilon) are float64."""
    gx = np.empty(x.shape, x.dtype)
    flat_x, flat_gy = (np.ascontiguousarray(a).reshape(-1, a.shape[-1]) for a in (x, gy))
    rows, count = _chunks(flat_x)
    leaky = *_affine(x.dtype, average, gamma * inverse, beta), x.dtype.type(slope)
    centre = leaky[0]
    sums, products = np.empty((2, count, x.shape[-1]), x.dtype)
    parallel(_gradient_sums_loop, count, flat_x, flat_gy, *leaky, rows, sums, products, grain=_grain(flat_x, rows))
    gbeta = sums.sum(0, dtype=np.float64)
    ggamma = (products.sum(0, dtype=np.float64) - (average - centre) * gbeta) * inverse
    # gx = gamma / sigma (g - mean(g) - x^ mean(g x^)), where x^ = (x - mean) / sigma
    gx_scale = gamma * inverse
    x_scale = -gx_scale * inverse * ggamma / len(flat_x)
    gx_shift = -gx_scale * gbeta / len(flat_x) - x_scale * (average - centre)
    coefficients = (a.astype(x.dtype) for a in (gx_scale, x_scale, gx_shift))
    arguments = flat_gy, flat_x, *leaky, *coefficients, gx.reshape(flat_x.shape)
    parallel(_combine_loop, len(flat_x), *arguments, grain=_grain(flat_x))
    return gx, ggamma.astype(x.dtype), gbeta.astype(x.dtype)


def update_running(
    running_mean: Array | None, running_var: Array | None, average: Array, variance: Array, momentum: float, count: int
) -> None:
    for running, batch in ((running_mean, average), (running_var, variance * (count / (count - 1)))):
        if running is not None:
            running *= running.dtype.type(momentum)
            running += (batch * (1 - momentum)).astype(running.dtype)
