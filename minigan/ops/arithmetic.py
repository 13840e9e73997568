"""+ - * / ** and negation, with NumPy's broadcasting."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.ops.reduce import sum_to
from minigan.tensor import Op, Operand, Tensor, as_tensor, tensor_method

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


def _pairs(rng: np.random.Generator, low: float = -2.0, high: float = 2.0) -> Samples:
    """Two inputs whose shapes broadcast in every way."""
    for a, b in (((7,), (7,)), ((1, 19), (7, 1)), ((3, 5, 7), (5, 1)), ((), (2, 3)), ((33, 1), ()), ((0, 3), (3,))):
        yield (np.asarray(rng.uniform(low, high, a)), np.asarray(rng.uniform(0.5, 2.0, b))), {}


@dataclass
class Add(Op):
    """y = a + b, broadcast.   ga = gb = gy, summed over the broadcast axes."""

    saved_inputs = ()

    def forward(self, a: Array, b: Array) -> Array:
        return a + b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        return sum_to(gy, a.shape) if self.needed[0] else None, sum_to(gy, b.shape) if self.needed[1] else None

    reference = staticmethod(np.add)
    samples = staticmethod(_pairs)


@dataclass
class Subtract(Op):
    """y = a - b, broadcast.   ga = gy, gb = -gy, summed over the broadcast axes."""

    saved_inputs = ()

    def forward(self, a: Array, b: Array) -> Array:
        return a - b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        return sum_to(gy, a.shape) if self.needed[0] else None, -sum_to(gy, b.shape) if self.needed[1] else None

    reference = staticmethod(np.subtract)
    samples = staticmethod(_pairs)


@dataclass
class Multiply(Op):
    """y = a * b, broadcast.   ga = gy * b, gb = gy * a, summed over the broadcast axes."""

    def forward(self, a: Array, b: Array) -> Array:
        return a * b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        return (
            sum_to(gy * b, a.shape) if self.needed[0] else None,
            sum_to(gy * a, b.shape) if self.needed[1] else None,
        )

    reference = staticmethod(np.multiply)
    samples = staticmethod(_pairs)


@dataclass
class Divide(Op):
    """y = a / b, broadcast.   ga = gy / b, gb = -gy * a / b^2, summed over the broadcast axes."""

    def forward(self, a: Array, b: Array) -> Array:
        return a / b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        return (
            sum_to(gy / b, a.shape) if self.needed[0] else None,
            sum_to(-gy * (a / b) / b, b.shape) if self.needed[1] else None,
        )

    reference = staticmethod(np.divide)
    samples = staticmethod(_pairs)


@dataclass
class Power(Op):
    """y = a ** b, broadcast.   ga = gy * b * a^(b-1), gb = gy * y * log a, so a gradient for b needs a > 0."""

    def forward(self, a: Array, b: Array) -> Array:
        return a**b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        # Where b is 0 so is the gradient: the exponent stays 0 there, since 0 * 0^-1 would be NaN.
        below = Tensor((b.data != 0).astype(b.dtype), device=self.device)
        return (
            sum_to(gy * b * a ** (b - below), a.shape) if self.needed[0] else None,
            sum_to(gy * a**b * a.log(), b.shape) if self.needed[1] else None,
        )

    reference = staticmethod(np.power)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        return _pairs(rng, 0.5, 2.0)


@dataclass
class Negate(Op):
    """y = -x.   gx = -gy."""

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return -x

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (-gy,)

    reference = staticmethod(np.negative)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield (rng.standard_normal((7, 19)),), {}
        yield (rng.standard_normal((33, 1)),), {}
        yield (np.array(1.5),), {}


def _binary(op: type[Op], a: Operand, b: Operand) -> Tensor:
    # One of the two is a tensor: that is how an operator gets here.
    if isinstance(a, Tensor):
        return op()(a, as_tensor(b, a))
    if isinstance(b, Tensor):
        return op()(as_tensor(a, b), b)
    raise TypeError(f"{op.__name__}: expected at least one tensor, got {type(a).__name__} and {type(b).__name__}")


@tensor_method("__add__", "__radd__")
def add(a: Operand, b: Operand) -> Tensor:
    """a + b, broadcast as in NumPy."""
    return _binary(Add, a, b)


@tensor_method("__sub__")
def subtract(a: Operand, b: Operand) -> Tensor:
    """a - b, broadcast as in NumPy."""
    return _binary(Subtract, a, b)


@tensor_method("__mul__", "__rmul__")
def multiply(a: Operand, b: Operand) -> Tensor:
    """a * b, broadcast as in NumPy."""
    return _binary(Multiply, a, b)


@tensor_method("__truediv__")
def divide(a: Operand, b: Operand) -> Tensor:
    """a / b, broadcast as in NumPy."""
    return _binary(Divide, a, b)


@tensor_method("__pow__")
def power(a: Operand, b: Operand) -> Tensor:
    """a ** b, broadcast as in NumPy; differentiable in b where a > 0."""
    return _binary(Power, a, b)


@tensor_method("__neg__")
def negate(x: Tensor) -> Tensor:
    """-x."""
    return Negate()(x)


@tensor_method("__rsub__")
def _reflected_subtract(b: Tensor, a: Operand) -> Tensor:
    return _binary(Subtract, a, b)


@tensor_method("__rtruediv__")
def _reflected_divide(b: Tensor, a: Operand) -> Tensor:
    return _binary(Divide, a, b)


@tensor_method("__rpow__")
def _reflected_power(b: Tensor, a: Operand) -> Tensor:
    return _binary(Power, a, b)
