"""Nearest-neighbour upsampling, and its gradient, the sum over blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, contiguous, dispatch
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.kernel_launch import launch_elements
from minigan.tensor import Op, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


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


def _upsample_cpu(x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = np.empty((n, h * scale, w * scale, c), x.dtype)
    grain = max(1, ELEMENTS_PER_THREAD // (scale * w * c)) if x.size else 1
    parallel(_upsample_loop, n * y.shape[1], np.ascontiguousarray(x), scale, y, grain=grain)
    return y


def _sum_blocks_cpu(x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = np.empty((n, h // scale, w // scale, c), x.dtype)
    grain = max(1, ELEMENTS_PER_THREAD // (scale * w * c)) if x.size else 1
    parallel(_sum_blocks_loop, n * y.shape[1], np.ascontiguousarray(x), scale, y, grain=grain)
    return y


def _upsample_cuda(device: str, x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = array_module(device).empty((n, h * scale, w * scale, c), x.dtype)
    args = [*contiguous(device, x), y, w, c, scale]
    launch_elements("upsample.cu", "upsample", y.size, args, device=device, dtype=x.dtype)
    return y


def _sum_blocks_cuda(device: str, x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = array_module(device).empty((n, h // scale, w // scale, c), x.dtype)
    args = [*contiguous(device, x), y, w // scale, c, scale]
    launch_elements("upsample.cu", "sum_blocks", y.size, args, device=device, dtype=x.dtype)
    return y


upsample = dispatch(cpu=_upsample_cpu, cuda=_upsample_cuda)
sum_blocks = dispatch(cpu=_sum_blocks_cpu, cuda=_sum_blocks_cuda)


@dataclass
class UpsampleNearest2d(Op):
    """(N, H, W, C) -> (N, H scale, W scale, C): each pixel becomes a block.   gx = gy summed over the blocks."""

    scale: int = 2

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return upsample(self.device, x, self.scale)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (SumBlocks2d(self.scale)(gy),)

    @staticmethod
    def reference(x: np.ndarray, scale: int = 2) -> np.ndarray:
        return np.kron(x, np.ones((1, scale, scale, 1)))

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape, scale in (((1, 1, 1, 1), 2), ((2, 3, 5, 7), 2), ((1, 4, 2, 19), 3), ((1, 1, 33, 1), 2)):
            yield (rng.standard_normal(shape),), {"scale": scale}


@dataclass
class SumBlocks2d(Op):
    """(N, H scale, W scale, C) -> (N, H, W, C): the sum over each block.   gx = gy upsampled."""

    scale: int = 2

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return sum_blocks(self.device, x, self.scale)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (UpsampleNearest2d(self.scale)(gy),)

    @staticmethod
    def reference(x: np.ndarray, scale: int = 2) -> np.ndarray:
        return np.sum([x[:, i::scale, j::scale] for i in range(scale) for j in range(scale)], axis=0)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape, scale in (((2, 6, 4, 7), 2), ((1, 3, 33, 1), 3), ((1, 2, 2, 19), 2)):
            yield (rng.standard_normal(shape),), {"scale": scale}


def upsample_nearest2d(x: Tensor, scale: int = 2) -> Tensor:
    """(N, H, W, C) -> (N, H scale, W scale, C): each pixel becomes a block of scale x scale."""
    if x.ndim != 4 or not isinstance(scale, int | np.integer) or scale < 1:
        raise ValueError(f"upsample_nearest2d: expected (N, H, W, C) and a scale from 1, got {x.shape} and {scale}")
    return UpsampleNearest2d(scale)(x)
