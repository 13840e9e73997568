"""Batch normalisation over all axes but the last."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, contiguous, dispatch
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.kernel_launch import C_REALS, Macros, launch
from minigan.ops.leaky_relu import leaky_relu
from minigan.ops.reduce import mean
from minigan.tensor import Fused, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]

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


def _moments_cpu(x: Array) -> tuple[Array, Array]:
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


def _statistics_cpu(x: Array, gamma: Array, epsilon: float) -> tuple[Array, ...]:
    average, variance = _moments_cpu(x)
    inverse = (variance + epsilon) ** -0.5
    return average, variance, inverse, gamma * inverse


def _affine(dtype: np.dtype, average: Array, scale: Array, beta: Array) -> tuple[Array, ...]:
    """Normalisation as scale (x - centre) + shift, of x's dtype; the shift has what the centre lost by rounding."""
    centre = average.astype(dtype)
    shift = beta - scale * (average - centre)
    return tuple(np.ascontiguousarray(a, dtype) for a in (centre, scale, shift))


def _normalize_cpu(x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0) -> Array:
    y = np.empty(x.shape, x.dtype)
    flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    arguments = *_affine(x.dtype, average, scale, beta), x.dtype.type(slope), y.reshape(flat.shape)
    parallel(_normalize_loop, len(flat), flat, *arguments, grain=_grain(flat))
    return y


def _gradients_cpu(
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


def _update_running_cpu(
    running_mean: Array | None, running_var: Array | None, average: Array, variance: Array, momentum: float, count: int
) -> None:
    for running, batch in ((running_mean, average), (running_var, variance * (count / (count - 1)))):
        if running is not None:
            running *= running.dtype.type(momentum)
            running += (batch * (1 - momentum)).astype(running.dtype)


class _Kernels:
    """The kernels of batch_norm.cu for x (..., C): blocks of 32 channels and a chunk of rows."""

    def __init__(self, device: str, x: Array) -> None:
        self.device, self.xp, self.dtype, self.channels = device, array_module(device), x.dtype, x.shape[-1]
        self.rows = x.size // max(1, self.channels)
        # At most 256 chunks where they are to be added up, by one block; the grid's limit elsewhere.
        self.chunk_rows, self.chunks = self._cut(256)
        self.short = self._cut(65_535)

    def _cut(self, limit: int) -> tuple[int, int]:
        rows = max(64, -(-self.rows // limit))
        return rows, -(-self.rows // rows)

    def empty(self, *shape: int) -> Array:
        return self.xp.empty(shape, np.float64)

    def __call__(self, kernel: str, chunks: int, *args: Any) -> None:
        if self.rows and self.channels:
            grid, macros = (-(-self.channels // 32), chunks), {"REAL": C_REALS[self.dtype]}
            launch("batch_norm.cu", kernel, grid, (32, 8), args, device=self.device, macros=macros)


def _statistics_cuda(device: str, x: Array, gamma: Array, epsilon: float) -> tuple[Array, ...]:
    run = _Kernels(device, x)
    x, gamma = contiguous(device, x, gamma)
    means, squares = run.empty(run.chunks, run.channels), run.empty(run.chunks, run.channels)
    found = tuple(run.empty(run.channels) for _ in range(4))
    run("moments", run.chunks, x, means, squares, run.rows, run.channels, run.chunk_rows)
    sizes = run.rows, run.channels, run.chunk_rows, run.chunks
    run("combine_moments", 1, means, squares, gamma, *found, float(epsilon), *sizes)
    return found


def _normalize_cuda(device: str, x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0) -> Array:
    run = _Kernels(device, x)
    y = run.xp.empty(x.shape, x.dtype)
    arrays = contiguous(device, x, average, scale, beta)
    run("normalize", run.short[1], *arrays, y, float(slope), run.rows, run.channels, run.short[0])
    return y


def _gradients_cuda(
    device: str, x: Array, gamma: Array, average: Array, inverse: Array, gy: Array, beta: Array, slope: float = 1.0
) -> tuple[Array, Array, Array]:
    run = _Kernels(device, x)
    x, gamma, average, inverse, gy, beta = contiguous(device, x, gamma, average, inverse, gy, beta)
    statistics = gamma, average, inverse
    gx, ggamma, gbeta = (run.xp.empty(a.shape, a.dtype) for a in (x, gamma, gamma))
    sums, products = run.empty(run.chunks, run.channels), run.empty(run.chunks, run.channels)
    coefficients, sizes = run.empty(3, run.channels), (run.rows, run.channels)
    args = x, gy, *statistics, None if slope == 1 else beta
    run("gradient_sums", run.chunks, *args, sums, products, float(slope), *sizes, run.chunk_rows)
    run("combine_gradients", 1, sums, products, *statistics, ggamma, gbeta, coefficients, *sizes, run.chunks)
    run("input_gradient", run.short[1], *args, coefficients, gx, float(slope), *sizes, run.short[0])
    return gx, ggamma, gbeta


def _update_running_cuda(
    device: str, running_mean: Array | None, running_var: Array | None, average: Array, variance: Array, *settings: Any
) -> None:
    momentum, count = settings
    macros: Macros = {"REAL": C_REALS[next(a.dtype for a in (running_mean, running_var) if a is not None)]}
    args = [average, variance, running_mean, running_var, float(momentum), count, average.size]
    launch("batch_norm.cu", "update_running", -(-average.size // 32), 32, args, device=device, macros=macros)


# statistics(device, x, gamma, epsilon): of each channel the mean, the biased variance, 1 / sqrt(variance + epsilon),
# and gamma times that. Whatever takes a slope has a LeakyReLU of that slope behind it: 1 is none.
statistics = dispatch(cpu=_statistics_cpu, cuda=_statistics_cuda)
normalize = dispatch(cpu=_normalize_cpu, cuda=_normalize_cuda)
batch_norm_gradients = dispatch(cpu=_gradients_cpu, cuda=_gradients_cuda)
update_running = dispatch(cpu=_update_running_cpu, cuda=_update_running_cuda)


@dataclass
class BatchNorm(Fused):
    """(..., C), gamma (C,), beta (C,) -> (..., C): y = leaky(gamma (x - mean) / sqrt(variance + epsilon) + beta).

    Mean and (biased) variance are the batch's, for each channel; forward leaves them in `average` and `variance`.
    Ioffe and Szegedy, "Batch normalization", 2015. leaky(v) = v if v > 0 else slope * v: most networks have a LeakyReLU
    behind it, and what lies between the two is then neither written nor kept.
    """

    epsilon: float = 1e-5
    slope: float = 1.0

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        self.average, self.variance, self.inverse, scale = statistics(self.device, x, gamma, self.epsilon)
        return normalize(self.device, x, self.average, scale, beta, self.slope)

    def gradients(self, gy: Array) -> tuple[Array | None, ...]:
        x, gamma, beta = (t.data for t in self.inputs)
        return batch_norm_gradients(self.device, x, gamma, self.average, self.inverse, gy, beta, self.slope)

    def composed(self, *inputs: Tensor) -> Tensor:
        x, gamma, beta = inputs
        axes = tuple(range(x.ndim - 1))
        centred = x - mean(x, axes)
        y = centred * (gamma / (mean(centred * centred, axes) + self.epsilon).sqrt()) + beta
        return y if self.slope == 1 else leaky_relu(y, self.slope)

    @staticmethod
    def reference(
        x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float = 1e-5, slope: float = 1.0
    ) -> np.ndarray:
        axes = tuple(range(x.ndim - 1))
        y = gamma * (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon) + beta
        return np.where(y > 0, y, slope * y)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape, epsilon in (((2, 1), 1e-3), ((7, 19), 1e-5), ((2, 3, 5, 3), 1e-3), ((3, 7, 33, 1), 1e-5)):
            c = shape[-1]
            yield (
                (
                    rng.standard_normal(shape) * 2 + 1,
                    rng.uniform(0.5, 2, c),
                    rng.standard_normal(c),
                ),
                {"epsilon": epsilon},
            )
        for shape in ((8, 19), (2, 3, 4, 7)):
            # Half of each channel near 1, half near -1, so that nothing is near the kink when it is normalised.
            signs = np.resize([1.0, -1.0], (int(np.prod(shape[:-1])), 1)).reshape(*shape[:-1], 1)
            c = shape[-1]
            x = signs * rng.uniform(0.8, 1.2, shape)
            yield (x, rng.uniform(0.5, 2, c), rng.uniform(-0.1, 0.1, c)), {"epsilon": 1e-3, "slope": 0.3}


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    slope: float = 1.0,
) -> Tensor:
    """(..., C) normalised for each channel over all other axes, times gamma (C,), plus beta (C,).

    training: by the batch's mean and variance; the running ones, (C,), are then updated in place, as in Keras:
    running = momentum * running + (1 - momentum) * batch, with the unbiased variance. Otherwise by the running ones.
    slope: of a LeakyReLU behind it, which costs next to nothing here; 1 is none.
    Raises ValueError in training if there is only one value for each channel, whose variance is undefined.
    """
    c = x.shape[-1:] or (0,)
    for name, t in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean), ("running_var", running_var)):
        if t is not None and t.shape != c:
            raise ValueError(f"batch_norm: expected {name} of shape {c} for an input of shape {x.shape}, got {t.shape}")
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: expected running_mean and running_var where training=False, got None")
        scale = gamma / (running_var.detach() + epsilon).sqrt()
        y = x * scale + (beta - running_mean.detach() * scale)
        return y if slope == 1 else leaky_relu(y, slope)
    count = x.size // max(1, c[0])
    if count < 2:
        raise ValueError(
            f"batch_norm: expected at least 2 values for each channel in training, got an input of {x.shape}"
        )
    op = BatchNorm(epsilon, slope)
    y = op(x, gamma, beta)
    running = [t for t in (running_mean, running_var) if t is not None]
    if running:
        arrays = (None if t is None else t.data for t in (running_mean, running_var))
        update_running(x.device, *arrays, op.average, op.variance, momentum, count)
    for t in running:
        t.mark_changed()
    return y
