"""The matrix product on CUDA devices, by cuBLAS; in the capture of a graph by calls of our own.

CuPy refuses cuBLAS in a capture (cupy/cupy#6290), although cuBLAS can be captured: the call has only to go to the
stream that is capturing. So there the library that CuPy has loaded is called as CuPy would call it, with its handle.
"""

import ctypes
from ctypes import c_double, c_float, c_int, c_void_p
from functools import cache
from typing import Any

from minigan.backend import Array, address, array_module, is_cuda
from minigan.capture import CaptureError

# Of cublas_api.h and library_types.h: how a number is stored and summed up, by its dtype; which algorithm.
KINDS: dict[str, tuple[int, int, Any]] = {"float32": (0, 68, c_float), "float64": (1, 70, c_double)}
DEFAULT_ALGORITHM = -1


def product(device: str, a: Array, b: Array) -> Array:
    """(..., M, K), (..., K, N) -> (..., M, N). Raises CaptureError in a capture for what is not a matrix."""
    stream = array_module(device).cuda.get_current_stream() if is_cuda(device) else None
    if stream is None or not stream.is_capturing() or not a.size or not b.size:
        return a @ b
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
        raise CaptureError(f"a product in a graph: expected two matrices of one dtype, got {a.shape} and {b.shape}")
    return _captured(array_module(device), a, b, stream)


@cache
def _library(cuda: Any) -> Any:
    """cuBLAS: its functions are found by way of the module of CuPy's that is linked with it."""
    array: list[Any] = [c_void_p, c_int, c_int]  # its address, kind and leading dimension
    sizes: list[Any] = [c_void_p, *[c_int] * 5, c_void_p]  # handle, which are transposed, sizes, a factor's address
    try:
        library = ctypes.CDLL(cuda.cublas.__file__)
        library.cublasSetStream_v2.argtypes = [c_void_p, c_void_p]
        library.cublasGemmEx.argtypes = [*sizes, *array, *array, c_void_p, *array, c_int, c_int]
    except (OSError, AttributeError, ImportError) as error:
        raise CaptureError(f"cuBLAS in a capture: {error}") from error
    return library


def _captured(xp: Any, a: Array, b: Array, stream: Any) -> Array:
    """To cuBLAS a matrix is one column after another: ours are transposes there, and it computes y^T = b^T a^T."""
    if not (a.flags.c_contiguous or a.flags.f_contiguous):
        a = xp.ascontiguousarray(a)
    if not (b.flags.c_contiguous or b.flags.f_contiguous):
        b = xp.ascontiguousarray(b)
    a_turned, b_turned = not a.flags.c_contiguous, bool(b.flags.f_contiguous)
    (m, k), n = a.shape, b.shape[1]
    y = xp.empty((m, n), a.dtype)
    kind, compute, number = KINDS[str(a.dtype)]
    library, handle = _library(xp.cuda), xp.cuda.device.get_cublas_handle()
    one, zero = number(1), number(0)
    second = address(b), kind, k if b_turned else n
    first = address(a), kind, m if a_turned else k
    _check(library.cublasSetStream_v2(handle, stream.ptr))
    sizes = int(b_turned), int(a_turned), n, m, k, ctypes.byref(one)
    result = ctypes.byref(zero), address(y), kind, n
    _check(library.cublasGemmEx(handle, *sizes, *second, *first, *result, compute, DEFAULT_ALGORITHM))
    return y


def _check(status: int) -> None:
    if status:
        raise CaptureError(f"cuBLAS in a capture: status {status}, expected 0; cublasStatus_t says what it is")
