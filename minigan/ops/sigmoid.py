"""tanh and the logistic sigmoid."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, dispatch
from minigan.cpu import jit
from minigan.ops.elements import element_kernel, element_loop
from minigan.tensor import Op, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


def _samples(rng: np.random.Generator) -> Samples:
    for shape in ((1,), (7, 19), (2, 3, 3, 33)):
        yield (rng.uniform(-3, 3, shape),), {}


def logistic(x: Array) -> Array:
    """1 / (1 + e^-x), by e^-|x| alone, which does not overflow, and without differences of nearly equal numbers."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e), dtype=x.dtype)


@jit
def _tanh_grad_loop(start, stop, y, gy, gx):  # type: ignore[no-untyped-def]
    for i in range(np.uintp(start), np.uintp(stop)):
        gx[i] = gy[i] * (1 - y[i] * y[i])


sigmoid_forward = dispatch(cpu=logistic, cuda=element_kernel("elementwise.cu", "sigmoid"))
tanh_grad = dispatch(cpu=element_loop(_tanh_grad_loop), cuda=element_kernel("elementwise.cu", "tanh_gradient"))


@dataclass
class Tanh(Op):
    """y = tanh x.   gx = gy (1 - y^2)."""

    saved_inputs = ()
    keeps_output = True

    def forward(self, x: Array) -> Array:
        self.y = array_module(self.device).tanh(x)
        return self.y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (TanhGrad()(self.output(self.y), gy),)

    reference = staticmethod(np.tanh)
    samples = staticmethod(_samples)


@dataclass
class TanhGrad(Op):
    """gx = gy (1 - y^2).   For a cotangent u of gx: gy gets the same of u, and y gets -2 u gy y."""

    def forward(self, y: Array, gy: Array) -> Array:
        return tanh_grad(self.device, y, gy)

    def backward(self, u: Tensor) -> tuple[Tensor | None, ...]:
        y, gy = self.inputs
        return u * gy * y * -2.0 if self.needed[0] else None, TanhGrad()(y, u) if self.needed[1] else None

    @staticmethod
    def reference(y: np.ndarray, gy: np.ndarray) -> np.ndarray:
        return gy * (1 - y**2)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((7, 19), (1, 33)):
            yield (rng.uniform(-1, 1, shape), rng.standard_normal(shape)), {}


@dataclass
class Sigmoid(Op):
    """y = 1 / (1 + e^-x).   gx = gy y (1 - y)."""

    saved_inputs = ()
    keeps_output = True

    def forward(self, x: Array) -> Array:
        self.y = sigmoid_forward(self.device, x)
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
