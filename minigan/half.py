"""Numbers of 16 bits, in which a GPU keeps the values of float32 tensors between some layers (bf16 and fp16)."""

from collections.abc import Sequence

import numpy as np

from minigan.backend import Array, address, array_module, contiguous, on_device
from minigan.kernel_launch import C_REALS, Macros, launch

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


def as_read(device: str, *arrays: Array) -> tuple[Array, ...]:
    """In C order, as kernels read them; where one of them has 16 bits, all at a multiple of 16 bytes as well."""
    return tuple(map(aligned, arrays)) if any(map(is_half, arrays)) else contiguous(device, *arrays)


def launch_halves(kernel: str, device: str, first: Array, *args: object) -> None:
    """A kernel of elements_16_bits.cu on arrays of the first one's size and format."""
    _launch_each(SOURCE, kernel, first, [first, *args], device, {"HALF": C_HALVES[first.dtype]})


def launch_together(source: str, kernel: str, y: Array, args: Sequence[object], *, device: str) -> None:
    """A kernel with a thread for each element of y, or for 8 where these have 16 bits; its X_TYPE is their format.

    Its last argument is their count.
    """
    real = C_REALS[real_dtype(y)]
    _launch_each(source, kernel, y, args, device, {"REAL": real, "X_TYPE": C_HALVES.get(y.dtype, real)})


def _launch_each(source: str, kernel: str, y: Array, args: Sequence[object], device: str, macros: Macros) -> None:
    threads = y.size // TOGETHER if is_half(y) else y.size
    if threads:
        launch(source, kernel, -(-threads // THREADS), THREADS, [*args, y.size], device=device, macros=macros)
