"""exp, log, sqrt, abs and clip: functions of one element for which an array module is all that is needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module
from minigan.tensor import Op, Tensor, tensor_method

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


def _positive(rng: np.random.Generator) -> Samples:
    for shape in ((7, 19), (33, 1)):
        yield (rng.uniform(0.5, 2.0, shape),), {}
    yield (np.array(0.7),), {}


@dataclass
class Exp(Op):
    """y = e^x.   gx = gy * y."""

    saved_inputs = ()
    keeps_output = True

    def forward(self, x: Array) -> Array:
        self.y = array_module(self.device).exp(x)
        return self.y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy * self.output(self.y),)

    reference = staticmethod(np.exp)
    samples = staticmethod(_positive)


@dataclass
class Log(Op):
    """y = log x, the natural logarithm.   gx = gy / x."""

    def forward(self, x: Array) -> Array:
        return array_module(self.device).log(x)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy / self.inputs[0],)

    reference = staticmethod(np.log)
    samples = staticmethod(_positive)


@dataclass
class Sqrt(Op):
    """y = sqrt x.   gx = gy / (2 y)."""

    saved_inputs = ()
    keeps_output = True

    def forward(self, x: Array) -> Array:
        self.y = array_module(self.device).sqrt(x)
        return self.y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy * 0.5 / self.output(self.y),)

    reference = staticmethod(np.sqrt)
    samples = staticmethod(_positive)


@dataclass
class Abs(Op):
    """y = |x|.   gx = gy * sign x, with sign 0 = 0."""

    def forward(self, x: Array) -> Array:
        return array_module(self.device).abs(x)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0].data
        return (gy * Tensor(array_module(self.device).sign(x), device=self.device),)

    reference = staticmethod(np.abs)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((7, 19), (33, 1)):
            yield (rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape),), {}
        yield (np.array(-0.7),), {}


@dataclass
class Clip(Op):
    """y = min(max(x, low), high).   gx = gy where low <= x <= high, else 0."""

    low: float
    high: float

    def forward(self, x: Array) -> Array:
        return array_module(self.device).clip(x, self.low, self.high)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0].data
        inside = ((x >= self.low) & (x <= self.high)).astype(x.dtype)
        return (gy * Tensor(inside, device=self.device),)

    @staticmethod
    def reference(x: np.ndarray, low: float, high: float) -> np.ndarray:
        return np.where(x < low, low, np.where(x > high, high, x))

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((7, 19), (33, 1)):
            # below, between and above, away from the two kinks
            yield (rng.choice([-1.5, 0.0, 1.5], shape) + rng.uniform(-0.4, 0.4, shape),), {"low": -1.0, "high": 1.0}
        yield (np.array(0.7),), {"low": -1.0, "high": 0.5}


@tensor_method("exp")
def exp(x: Tensor) -> Tensor:
    """e^x."""
    return Exp()(x)


@tensor_method("log")
def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return Log()(x)


@tensor_method("sqrt")
def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return Sqrt()(x)


@tensor_method("abs", "__abs__")
def abs(x: Tensor) -> Tensor:
    """The absolute value; its gradient at 0 is 0."""
    return Abs()(x)


@tensor_method("clip")
def clip(x: Tensor, low: float, high: float) -> Tensor:
    """x within [low, high]: what lies outside becomes the nearer bound, and gets no gradient."""
    if not low <= high:
        raise ValueError(f"clip: expected low <= high, got {low} and {high}")
    return Clip(low, high)(x)
