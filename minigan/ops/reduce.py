"""Sums, means, and their opposite, broadcasting: each is the other's gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.tensor import Op, Tensor, tensor_method

Axis = int | tuple[int, ...] | None


# So many rows are added up as they are, in float32 perhaps; these sums are then added in float64.
ROWS = 64


@jit
def _sum_rows_loop(start, stop, x, sums):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1 of x (M, C): the sums over their rows, added to `sums`."""
    for chunk in range(start, stop):
        total = sums[chunk]
        for i in range(chunk * ROWS, min((chunk + 1) * ROWS, len(x))):
            for c in range(x.shape[1]):
                total[c] += x[i, c]


def _sum_rows(x: Array) -> Array:
    """(M, C) -> (C,): what a bias gets as its gradient, and the commonest sum by far."""
    sums = np.zeros((-(-len(x) // ROWS), x.shape[1]), x.dtype)
    grain = max(1, ELEMENTS_PER_THREAD // (ROWS * x.shape[1]))
    parallel(_sum_rows_loop, len(sums), np.ascontiguousarray(x), sums, grain=grain)
    return sums.sum(0, dtype=np.float64).astype(x.dtype)


@dataclass
class Sum(Op):
    """y = the sum of x over `axis` (an int, a tuple, or None for all axes).   gx = gy, broadcast to x's shape."""

    axis: Axis = None
    keepdims: bool = False

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        all_but_last = isinstance(self.axis, tuple) and self.axis == tuple(range(x.ndim - 1))
        if isinstance(x, np.ndarray) and x.ndim > 1 and x.size and all_but_last:
            y = _sum_rows(x.reshape(-1, x.shape[-1]))
            return y.reshape(_kept(x.shape, self.axis)) if self.keepdims else y
        # NumPy adds up leading axes one by one, which in float32 loses digits; CuPy adds in a tree.
        wide = np.float64 if isinstance(x, np.ndarray) else x.dtype
        return x.sum(axis=self.axis, keepdims=self.keepdims, dtype=wide).astype(x.dtype, copy=False)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = self.inputs
        return (broadcast_to(gy.reshape(_kept(x.shape, self.axis)), x.shape),)

    @staticmethod
    def reference(x: np.ndarray, axis: Axis = None, keepdims: bool = False) -> np.ndarray:
        return np.sum(x, axis=axis, keepdims=keepdims)

    @staticmethod
    def samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
        x = rng.standard_normal((3, 7, 5))
        for axis in (None, 0, -1, (0, 2), (1,), (0, 1, 2)):
            yield (x,), {"axis": axis, "keepdims": False}
            yield (x,), {"axis": axis, "keepdims": True}
        yield (np.array(1.5),), {}
        yield (rng.standard_normal((33, 1, 19)),), {"axis": (0, 1)}


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


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape with the reduced axes as ones."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    reduced = {a % len(shape) for a in axes}
    return tuple(1 if i in reduced else n for i, n in enumerate(shape))


@tensor_method("sum")
def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis`: an int, a tuple of ints, or None for all."""
    return Sum(axis, keepdims)(x)


@tensor_method("mean")
def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis`: an int, a tuple of ints, or None for all."""
    total = sum(x, axis, keepdims)
    if not x.size:
        raise ValueError(f"mean: expected at least one element, got shape {x.shape}")
    return total / (x.size / total.size)


def broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x repeated along new and length-1 axes, as `numpy.broadcast_to`."""
    return x if x.shape == shape else BroadcastTo(shape)(x)


def sum_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x summed over the axes along which `shape` would be broadcast to x's shape: the gradient of broadcasting."""
    if x.shape == shape:
        return x
    new = x.ndim - len(shape)
    axes = tuple(range(new)) + tuple(new + i for i, n in enumerate(shape) if n == 1 and x.shape[new + i] != 1)
    return sum(x, axes).reshape(shape)
