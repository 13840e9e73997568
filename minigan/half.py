"""Numbers of 16 bits, in which a GPU keeps the values of float32 tensors between some layers (bf16 and fp16)."""

import numpy as np

from minigan.backend import Array, address, array_module, on_device
from minigan.kernel_launch import launch

HALF_DTYPES = {"bf16": np.dtype(np.uint16), "fp16": np.dtype(np.float16)}  # NumPy has no bf16: its bits
C_HALVES = {dtype: name for name, dtype in HALF_DTYPES.items()}
FLOAT32 = np.dtype(np.float32)

SOURCE = "elements_16_bits.cu"
TOGETHER = 8  # numbers that a thread reads at once: 16 bytes. What is kept in 16 bits has a multiple of 8 channels.
THREADS = 256


def is_half(array: Array) -> bool:
    return array.dtype in C_HALVES


def real_dtype(array: Array) -> np.dtype:
    """That of the values: float32 of 16 bits."""
    return FLOAT32 if is_half(array) else array.dtype


def widened(device: str, array: Array) -> Array:
    """16 bits as float32; other arrays as they are."""
    if not is_half(array):
        return array
    with on_device(device):
        y = array_module(device).empty(array.shape, np.float32)
        launch_halves("widen", device, aligned(array), y)
    return y


def aligned(array: Array) -> Array:
    """The array, or a copy of it, at a multiple of 16 bytes, in C order."""
    return array if array.flags.c_contiguous and address(array) % 16 == 0 else array.copy("C")


def launch_halves(kernel: str, device: str, first: Array, *args: object) -> None:
    """A kernel of elements_16_bits.cu on arrays of the first one's size and format."""
    if first.size:
        grid, macros = -(-first.size // (THREADS * TOGETHER)), {"HALF": C_HALVES[first.dtype]}
        launch(SOURCE, kernel, grid, THREADS, [first, *args, first.size], device=device, macros=macros)
