"""Max-pooling. Its gradient puts values back to where the maxima were; that one's gradient takes them from there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, dispatch
from minigan.cpu import jit, parallel
from minigan.ops.geometry import Pair, pair
from minigan.tensor import Op, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


@jit
def _max_pool_loop(start, stop, x, kh, kw, sh, sw, ph, pw, y, index):  # type: ignore[no-untyped-def]
    _, h, w, channels = x.shape
    _, p, q, _ = y.shape
    for row in range(start, stop):
        n, i = row // p, row % p
        for j in range(q):
            for c in range(channels):
                best, where = -np.inf, -1
                for a in range(max(i * sh - ph, 0), min(i * sh - ph + kh, h)):
                    for b in range(max(j * sw - pw, 0), min(j * sw - pw + kw, w)):
                        value = x[n, a, b, c]
                        # The first of equals wins; a NaN wins over everything.
                        if where < 0 or value > best or value != value:
                            best, where = value, a * w + b
                y[n, i, j, c] = best
                index[n, i, j, c] = where


def _max_pool_cpu(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    n, h, w, c = x.shape
    p, q = ((size + 2 * pad - k) // s + 1 for size, k, s, pad in zip((h, w), kernel, stride, padding, strict=True))
    y = np.empty((n, p, q, c), x.dtype)
    index = np.empty(y.shape, np.int32)
    parallel(_max_pool_loop, n * p, x, *kernel, *stride, *padding, y, index)
    return y, index


max_pool_forward = dispatch(cpu=_max_pool_cpu)


def _flat(index: Array, height: int, width: int) -> Array:
    """Positions h * W + w within an image and channel, as positions in the flattened (N, H, W, C) array."""
    n, _, _, c = index.shape
    image = np.arange(n).reshape(-1, 1, 1, 1) * (height * width)
    return ((index + image) * c + np.arange(c)).reshape(-1)


def _scatter_cpu(gy: Array, index: Array, height: int, width: int) -> Array:
    n, _, _, c = gy.shape
    flat = np.bincount(_flat(index, height, width), gy.reshape(-1), n * height * width * c)
    return flat.astype(gy.dtype).reshape(n, height, width, c)


def _gather_cpu(x: Array, index: Array) -> Array:
    return x.reshape(-1)[_flat(index, x.shape[1], x.shape[2])].reshape(index.shape)


scatter = dispatch(cpu=_scatter_cpu)
gather = dispatch(cpu=_gather_cpu)


@dataclass
class MaxPool2d(Op):
    """(N, H, W, C) -> (N, P, Q, C): the maximum of each window.   gx = gy at the maxima (the first of equals).

    P = (H + 2 padding - kernel) // stride + 1; the padding counts as minus infinity.
    """

    kernel: Pair
    stride: Pair
    padding: Pair

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        y, self.index = max_pool_forward(self.device, x, self.kernel, self.stride, self.padding)
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        _, h, w, _ = self.inputs[0].shape
        return (PutMaxima(self.index, (h, w))(gy),)

    @staticmethod
    def reference(x: np.ndarray, kernel: Pair, stride: Pair, padding: Pair) -> np.ndarray:
        (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
        x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), (1, 2))
        return windows[:, ::sh, ::sw].max(axis=(-2, -1))

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        # Distinct values, so that no two are so near that a finite difference would swap them.
        for shape, kernel, stride, padding in (
            ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0)),
            ((2, 7, 8, 3), (2, 2), (2, 2), (0, 0)),
            ((1, 7, 6, 2), (3, 2), (2, 1), (1, 0)),
        ):
            x = rng.permutation(int(np.prod(shape))).reshape(shape) * 0.1
            yield (x,), {"kernel": kernel, "stride": stride, "padding": padding}


@dataclass
class PutMaxima(Op):
    """(N, P, Q, C) -> (N, H, W, C): each value is added where `index` (N, P, Q, C), h * W + w, says.

    gx = gy from there.
    """

    index: Array
    size: Pair

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return scatter(self.device, x, self.index, *self.size)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (TakeMaxima(self.index, self.size)(gy),)

    @staticmethod
    def reference(x: np.ndarray, index: np.ndarray, size: Pair) -> np.ndarray:
        n, _, _, c = x.shape
        y = np.zeros((n, size[0] * size[1], c))
        for i in np.ndindex(x.shape):
            y[i[0], index[i], i[3]] += x[i]
        return y.reshape(n, *size, c)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield (
            (rng.standard_normal((2, 3, 2, 5)),),
            {"index": rng.integers(0, 20, (2, 3, 2, 5), np.int32), "size": (4, 5)},
        )


@dataclass
class TakeMaxima(Op):
    """(N, H, W, C) -> (N, P, Q, C): the values where `index` (N, P, Q, C), h * W + w, says.

    gx = gy put back there.
    """

    index: Array
    size: Pair

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return gather(self.device, x, self.index)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (PutMaxima(self.index, self.size)(gy),)

    @staticmethod
    def reference(x: np.ndarray, index: np.ndarray, size: Pair) -> np.ndarray:
        flat = x.reshape(len(x), -1, x.shape[-1])
        return np.take_along_axis(flat, index.reshape(len(x), -1, x.shape[-1]), 1).reshape(index.shape)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        yield (
            (rng.standard_normal((2, 4, 5, 3)),),
            {"index": rng.integers(0, 20, (2, 2, 3, 3), np.int32), "size": (4, 5)},
        )


def max_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """(N, H, W, C) -> (N, P, Q, C), P = (H + 2 padding - kernel) // stride + 1: the maximum of each window.

    stride: that of the kernel size if None. padding: at most half the kernel, and counts as minus infinity.
    """
    kernel = pair("max_pool2d: kernel_size", kernel_size, 1)
    strides = kernel if stride is None else pair("max_pool2d: stride", stride, 1)
    pads = pair("max_pool2d: padding", padding, 0)
    if x.ndim != 4 or any(2 * p > k or n + 2 * p < k for p, k, n in zip(pads, kernel, x.shape[1:3], strict=False)):
        raise ValueError(
            f"max_pool2d: expected (N, H, W, C) not smaller than the kernel, and a padding of at most half of it; "
            f"got {x.shape}, kernel {kernel}, padding {pads}"
        )
    return MaxPool2d(kernel, strides, pads)(x)
