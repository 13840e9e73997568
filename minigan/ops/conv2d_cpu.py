"""The three convolution primitives on the CPU: each by the way that suits the layer.

In float32 that is Winograd's filtering for large layers, which multiplies less and rounds more. MINIGAN_WINOGRAD=0 in
the environment does without it. Numbers of 16 bits and moments of outputs are a GPU's: the CPU makes none.
"""

from types import ModuleType
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.environment import switch
from minigan.ops import conv2d_im2col, conv2d_turned, conv2d_winograd
from minigan.ops.elu import elu_forward
from minigan.ops.geometry import Geometry


def _way(g: Geometry, dtype: np.dtype) -> ModuleType:
    allowed = switch("MINIGAN_WINOGRAD")
    if conv2d_turned.suits(g):
        return conv2d_turned
    fewer = allowed and dtype == np.float32 and conv2d_winograd.suits(g)
    return conv2d_winograd if fewer else conv2d_im2col


def forward(x: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0, *more: Any) -> Array:
    """(N, H, W, C), (K, R, S, C) and perhaps (K,) -> (N, P, Q, K). slope: of a LeakyReLU behind it; 1: none.

    more: of a GPU, but for the last one of four: it is an ELU, and slope its alpha.
    """
    elu = _is_elu(*more)
    y = _way(g, x.dtype).forward(x, w, g, bias, 1.0 if elu else slope)
    return elu_forward("cpu", y, slope) if elu else y


def input_grad(gy: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0, *more: Any) -> Array:
    """(N, P, Q, K), (K, R, S, C) and perhaps (C,) -> (N, H, W, C). slope, more: as of forward."""
    elu = _is_elu(*more)
    gx = _way(g, gy.dtype).input_grad(gy, w, g, bias, 1.0 if elu else slope)
    return elu_forward("cpu", gx, slope) if elu else gx


def _is_elu(copies: Any = None, half: bool = False, moments: Any = None, elu: bool = False) -> bool:
    return elu


def weight_grad(x: Array, gy: Array, g: Geometry, *_: Any) -> Array:
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C)."""
    return _way(g, x.dtype).weight_grad(x, gy, g)
