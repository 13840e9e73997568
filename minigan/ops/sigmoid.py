"""tanh and the logistic sigmoid."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module
from minigan.tensor import Op, Tensor


def _samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
    for shape in ((1,), (7, 19), (2, 3, 3, 33)):
        yield (rng.uniform(-3, 3, shape),), {}


def logistic(xp: Any, x: Array) -> Array:
    """1 / (1 + e^-x), by e^-|x| alone, which does not overflow, and without differences of nearly equal numbers."""
    e = xp.exp(-xp.abs(x))
    return xp.asarray(xp.where(x >= 0, 1, e) / (1 + e), dtype=x.dtype)


@dataclass
class Tanh(Op):
    """y = tanh x.   gx = gy (1 - y^2)."""

    saved_inputs = ()
    keeps_output = True

    def forward(self, x: Array) -> Array:
        self.y = array_module(self.device).tanh(x)
        return self.y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        y = self.output(self.y)
        return (gy * (1.0 - y * y),)

    reference = staticmethod(np.tanh)
    samples = staticmethod(_samples)


@dataclass
class Sigmoid(Op):
    """y = 1 / (1 + e^-x).   gx = gy y (1 - y)."""

    saved_inputs = ()
    keeps_output = True

    def forward(self, x: Array) -> Array:
        self.y = logistic(array_module(self.device), x)
        return self.y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        y = self.output(self.y)
        return (gy * (y * (1.0 - y)),)

    @staticmethod
    def reference(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    samples = staticmethod(_samples)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return Tanh()(x)


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function 1 / (1 + e^-x)."""
    return Sigmoid()(x)
