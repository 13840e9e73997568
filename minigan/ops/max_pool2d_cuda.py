"""Max-pooling on CUDA devices: the host's side of max_pool.cu. What has 16 bits becomes such."""

import numpy as np

from minigan.backend import Array, array_module
from minigan.half import as_read, launch_together
from minigan.ops.geometry import Pair
from minigan.ops.max_pool2d_cpu import Windows, output_shape


def _launch(device: str, kernel: str, x: Array, y: Array, result: Array, windows: Windows, *arrays: Array) -> None:
    """Runs a kernel over the elements of `result`; x is the pooling's input, or an array of its shape, y its output."""
    fields = ("n", "h", "w", "c", "p", "q", "kernel_h", "kernel_w", "stride_h", "stride_w", "top", "left")
    pool = dict(zip(fields, (*x.shape, *y.shape[1:3], *(i for pair in windows for i in pair)), strict=True))
    launch_together("max_pool.cu", kernel, result, [*arrays, pool], device=device)


def max_pool(device: str, x: Array, windows: Windows) -> tuple[Array, Array]:
    xp, shape = array_module(device), output_shape(x, *windows)
    y, index = xp.empty(shape, x.dtype), xp.empty(shape, np.int32)
    _launch(device, "max_pool", x, y, y, windows, *as_read(device, x), y, index)
    return y, index


def scatter(device: str, gy: Array, index: Array, size: Pair, windows: Windows) -> Array:
    gx = array_module(device).empty((len(gy), *size, gy.shape[-1]), gy.dtype)
    _launch(device, "put_maxima", gx, gy, gx, windows, *as_read(device, gy, index), gx)
    return gx


def gather(device: str, x: Array, index: Array, windows: Windows) -> Array:
    y = array_module(device).empty(index.shape, x.dtype)
    _launch(device, "take_maxima", x, y, y, windows, *as_read(device, x, index), y)
    return y
