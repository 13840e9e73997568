"""Convolution, its input gradient and its weight gradient: three primitives, each the derivative of the others.

conv2d(x, w) is linear in x and in w, and so is every derivative of it. Written as y = conv(x, w), gx = input_grad(gy,
w) and gw = weight_grad(x, gy), the gradient of each is made of the other two, to any order. The transposed convolution
is `input_grad` under another name (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, dispatch
from minigan.half import is_half
from minigan.ops import conv2d_cpu, conv2d_cuda, geometry
from minigan.ops.elu import ELU, ELUGrad
from minigan.ops.geometry import Geometry, Padding, Pair
from minigan.ops.leaky_relu import ScaleNegative
from minigan.ops.place import ALONE, Place
from minigan.ops.reduce import sum
from minigan.ops.rounded import Copies, Rounded, shared_copies
from minigan.tensor import Op, Tensor, is_grad_enabled

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


conv_forward = dispatch(cpu=conv2d_cpu.forward, cuda=conv2d_cuda.forward)
conv_input_grad = dispatch(cpu=conv2d_cpu.input_grad, cuda=conv2d_cuda.input_grad)
conv_weight_grad = dispatch(cpu=conv2d_cpu.weight_grad, cuda=conv2d_cuda.weight_grad)
# The gradients of weight and bias at once, or None where that is nothing better than one after the other.
conv_weight_and_bias_grad = dispatch(cpu=lambda *_: None, cuda=conv2d_cuda.weight_and_bias_grad)


def _parameter_gradients(
    op: Op, weight_grad: "Conv2dWeightGrad", x: Tensor, gy: Tensor, of: str
) -> tuple[Tensor | None, ...]:
    """Of the weight; and of the bias, if there is one: x or gy, as `of` says, summed over all pixels."""
    needed = op.needed[1:]
    if needed == (True, True) and not is_grad_enabled():
        both = conv_weight_and_bias_grad(op.device, x._data, gy._data, weight_grad.geometry, of, weight_grad.copies)
        if both is not None:
            return tuple(Tensor(a, device=op.device) for a in both)
    gw = weight_grad(x, gy) if needed[0] else None
    return gw, *(sum({"x": x, "gy": gy}[of], (0, 1, 2)) if one else None for one in needed[1:])


def _as_kept(x: Tensor) -> Place:
    """Of the gradient of x: kept in 16 bits as x is, unless it will be differentiated itself."""
    return Place(half=is_half(x._data) and not is_grad_enabled())


@dataclass
class _Layer(Op, abstract=True):
    """What a convolution and a transposed one have in common: a bias, perhaps, and an activation."""

    geometry: Geometry
    place: Place = ALONE
    copies: Copies = (None, None)

    saved_inputs = (0, 1)
    keeps_output = True
    takes_half = (0,)

    def compute(self, leaf: Any, x: Array, w: Array, *bias: Array) -> Array:
        place, b = self.place, bias[0] if bias else None
        y = leaf(self.device, x, w, self.geometry, b, place.slope, self.copies, place.half, place.moments, place.elu)
        self.out = None if place.slope == 1 and not place.elu else y  # its signs are those before LeakyReLU
        return y

    def before_activation(self, gy: Tensor) -> Tensor:
        if self.place.elu:
            return ELUGrad(self.place.slope)(self.output(self.out), gy)
        return gy if self.out is None else ScaleNegative(self.place.slope)(Tensor(self.out, device=self.device), gy)


class Conv2d(_Layer):
    """(N, H, W, C), (K, R, S, C) and optionally (K,) -> (N, P, Q, K).

    y[n, p, q, k] = b[k] + sum over r, s, c of x[n, p stride - top + r, q stride - left + s, c] w[k, r, s, c].
    gx = input_grad(gy, w), gw = weight_grad(x, gy), gb = gy summed over n, p, q. place: of an activation behind it.
    """

    def forward(self, *arrays: Array) -> Array:
        return self.compute(conv_forward, *arrays)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        gy = self.before_activation(gy)
        x, w, *_ = self.inputs
        (of_x, of_w), of_gy = self.copies, Rounded()
        return (
            Conv2dInputGrad(self.geometry, _as_kept(x), (of_gy, of_w))(gy, w) if self.needed[0] else None,
            *_parameter_gradients(self, Conv2dWeightGrad(self.geometry, (of_x, of_gy)), x, gy, "gy"),
        )

    @staticmethod
    def reference(
        x: np.ndarray, w: np.ndarray, *bias: np.ndarray, geometry: Geometry, place: Place = ALONE
    ) -> np.ndarray:
        g = geometry
        y = np.zeros(g.y_shape, x.dtype)
        for p, q, r, s in np.ndindex(g.p, g.q, g.r, g.s):
            i, j = p * g.stride_h - g.top + r, q * g.stride_w - g.left + s
            if 0 <= i < g.h and 0 <= j < g.w:
                y[:, p, q] += x[:, i, j] @ w[:, r, s].T
        y += bias[0] if bias else 0
        return ELU.reference(y, place.slope) if place.elu else np.where(y > 0, y, place.slope * y)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for g in _sample_geometries():
            inputs = rng.standard_normal(g.x_shape), rng.standard_normal(g.w_shape), rng.standard_normal(g.k)
            yield inputs[: 2 + g.n % 2], {"geometry": g, "place": _sample_place(g)}


class Conv2dInputGrad(_Layer):
    """(N, P, Q, K), (K, R, S, C) and optionally (C,) -> (N, H, W, C): transposed convolution.

    x[n, h, w, c] = b[c] + sum of y[n, p, q, k] w[k, r, s, c] over all p, q, r, s, k with p stride - top + r = h and
    q stride - left + s = w.   gy = conv(gx, w), gw = weight_grad(gx, y), gb = gx summed over n, h, w.
    """

    def forward(self, *arrays: Array) -> Array:
        return self.compute(conv_input_grad, *arrays)

    def backward(self, gx: Tensor) -> tuple[Tensor | None, ...]:
        gx = self.before_activation(gx)
        y, w, *_ = self.inputs
        (of_y, of_w), of_gx = self.copies, Rounded()
        return (
            Conv2d(self.geometry, _as_kept(y), (of_gx, of_w))(gx, w) if self.needed[0] else None,
            *_parameter_gradients(self, Conv2dWeightGrad(self.geometry, (of_gx, of_y)), gx, y, "x"),
        )

    @staticmethod
    def reference(
        y: np.ndarray, w: np.ndarray, *bias: np.ndarray, geometry: Geometry, place: Place = ALONE
    ) -> np.ndarray:
        g = geometry
        x = np.zeros(g.x_shape, y.dtype)
        for p, q, r, s in np.ndindex(g.p, g.q, g.r, g.s):
            i, j = p * g.stride_h - g.top + r, q * g.stride_w - g.left + s
            if 0 <= i < g.h and 0 <= j < g.w:
                x[:, i, j] += y[:, p, q] @ w[:, r, s]
        x += bias[0] if bias else 0
        return ELU.reference(x, place.slope) if place.elu else np.where(x > 0, x, place.slope * x)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for g in _sample_geometries():
            inputs = rng.standard_normal(g.y_shape), rng.standard_normal(g.w_shape), rng.standard_normal(g.c)
            yield inputs[: 2 + g.n % 2], {"geometry": g, "place": _sample_place(g)}


@dataclass
class Conv2dWeightGrad(Op):
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C).

    w[k, r, s, c] = sum over n, p, q of y[n, p, q, k] x[n, p stride - top + r, q stride - left + s, c].
    gx = input_grad(y, gw), gy = conv(x, gw).
    """

    geometry: Geometry
    copies: Copies = (None, None)

    takes_half = (0, 1)

    def forward(self, x: Array, y: Array) -> Array:
        return conv_weight_grad(self.device, x, y, self.geometry, self.copies)

    def backward(self, gw: Tensor) -> tuple[Tensor | None, ...]:
        x, y = self.inputs
        (of_x, of_y), of_gw = self.copies, Rounded()
        return (
            Conv2dInputGrad(self.geometry, ALONE, (of_y, of_gw))(y, gw) if self.needed[0] else None,
            Conv2d(self.geometry, ALONE, (of_x, of_gw))(x, gw) if self.needed[1] else None,
        )

    @staticmethod
    def reference(x: np.ndarray, y: np.ndarray, geometry: Geometry) -> np.ndarray:
        g = geometry
        w = np.zeros(g.w_shape, x.dtype)
        for p, q, r, s in np.ndindex(g.p, g.q, g.r, g.s):
            i, j = p * g.stride_h - g.top + r, q * g.stride_w - g.left + s
            if 0 <= i < g.h and 0 <= j < g.w:
                w[:, r, s] += y[:, p, q].T @ x[:, i, j]
        return w

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for g in _sample_geometries():
            yield (rng.standard_normal(g.x_shape), rng.standard_normal(g.y_shape)), {"geometry": g}


def _sample_place(g: Geometry) -> Place:
    """With a LeakyReLU, an ELU, or nothing behind the layer."""
    return Place(0.3 if g.stride_w == 1 else 1.0, elu=g.r in (3, 5))


def _sample_geometries() -> Iterator[Geometry]:
    """Strides 1 to 3, kernels larger and smaller than the stride, paddings of every form, wide and narrow channels."""
    for x, w, stride, padding in (
        ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0),
        ((2, 7, 7, 3), (5, 5, 5, 3), 2, "same"),
        ((1, 8, 8, 9), (3, 5, 5, 9), 2, "same"),
        ((2, 8, 6, 8), (4, 4, 4, 8), 2, "same"),
        ((1, 5, 7, 11), (1, 3, 3, 11), 1, "same"),
        ((3, 7, 8, 2), (3, 3, 2, 2), (3, 1), ((2, 0), (1, 3))),
        ((2, 9, 7, 10), (3, 2, 1, 10), (3, 2), (1, 0)),
        ((1, 6, 6, 1), (7, 4, 4, 1), 1, "valid"),
        ((1, 19, 33, 3), (2, 3, 3, 3), 2, 1),
        ((1, 37, 33, 1), (2, 1, 1, 1), (2, 1), 0),
    ):
        yield geometry.convolution("conv2d", x, w, stride, padding)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Pair = 1, padding: Padding = 0
) -> Tensor:
    """Convolution: (N, H, W, C), (K, R, S, C) -> (N, P, Q, K), with P = (H + top + bottom - R) // stride + 1.

    bias: (K,). padding: a number, a pair (vertical, horizontal), ((top, bottom), (left, right)), "valid" (none) or
    "same" (TensorFlow's: P = ceil(H / stride), the smaller half before).
    """
    return placed_conv2d(ALONE, x, weight, bias, stride, padding)


def placed_conv2d(
    place: Place, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int | Pair = 1, padding: Padding = 0
) -> Tensor:
    """As conv2d, of a layer in a chain."""
    g = geometry.convolution("conv2d", x.shape, weight.shape, stride, padding)
    return Conv2d(g, place, shared_copies(x, weight))(x, weight, *_bias("conv2d", bias, g.k))


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: Padding = 0,
    output_padding: int | Pair = 0,
) -> Tensor:
    """Transposed convolution.

    (N, P, Q, K), (K, R, S, C) -> (N, H, W, C), H = (P - 1) stride - top - bottom + R + output_padding.

    It is the input gradient of the convolution with this weight, stride and padding. bias: (C,). With padding "same" H
    = P stride.
    """
    return placed_conv_transpose2d(ALONE, x, weight, bias, stride, padding, output_padding)


def placed_conv_transpose2d(
    place: Place,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Pair = 1,
    padding: Padding = 0,
    output_padding: int | Pair = 0,
) -> Tensor:
    """As conv_transpose2d, of a layer in a chain."""
    g = geometry.transposed("conv_transpose2d", x.shape, weight.shape, stride, padding, output_padding)
    return Conv2dInputGrad(g, place, shared_copies(x, weight))(x, weight, *_bias("conv_transpose2d", bias, g.c))


def conv2d_weight_grad(
    x: Tensor, gy: Tensor, kernel_size: int | Pair, stride: int | Pair = 1, padding: Padding = 0
) -> Tensor:
    """The gradient of conv2d's weight: input (N, H, W, C), output's gradient (N, P, Q, K) -> (K, R, S, C)."""
    r, s = geometry.pair("conv2d_weight_grad: kernel_size", kernel_size, 1)
    if x.ndim != 4 or gy.ndim != 4:
        raise ValueError(f"conv2d_weight_grad: expected (N, H, W, C) and (N, P, Q, K), got {x.shape} and {gy.shape}")
    g = geometry.convolution("conv2d_weight_grad", x.shape, (gy.shape[3], r, s, x.shape[3]), stride, padding)
    if gy.shape != g.y_shape:
        raise ValueError(f"conv2d_weight_grad: expected a gradient of shape {g.y_shape}, got {gy.shape}")
    return Conv2dWeightGrad(g)(x, gy)


def _bias(what: str, bias: Tensor | None, channels: int) -> tuple[Tensor, ...]:
    if bias is None:
        return ()
    if bias.shape != (channels,):
        raise ValueError(f"{what}: expected a bias of shape ({channels},), got {bias.shape}")
    return (bias,)
