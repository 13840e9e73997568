"""Operations that move elements without computing: reshape, transpose, index, pad, concatenate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module
from minigan.tensor import Op, Tensor, tensor_method

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]
PadWidth = Sequence[tuple[int, int]]


@dataclass
class Reshape(Op):
    """y = x's elements in C order in another shape.   gx = gy in x's shape."""

    shape: tuple[int, ...]

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return x.reshape(self.shape)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy.reshape(self.inputs[0].shape),)

    reference = staticmethod(np.reshape)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield (rng.standard_normal((3, 4, 7)),), {"shape": (4, 21)}
        yield (rng.standard_normal((33, 19)),), {"shape": (19, 33)}
        yield (rng.standard_normal((6, 7)),), {"shape": (2, -1, 7)}
        yield (rng.standard_normal((1, 1)),), {"shape": ()}


@dataclass
class Transpose(Op):
    """y = x with its axes in the order `axes`.   gx = gy with the axes back in theirs."""

    axes: tuple[int, ...]

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return x.transpose(self.axes)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy.transpose(tuple(int(i) for i in np.argsort([a % gy.ndim for a in self.axes]))),)

    reference = staticmethod(np.transpose)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield (rng.standard_normal((3, 4, 7)),), {"axes": (2, 0, 1)}
        yield (rng.standard_normal((19, 1, 33)),), {"axes": (2, 1, 0)}
        yield (rng.standard_normal((3, 7)),), {"axes": (-1, 0)}


@dataclass
class GetItem(Op):
    """y = x[index], basic or advanced indexing.   gx = zeros with gy added at index."""

    index: Any

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return x[self.index]

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (AddAt(self.index, self.inputs[0].shape)(gy),)

    @staticmethod
    def reference(x: np.ndarray, index: Any) -> np.ndarray:
        return x[index]

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        x = rng.standard_normal((5, 7, 3))
        for index in (
            2,
            (slice(1, 4), slice(None, None, -2)),
            (..., 1),
            (None, 0),
            [0, 2, 2],
            (slice(None), [3, 3], 1),
        ):
            yield (x,), {"index": index}
        yield (x,), {"index": x > 0}
        yield (rng.standard_normal((33, 19, 1)),), {"index": (slice(1, None, 2), [18, 0, 18])}


@dataclass
class AddAt(Op):
    """y = zeros of `shape` with x added at index, more than once where the index repeats.   gx = gy[index]."""

    index: Any
    shape: tuple[int, ...]

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        xp = array_module(self.device)
        y = xp.zeros(self.shape, x.dtype)
        if _is_basic(self.index):
            y[self.index] = x
        else:
            xp.add.at(y, self.index, x)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (GetItem(self.index)(gy),)

    @staticmethod
    def reference(x: np.ndarray, index: Any, shape: tuple[int, ...]) -> np.ndarray:
        y = np.zeros(shape, x.dtype)
        np.add.at(y, index, x)
        return y

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield (rng.standard_normal((3, 7)),), {"index": [0, 2, 2], "shape": (5, 7)}
        yield (rng.standard_normal((1, 33)),), {"index": (slice(2, 3), slice(0, 33)), "shape": (3, 40)}
        yield (rng.standard_normal((3, 19)),), {"index": ([1, 1, 0],), "shape": (2, 19)}
        yield (rng.standard_normal((2, 4)),), {"index": (slice(1, 3), slice(None, None, 2)), "shape": (5, 7)}


@dataclass
class Pad(Op):
    """y = x with `widths` = ((before, after), ...) more elements of `value` at each axis.

    gx = the inner part of gy.
    """

    widths: PadWidth
    value: float = 0.0

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return array_module(self.device).pad(x, self.widths, constant_values=self.value)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0]
        return (gy[tuple(slice(before, before + n) for (before, _), n in zip(self.widths, x.shape, strict=True))],)

    @staticmethod
    def reference(x: np.ndarray, widths: PadWidth, value: float = 0.0) -> np.ndarray:
        return np.pad(x, widths, constant_values=value)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield (rng.standard_normal((3, 7)),), {"widths": ((1, 2), (0, 3))}
        yield (rng.standard_normal((5,)),), {"widths": ((0, 1),), "value": 0.5}
        yield (rng.standard_normal((33, 19, 1)),), {"widths": ((1, 0), (0, 0), (2, 2))}


@dataclass
class Concatenate(Op):
    """y = the inputs one after the other along `axis`.   Each input's gradient is its part of gy."""

    axis: int = 0

    saved_inputs = ()

    def forward(self, *xs: Array) -> Array:
        return array_module(self.device).concatenate(xs, self.axis)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        axis = self.axis % gy.ndim
        edges = [0, *np.cumsum([x.shape[axis] for x in self.inputs]).tolist()]
        before = (slice(None),) * axis
        return tuple(
            gy[(*before, slice(edges[i], edges[i + 1]))] if needed else None for i, needed in enumerate(self.needed)
        )

    @staticmethod
    def reference(*xs: np.ndarray, axis: int = 0) -> np.ndarray:
        return np.concatenate(xs, axis)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield tuple(rng.standard_normal((n, 7)) for n in (1, 3, 2)), {"axis": 0}
        yield tuple(rng.standard_normal((3, n, 2)) for n in (33, 19)), {"axis": -2}


def _is_basic(index: Any) -> bool:
    """Whether an index takes each element at most once by NumPy's rules: integers, slices, None and Ellipsis."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, (int, np.integer, slice)) for p in parts)


@tensor_method("reshape")
def reshape(x: Tensor, *shape: Any) -> Tensor:
    """x's elements in C order in another shape, one length of which may be -1."""
    flat = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return Reshape(tuple(flat))(x)


@tensor_method("transpose")
def transpose(x: Tensor, *axes: Any) -> Tensor:
    """x with its axes in another order: that of `axes`, or reversed if none are given."""
    flat = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    return Transpose(tuple(flat) or tuple(reversed(range(x.ndim))))(x)


@tensor_method("__getitem__")
def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index], as in NumPy; an element that is taken twice gets the sum of both gradients."""
    return GetItem(index.data if isinstance(index, Tensor) else index)(x)


def pad(x: Tensor, widths: PadWidth, value: float = 0.0) -> Tensor:
    """x with `widths[i] = (before, after)` more elements of `value` at axis i."""
    found = [w if isinstance(w, Sequence) else () for w in widths] if isinstance(widths, Sequence) else [()]
    if len(found) != x.ndim or any(len(w) != 2 or min(w) < 0 for w in found):
        raise ValueError(f"pad: expected {x.ndim} pairs (before, after) of counts from 0, one an axis, got {widths}")
    return Pad(widths, value)(x)


def concatenate(xs: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors one after the other along `axis`; their other lengths must agree."""
    if not xs:
        raise ValueError("concatenate: expected at least one tensor, got none")
    return Concatenate(axis)(*xs)
