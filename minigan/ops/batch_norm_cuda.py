"""Batch normalisation on CUDA devices: the host's side of batch_norm.cu."""

from typing import Any

import numpy as np

from minigan.backend import Array, array_module, contiguous
from minigan.kernel_launch import C_REALS, Macros, launch


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


def statistics(device: str, x: Array, gamma: Array, epsilon: float) -> tuple[Array, ...]:
    run = _Kernels(device, x)
    x, gamma = contiguous(device, x, gamma)
    means, squares = run.empty(run.chunks, run.channels), run.empty(run.chunks, run.channels)
    found = tuple(run.empty(run.channels) for _ in range(4))
    run("moments", run.chunks, x, means, squares, run.rows, run.channels, run.chunk_rows)
    sizes = run.rows, run.channels, run.chunk_rows, run.chunks
    run("combine_moments", 1, means, squares, gamma, *found, float(epsilon), *sizes)
    return found


def normalize(device: str, x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0) -> Array:
    run = _Kernels(device, x)
    y = run.xp.empty(x.shape, x.dtype)
    arrays = contiguous(device, x, average, scale, beta)
    run("normalize", run.short[1], *arrays, y, float(slope), run.rows, run.channels, run.short[0])
    return y


def gradients(
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


def update_running(
    device: str, running_mean: Array | None, running_var: Array | None, average: Array, variance: Array, *settings: Any
) -> None:
    momentum, count = settings
    macros: Macros = {"REAL": C_REALS[next(a.dtype for a in (running_mean, running_var) if a is not None)]}
    args = [average, variance, running_mean, running_var, float(momentum), count, average.size]
    launch("batch_norm.cu", "update_running", -(-average.size // 32), 32, args, device=device, macros=macros)
