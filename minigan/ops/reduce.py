"""Sums, means, and their opposite, broadcasting: each is the other's gradient."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module
from minigan.half import widened
from minigan.ops.column_sums import column_sums
from minigan.tensor import Op, Tensor, tensor_method

Axis = int | tuple[int, ...] | None


@dataclass
class Sum(Op):
    """y = the sum of x over `axis` (an int, a tuple, or None for all axes), divided by `over`.

    gx = gy / over, broadcast to x's shape.
    """

    axis: Axis = None
    keepdims: bool = False
    over: float = 1.0

    saved_inputs = ()
    takes_half = (0,)

    def forward(self, x: Array) -> Array:
        axes, kept = _axes(x.ndim, self.axis), _kept(x.shape, self.axis)
        shape = kept if self.keepdims else tuple(n for i, n in enumerate(x.shape) if i not in axes)
        if x.size and axes == tuple(range(len(axes))):
            y = column_sums(self.device, x.reshape(-1, math.prod(kept)), self.over)
            return y if y.shape == shape else y.reshape(shape)
        x = widened(self.device, x)
        # NumPy adds up axes one by one, which in float32 loses digits; CuPy adds in a tree.
        wide = np.float64 if isinstance(x, np.ndarray) else x.dtype
        y = x.sum(axis=axes, keepdims=self.keepdims, dtype=wide)
        return (y if self.over == 1 else y / self.over).astype(x.dtype, copy=False)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = self.inputs
        gx = gy if self.over == 1 else gy / self.over
        return (broadcast_to(gx.reshape(_kept(x.shape, self.axis)), x.shape),)

    @staticmethod
    def reference(x: np.ndarray, axis: Axis = None, keepdims: bool = False, over: float = 1.0) -> np.ndarray:
        return np.sum(x, axis=axis, keepdims=keepdims) / over

    @staticmethod
    def samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
        x = rng.standard_normal((3, 7, 5))
        for axis in (None, 0, -1, (0, 2), (1,), (0, 1, 2)):
            yield (x,), {"axis": axis, "keepdims": False}
            yield (x,), {"axis": axis, "keepdims": True}
        yield (np.array(1.5),), {}
        yield (rng.standard_normal((33, 1, 19)),), {"axis": (0, 1), "over": 33.0}
        yield (x,), {"axis": 1, "over": 7.0}


@dataclass
class BroadcastTo(Op):
    """y = x repeated along new and length-1 axes up to `shape`.   gx = gy summed over those axes."""

    shape: tuple[int, ...]

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return array_module(self.device).broadcast_to(x, self.shape)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (sum_to(gy, self.inputs[0].shape),)

    reference = staticmethod(np.broadcast_to)

    @staticmethod
    def samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
        for small, large in (
            ((7,), (3, 7)),
            ((3, 1), (3, 5)),
            ((1, 5, 1), (2, 4, 5, 3)),
            ((), (2, 2)),
            ((33, 19), (2, 33, 19)),
        ):
            yield (np.asarray(rng.standard_normal(small)),), {"shape": large}


def _axes(ndim: int, axis: Axis) -> tuple[int, ...]:
    """The reduced axes, in order, each counted from the first."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    for a in axes:
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(a, ndim)
    return tuple(sorted({a % ndim for a in axes}))


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape with the reduced axes as ones."""
    axes = _axes(len(shape), axis)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


@tensor_method("sum")
def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis`: an int, a tuple of ints, or None for all."""
    return Sum(axis, keepdims)(x)


@tensor_method("mean")
def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`: an int, a tuple of ints, or None for all."""
    if not x.size:
        raise ValueError(f"mean: expected at least one element, got shape {x.shape}")
    return Sum(axis, keepdims, x.size / math.prod(_kept(x.shape, axis)))(x)


def broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x repeated along new and length-1 axes, as `numpy.broadcast_to`."""
    return x if x.shape == shape else BroadcastTo(shape)(x)


def sum_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x summed over the axes along which `shape` would be broadcast to x's shape: the gradient of broadcasting."""
    if x.shape == shape:
        return x
    new = x.ndim - len(shape)
    axes = tuple(range(new)) + tuple(new + i for i, n in enumerate(shape) if n == 1 and x.shape[new + i] != 1)
    y = sum(x, axes)
    return y if y.shape == shape else y.reshape(shape)
