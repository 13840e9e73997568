"""The three convolution primitives on the CPU for few output channels and stride 1: as those of the turned convolution.

With stride 1 a convolution from C to K channels is the input gradient of another, from K to C channels, whose filters
are the same turned by half a circle. So what is fast for few *input* channels serves few output channels too.
"""

from dataclasses import replace

import numpy as np

from minigan.backend import Array
from minigan.ops import conv2d_im2col
from minigan.ops.geometry import Geometry
from minigan.ops.patches import NARROW


def suits(g: Geometry) -> bool:
    """Whether these functions can compute a layer, and are expected to take less time than gathering patches does."""
    return g.k < NARROW <= g.c and g.stride_h == g.stride_w == 1


def _turned(g: Geometry) -> Geometry:
    """The convolution from the output's shape to the input's."""
    sizes = {"h": g.p, "w": g.q, "c": g.k, "k": g.c, "p": g.h, "q": g.w}
    return replace(g, **sizes, top=g.r - 1 - g.top, left=g.s - 1 - g.left)


def _turn(w: Array) -> Array:
    """(K, R, S, C) -> (C, R, S, K): tap (r, s) becomes tap (R - 1 - r, S - 1 - s)."""
    return np.ascontiguousarray(w[:, ::-1, ::-1].transpose(3, 1, 2, 0))


def forward(x: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0) -> Array:
    """(N, H, W, C), (K, R, S, C) and perhaps (K,) -> (N, P, Q, K). slope: of a LeakyReLU behind it."""
    return conv2d_im2col.input_grad(x, _turn(w), _turned(g), bias, slope)


def input_grad(gy: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0) -> Array:
    """(N, P, Q, K), (K, R, S, C) and perhaps (C,) -> (N, H, W, C). slope: as of forward."""
    return conv2d_im2col.forward(gy, _turn(w), _turned(g), bias, slope)


def weight_grad(x: Array, gy: Array, g: Geometry) -> Array:
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C)."""
    return _turn(conv2d_im2col.weight_grad(gy, x, _turned(g)))
