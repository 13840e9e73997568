"""Nearest-neighbour upsampling, and its gradient, the sum over blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, dispatch
from minigan.ops import upsample_nearest2d_cpu, upsample_nearest2d_cuda
from minigan.tensor import Op, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


upsample = dispatch(cpu=upsample_nearest2d_cpu.upsample, cuda=upsample_nearest2d_cuda.upsample)
sum_blocks = dispatch(cpu=upsample_nearest2d_cpu.sum_blocks, cuda=upsample_nearest2d_cuda.sum_blocks)


@dataclass
class UpsampleNearest2d(Op):
    """(N, H, W, C) -> (N, H scale, W scale, C): each pixel becomes a block.   gx = gy summed over the blocks."""

    scale: int = 2

    saved_inputs = ()
    takes_half = (0,)

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
    takes_half = (0,)

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
