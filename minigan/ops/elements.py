"""Functions of single elements as leaves: on the CPU a loop over flat arrays, on a GPU a kernel, a thread an element.

leaf(*arrays, *numbers), of which the last `numbers` are numbers, calls loop(start, stop, *arrays, *numbers, y) or
kernel(*arrays, y, *numbers, count). The result y has the shape and dtype of the first array.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, contiguous
from minigan.cpu import ELEMENTS_PER_THREAD, parallel
from minigan.half import aligned, is_half, launch_halves, widened
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


def element_kernel(source: str, kernel: str, numbers: int = 0, half: bool = False) -> Callable[..., Array]:
    """The leaf of GPUs. An array may be None: a null pointer.

    half: there is a kernel_16_bits for arrays that have those, too, which gives one. Where only some have, they are
    widened.
    """

    def leaf(device: str, *args: Any) -> Array:
        arrays, given = args[: len(args) - numbers], map(float, args[len(args) - numbers :])
        kept = half and all(is_half(a) and a.dtype == arrays[0].dtype for a in arrays)
        if half and not kept:
            arrays = tuple(widened(device, a) for a in arrays)
        y = array_module(device).empty(arrays[0].shape, arrays[0].dtype)
        if kept:
            launch_halves(f"{kernel}_16_bits", device, *map(aligned, arrays), y, *given)
        else:
            args = *contiguous(device, *arrays), y, *given
            launch_elements(source, kernel, y.size, args, device=device, dtype=y.dtype)
        return y

    return leaf
