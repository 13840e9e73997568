"""Nearest-neighbour upsampling on CUDA devices: the host's side of upsample.cu. What has 16 bits becomes such."""

from minigan.backend import Array, array_module
from minigan.half import as_read, launch_together


def upsample(device: str, x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = array_module(device).empty((n, h * scale, w * scale, c), x.dtype)
    launch_together("upsample.cu", "upsample", y, [*as_read(device, x), y, w, c, scale], device=device)
    return y


def sum_blocks(device: str, x: Array, scale: int) -> Array:
    n, h, w, c = x.shape
    y = array_module(device).empty((n, h // scale, w // scale, c), x.dtype)
    launch_together("upsample.cu", "sum_blocks", y, [*as_read(device, x), y, w // scale, c, scale], device=device)
    return y
