"""Functions of single elements as leaves: on the CPU a loop over flat arrays, on a GPU a kernel, a thread an element.

leaf(*arrays, *numbers), of which the last `numbers` are numbers, calls loop(start, stop, *arrays, *numbers, y) or
kernel(*arrays, y, *numbers, count). The result y has the shape and dtype of the first array.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, contiguous
from minigan.cpu import ELEMENTS_PER_THREAD, parallel
from minigan.half import aligned, launch_halves
from minigan.kernel_launch import launch_elements


def element_loop(loop: Callable[..., None], numbers: int = 0) -> Callable[..., Array]:
    """The leaf of the CPU. The loop's index should be unsigned, as in `range(np.uintp(start), np.uintp(stop))`.

    A signed one might count from the end, and the provision for that keeps the loop from using vector instructions.
    """

    def leaf(*args: Any) -> Array:
        count = len(args) - numbers
        y = np.empty(args[0].shape, args[0].dtype)
        flat = [np.ascontiguousarray(a).reshape(-1) for a in args[:count]]
        given = map(y.dtype.type, args[count:])
        parallel(loop, y.size, *flat, *given, y.reshape(-1), grain=ELEMENTS_PER_THREAD)
        return y

    return leaf


def element_kernel(source: str, kernel: str, numbers: int = 0) -> Callable[..., Array]:
    """The leaf of GPUs. An array may be None: a null pointer."""

    def leaf(device: str, *args: Any) -> Array:
        count = len(args) - numbers
        y = array_module(device).empty(args[0].shape, args[0].dtype)
        given = [*contiguous(device, *args[:count]), y, *map(float, args[count:])]
        launch_elements(source, kernel, y.size, given, device=device, dtype=y.dtype)
        return y

    return leaf


def halves_kernel(kernel: str, numbers: int = 0) -> Callable[..., Array]:
    """The leaf of GPUs for arrays, and a result, of 16 bits."""

    def leaf(device: str, *args: Any) -> Array:
        count = len(args) - numbers
        y = array_module(device).empty(args[0].shape, args[0].dtype)
        launch_halves(kernel, device, *map(aligned, args[:count]), y, *map(float, args[count:]))
        return y

    return leaf
