"""The mean over all ranks of a data-parallel program, such as that of a loss over the whole batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.distributed import world
from minigan.tensor import Op, Tensor


@dataclass
class MeanOverRanks(Op):
    """y = sum over the ranks r of weight_r x_r, the same on all of them.   gx = the same of gy.

    So it is where a rank's gradient is that of the mean loss, over its own weight: those of all ranks, each with its
    weight, then add up to the gradient of the mean loss. Every rank has to call it.
    """

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return world().mean(x)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (mean_over_ranks(gy),)

    @staticmethod
    def reference(x: np.ndarray) -> np.ndarray:
        return x  # of a world of one rank

    @staticmethod
    def samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
        for shape in ((1, 7), (33, 19)):
            yield (rng.standard_normal(shape),), {}


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of x over all ranks, each with its share of the batch; without other ranks, x."""
    return x if world().comm is None else MeanOverRanks()(x)
