"""Batch normalisation over all axes but the last."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, contiguous, dispatch
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.distributed import world
from minigan.kernel_launch import C_REALS, launch
from minigan.ops.mean_over_ranks import mean_over_ranks
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
def _gradient_sums_loop(start, stop, x, gy, average, rows, sums, products):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1 of (M, C): the sums of gy and of gy (x - mean)."""
    for chunk in range(start, stop):
        total, product = sums[chunk], products[chunk]
        total[:] = 0
        product[:] = 0
        for i in range(chunk * rows, min((chunk + 1) * rows, len(x))):
            for c in range(x.shape[1]):
                total[c] += gy[i, c]
                product[c] += gy[i, c] * (x[i, c] - average[c])


@jit
def _normalize_loop(start, stop, x, average, scale, beta, y):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for c in range(x.shape[1]):
            y[i, c] = scale[c] * (x[i, c] - average[c]) + beta[c]


@jit
def _combine_loop(start, stop, gy, gy_scale, x, average, x_scale, shift, gx):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for c in range(x.shape[1]):
            gx[i, c] = gy_scale[c] * gy[i, c] + x_scale[c] * (x[i, c] - average[c]) + shift[c]


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


def _normalize_cpu(x: Array, average: Array, scale: Array, beta: Array) -> Array:
    y = np.empty(x.shape, x.dtype)
    flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    centre = average.astype(x.dtype)
    beta = beta - scale * (average - centre)  # what the mean lost by rounding
    centre, scale, beta = (np.ascontiguousarray(a, x.dtype) for a in (centre, scale, beta))
    parallel(_normalize_loop, len(flat), flat, centre, scale, beta, y.reshape(flat.shape), grain=_grain(flat))
    return y


def _gradients_cpu(x: Array, gamma: Array, average: Array, inverse: Array, gy: Array) -> tuple[Array, Array, Array]:
    """gx (..., C), ggamma (C,), gbeta (C,); average and inverse = 1 / sqrt(variance + epsilon) are float64."""
    gx = np.empty(x.shape, x.dtype)
    flat_x, flat_gy = (np.ascontiguousarray(a).reshape(-1, a.shape[-1]) for a in (x, gy))
    rows, count = _chunks(flat_x)
    centre = average.astype(x.dtype)
    sums, products = np.empty((2, count, x.shape[-1]), x.dtype)
    parallel(_gradient_sums_loop, count, flat_x, flat_gy, centre, rows, sums, products, grain=_grain(flat_x, rows))
    gbeta = sums.sum(0, dtype=np.float64)
    ggamma = (products.sum(0, dtype=np.float64) - (average - centre) * gbeta) * inverse
    # gx = gamma / sigma (gy - mean(gy) - x^ mean(gy x^)), where x^ = (x - mean) / sigma
    gy_scale = gamma * inverse
    x_scale = -gy_scale * inverse * ggamma / len(flat_x)
    shift = -gy_scale * gbeta / len(flat_x) - x_scale * (average - centre)
    gy_scale, x_scale, shift = (a.astype(x.dtype) for a in (gy_scale, x_scale, shift))
    arguments = flat_gy, gy_scale, flat_x, centre, x_scale, shift, gx.reshape(flat_x.shape)
    parallel(_combine_loop, len(flat_x), *arguments, grain=_grain(flat_x))
    return gx, ggamma.astype(x.dtype), gbeta.astype(x.dtype)


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


def _moments_cuda(device: str, x: Array) -> tuple[Array, Array]:
    run = _Kernels(device, x)
    (x,) = contiguous(device, x)
    means, squares = run.empty(run.chunks, run.channels), run.empty(run.chunks, run.channels)
    average, variance = run.empty(run.channels), run.empty(run.channels)
    run("moments", run.chunks, x, means, squares, run.rows, run.channels, run.chunk_rows)
    sizes = run.rows, run.channels, run.chunk_rows, run.chunks
    run("combine_moments", 1, means, squares, average, variance, *sizes)
    return average, variance


def _normalize_cuda(device: str, x: Array, average: Array, scale: Array, beta: Array, negative: float = 1.0) -> Array:
    """With `negative`, a LeakyReLU of that slope behind it."""
    run = _Kernels(device, x)
    y = run.xp.empty(x.shape, x.dtype)
    arrays = contiguous(device, x, average, scale, beta)
    run("normalize", run.short[1], *arrays, y, float(negative), run.rows, run.channels, run.short[0])
    return y


def _gradients_cuda(
    device: str,
    x: Array,
    gamma: Array,
    average: Array,
    inverse: Array,
    gy: Array,
    beta: Array | None = None,
    negative: float = 1.0,
) -> tuple[Array, Array, Array]:
    """With `beta` and `negative`, gy is the gradient behind a LeakyReLU of that slope."""
    run = _Kernels(device, x)
    x, gamma, average, inverse, gy = contiguous(device, x, gamma, average, inverse, gy)
    statistics = gamma, average, inverse
    gx, ggamma, gbeta = (run.xp.empty(a.shape, a.dtype) for a in (x, gamma, gamma))
    sums, products = run.empty(run.chunks, run.channels), run.empty(run.chunks, run.channels)
    coefficients, sizes = run.empty(3, run.channels), (run.rows, run.channels)
    args = x, gy, *statistics, beta
    run("gradient_sums", run.chunks, *args, sums, products, float(negative), *sizes, run.chunk_rows)
    run("combine_gradients", 1, sums, products, *statistics, ggamma, gbeta, coefficients, *sizes, run.chunks)
    run("input_gradient", run.short[1], *args, coefficients, gx, float(negative), *sizes, run.short[0])
    return gx, ggamma, gbeta


moments = dispatch(cpu=_moments_cpu, cuda=_moments_cuda)
normalize = dispatch(cpu=_normalize_cpu, cuda=_normalize_cuda)
batch_norm_gradients = dispatch(cpu=_gradients_cpu, cuda=_gradients_cuda)


@dataclass
class BatchNorm(Fused):
    """(..., C), gamma (C,), beta (C,) -> (..., C): y = gamma (x - mean) / sqrt(variance + epsilon) + beta.

    Mean and (biased) variance are the batch's, for each channel; forward leaves them in `average` and `variance`.
    synchronised: those of the batch as all ranks together have it.
    Ioffe and Szegedy, "Batch normalization", 2015.
    """

    epsilon: float = 1e-5
    synchronised: bool = False

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        self.average, self.variance = moments(self.device, x)
        if self.synchronised:
            # In double: of its 16 digits, the difference of squares loses twice as many as the mean is larger than the
            # deviation, and where that is more than 4, float32 has not kept them in x either.
            xp = array_module(self.device)
            both = world().mean(xp.stack([self.average, self.variance + self.average**2]))
            self.average, self.variance = both[0], (both[1] - both[0] ** 2).clip(0)
        self.inverse = (self.variance + self.epsilon) ** -0.5
        return normalize(self.device, x, self.average, gamma * self.inverse, beta)

    def gradients(self, gy: Array) -> tuple[Array | None, ...]:
        x, gamma, _ = self.inputs
        found = batch_norm_gradients(self.device, x.data, gamma.data, self.average, self.inverse, gy)
        return self._synchronised(x.data, gamma.data, *found) if self.synchronised else found

    def _synchronised(self, x: Array, gamma: Array, gx: Array, ggamma: Array, gbeta: Array) -> tuple[Array, ...]:
        """gx = gamma / sigma (gy - gbeta / M - x^ ggamma / M), where ggamma and gbeta are means over the ranks."""
        here = array_module(self.device).stack([ggamma, gbeta]).astype(np.float64)
        excess = (here - world().mean(here)) * (gamma * self.inverse * x.shape[-1] / x.size)
        slope, shift = excess[0] * self.inverse, excess[1].astype(x.dtype)
        return gx + normalize(self.device, x, self.average, slope, shift), ggamma, gbeta

    def composed(self, *inputs: Tensor) -> Tensor:
        x, gamma, beta = inputs
        axes = tuple(range(x.ndim - 1))

        def average(values: Tensor) -> Tensor:
            return mean_over_ranks(mean(values, axes)) if self.synchronised else mean(values, axes)

        centred = x - average(x)
        return centred * (gamma / (average(centred * centred) + self.epsilon).sqrt()) + beta

    @staticmethod
    def reference(
        x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float = 1e-5, synchronised: bool = False
    ) -> np.ndarray:
        axes = tuple(range(x.ndim - 1))
        return gamma * (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon) + beta

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
                {"epsilon": epsilon, "synchronised": shape == (7, 19)},
            )


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    synchronised: bool = False,
) -> Tensor:
    """(..., C) normalised for each channel over all other axes, times gamma (C,), plus beta (C,).

    training: by the batch's mean and variance; the running ones, (C,), are then updated in place, as in Keras:
    running = momentum * running + (1 - momentum) * batch, with the unbiased variance. Otherwise by the running ones.
    synchronised: the batch is that of all ranks of a data-parallel program together.
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
        return x * scale + (beta - running_mean.detach() * scale)
    count = round(x.size // max(1, c[0]) / (world().weight if synchronised else 1))
    if count < 2:
        raise ValueError(
            f"batch_norm: expected at least 2 values for each channel in training, got an input of {x.shape}"
        )
    op = BatchNorm(epsilon, synchronised)
    y = op(x, gamma, beta)
    for running, batch in ((running_mean, op.average), (running_var, op.variance * (count / (count - 1)))):
        if running is not None:
            running.data *= running.dtype.type(momentum)
            running.data += (batch * (1 - momentum)).astype(running.dtype)
    return y
