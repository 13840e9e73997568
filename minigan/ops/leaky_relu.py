"""LeakyReLU and ReLU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, dispatch
from minigan.cpu import jit
from minigan.ops.elements import element_kernel, element_loop
from minigan.tensor import Op, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


@jit
def _scale_negative_loop(start, stop, condition, x, slope, y):  # type: ignore[no-untyped-def]
    for i in range(np.uintp(start), np.uintp(stop)):
        # A slope of 0 gives 0 for infinity too; a NaN stays one.
        y[i] = x[i] if condition[i] > 0 else 0 if slope == 0 and x[i] == x[i] else slope * x[i]


scale_negative = dispatch(
    cpu=element_loop(_scale_negative_loop, 1), cuda=element_kernel("leaky_relu.cu", "scale_negative", 1, half=True)
)


@dataclass
class LeakyReLU(Op):
    """y = x if x > 0 else slope * x.   gx = gy if x > 0 else slope * gy.

    Maas et al., "Rectifier nonlinearities", 2013.
    """

    slope: float = 0.2

    saved_inputs = ()
    keeps_output = True

    def forward(self, x: Array) -> Array:
        # The output has the input's signs, so it serves backward as well, and the next layer keeps it anyway.
        self.y = scale_negative(self.device, x, x, self.slope)
        return self.y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (ScaleNegative(self.slope)(Tensor(self.y, device=self.device), gy),)

    @staticmethod
    def reference(x: np.ndarray, slope: float = 0.2) -> np.ndarray:
        return np.where(x > 0, x, slope * x)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((1,), (7, 19), (2, 3, 3, 5), (257, 129)):
            yield (_away_from_zero(rng, shape),), {"slope": 0.2}
        yield (_away_from_zero(rng, (33,)),), {"slope": 0.0}


@dataclass
class ScaleNegative(Op):
    """y = x if condition > 0 else slope * x.   gx = gy if condition > 0 else slope * gy; none for the condition.

    Where both are kept in 16 bits, so is y.
    """

    slope: float

    saved_inputs = (0,)
    takes_half = (0, 1)

    def forward(self, condition: Array, x: Array) -> Array:
        return scale_negative(self.device, condition, x, self.slope)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return None, ScaleNegative(self.slope)(self.inputs[0], gy)

    @staticmethod
    def reference(condition: np.ndarray, x: np.ndarray, slope: float) -> np.ndarray:
        return np.where(condition > 0, x, slope * x)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((7, 19), (1, 33)):
            yield (_away_from_zero(rng, shape), rng.standard_normal(shape)), {"slope": 0.3}


def _away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def leaky_relu(x: Tensor, slope: float = 0.2) -> Tensor:
    """x where it is positive, slope * x elsewhere; slope must not be negative."""
    if not slope >= 0:
        raise ValueError(f"leaky_relu: expected a slope from 0, got {slope}")
    return LeakyReLU(slope)(x)


def relu(x: Tensor) -> Tensor:
    """x where it is positive, 0 elsewhere."""
    return LeakyReLU(0.0)(x)
