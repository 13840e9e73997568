"""The mean losses on CUDA devices: the host's side of losses.cu."""

import numpy as np

from minigan.backend import Array, array_module, contiguous
from minigan.block_counters import block_counters
from minigan.kernel_launch import C_REALS, Macros, launch
from minigan.ops.elements import element_kernel

THREADS = 256
BLOCKS = 1024  # at most, of a sum: each thread takes more elements of a larger one


def _target(t: Array) -> tuple[Array | None, float]:
    """As losses.cu takes targets: an array, or none and the number that stands for all elements."""
    return (None, float(t)) if isinstance(t, np.generic) else (t, 0.0)


def logistic_loss(device: str, z: Array, t: Array) -> Array:
    return element_kernel("losses.cu", "logistic_loss", 1)(device, z, *_target(t))


def _mean(kernel: str, device: str, x: Array, other: Array | None, *numbers: float) -> Array:
    """One launch: its last block adds up the sums of all."""
    xp = array_module(device)
    blocks = min(-(-x.size // THREADS), BLOCKS)
    sums, y = xp.empty(blocks, np.float64), xp.empty((), x.dtype)
    macros: Macros = {"REAL": C_REALS[x.dtype]}
    with block_counters(device, 1) as counter:
        args = [*contiguous(device, x, other), *numbers, sums, counter, y, x.size]
        launch("losses.cu", kernel, blocks, THREADS, args, device=device, macros=macros)
    return y


def mean_logistic(device: str, z: Array, t: Array) -> Array:
    return _mean("mean_logistic", device, z, *_target(t))


def mean_logistic_gradient(device: str, z: Array, t: Array, gy: Array) -> Array:
    t, target = _target(t)
    return element_kernel("losses.cu", "logistic_gradient", 1)(device, z, t, gy, target)


def mean_l1(device: str, a: Array, b: Array) -> Array:
    return _mean("mean_l1", device, a, b)


mean_l1_gradient = element_kernel("losses.cu", "l1_gradient")
