"""Max-pooling. Its gradient puts values back to where the maxima were; that one's gradient takes them from there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, dispatch
from minigan.ops import max_pool2d_cpu, max_pool2d_cuda
from minigan.ops.geometry import Pair, pair
from minigan.ops.max_pool2d_cpu import Windows
from minigan.tensor import Op, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


max_pool_forward = dispatch(cpu=max_pool2d_cpu.max_pool, cuda=max_pool2d_cuda.max_pool)


scatter = dispatch(cpu=max_pool2d_cpu.scatter, cuda=max_pool2d_cuda.scatter)
gather = dispatch(cpu=max_pool2d_cpu.gather, cuda=max_pool2d_cuda.gather)


# For samples: the output's shape, the input's size, overlapping windows, windows in the padding, windows with gaps.
_WINDOWS: tuple[tuple[tuple[int, ...], Pair, Windows], ...] = (
    ((1, 1, 7, 33), (1, 7), ((1, 1), (1, 1), (0, 0))),
    ((1, 4, 3, 19), (7, 3), ((3, 3), (2, 1), (1, 1))),
    ((2, 1, 17, 2), (3, 33), ((2, 1), (3, 2), (0, 0))),
)


def _window_settings(
    rng: np.random.Generator, y_shape: tuple[int, ...], size: Pair, windows: Windows
) -> dict[str, Any]:
    """The settings of the two ops below, with an index somewhere in each window."""
    x = rng.standard_normal((y_shape[0], *size, y_shape[3]))
    return {"index": max_pool2d_cpu.max_pool(x, windows)[1], "size": size, "windows": windows}


@dataclass
class MaxPool2d(Op):
    """(N, H, W, C) -> (N, P, Q, C): the maximum of each window.   gx = gy at the maxima (the first of equals).

    P = (H + 2 padding - kernel) // stride + 1; the padding counts as minus infinity.
    """

    kernel: Pair
    stride: Pair
    padding: Pair

    saved_inputs = ()
    takes_half = (0,)

    def forward(self, x: Array) -> Array:
        y, self.index = max_pool_forward(self.device, x, (self.kernel, self.stride, self.padding))
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        _, h, w, _ = self.inputs[0].shape
        return (PutMaxima(self.index, (h, w), (self.kernel, self.stride, self.padding))(gy),)

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
            ((1, 7, 6, 19), (3, 2), (2, 1), (1, 0)),
            ((1, 2, 33, 1), (2, 3), (1, 2), (0, 1)),
        ):
            x = rng.permutation(int(np.prod(shape))).reshape(shape) * 0.1
            yield (x,), {"kernel": kernel, "stride": stride, "padding": padding}


@dataclass
class PutMaxima(Op):
    """(N, P, Q, C) -> (N, H, W, C): each value is added where `index` (N, P, Q, C), h * W + w, says.

    The index must lie in the value's own window.   gx = gy from there.
    """

    index: Array
    size: Pair
    windows: Windows

    saved_inputs = ()
    takes_half = (0,)

    def forward(self, x: Array) -> Array:
        return scatter(self.device, x, self.index, self.size, self.windows)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (TakeMaxima(self.index, self.size, self.windows)(gy),)

    @staticmethod
    def reference(x: np.ndarray, index: np.ndarray, size: Pair, windows: Windows) -> np.ndarray:
        n, _, _, c = x.shape
        y = np.zeros((n, size[0] * size[1], c))
        for i in np.ndindex(x.shape):
            y[i[0], index[i], i[3]] += x[i]
        return y.reshape(n, *size, c)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for settings in _WINDOWS:
            yield (rng.standard_normal(settings[0]),), _window_settings(rng, *settings)


@dataclass
class TakeMaxima(Op):
    """(N, H, W, C) -> (N, P, Q, C): the values where `index` (N, P, Q, C), h * W + w, says.

    gx = gy put back there.
    """

    index: Array
    size: Pair
    windows: Windows

    saved_inputs = ()

    def forward(self, x: Array) -> Array:
        return gather(self.device, x, self.index, self.windows)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (PutMaxima(self.index, self.size, self.windows)(gy),)

    @staticmethod
    def reference(x: np.ndarray, index: np.ndarray, size: Pair, windows: Windows) -> np.ndarray:
        flat = x.reshape(len(x), -1, x.shape[-1])
        return np.take_along_axis(flat, index.reshape(len(x), -1, x.shape[-1]), 1).reshape(index.shape)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for y_shape, size, windows in _WINDOWS:
            x = rng.standard_normal((y_shape[0], *size, y_shape[3]))
            yield (x,), _window_settings(rng, y_shape, size, windows)


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
