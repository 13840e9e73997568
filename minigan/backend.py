"""Devices: where an array lives, which array module handles it, which leaf function computes with it.

A device is a string: "cpu" (NumPy arrays; Numba and BLAS), "cuda" or "cuda:N" (CuPy arrays; the kernels in
`kernels/`), or "emulated" (NumPy arrays; the very same kernels, run on the CPU). This is the only place that imports
CuPy; everything else works without it.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

# A NumPy array or a CuPy array. CuPy is optional, so no type checker can be promised its types.
Array = Any

DEVICES = "'cpu', 'cuda', 'cuda:N' or 'emulated'"


class DeviceError(RuntimeError):
    """A device that is unknown or not there, or arrays of two devices in one operation."""


class DefaultDevice(str):
    """A device's name that also says, in `reason`, why it was chosen."""

    reason: str

    def __new__(cls, device: str, reason: str) -> "DefaultDevice":
        chosen = super().__new__(cls, device)
        chosen.reason = reason
        return chosen


@cache
def cupy() -> ModuleType:
    """The CuPy module. Raises DeviceError where it is not installed."""
    if importlib.util.find_spec("cupy") is None:
        raise DeviceError("device 'cuda' needs CuPy, which is not installed: pip install 'minigan[cuda12]' (or cuda13)")
    return importlib.import_module("cupy")


def nccl() -> ModuleType:
    """CuPy's module of NCCL, which CuPy 14 does not import by itself; `available` says whether the library is there."""
    return importlib.import_module("cupy.cuda.nccl")


@cache
def cuda_problem() -> str | None:
    """None if an NVIDIA GPU can be used, else one line that says what is missing."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'minigan[cuda12]', or cuda13)"
    # Without a driver `import cupy` succeeds and only the first array raises, so ask the runtime.
    return None if cupy().cuda.is_available() else "CuPy finds no NVIDIA GPU or driver"


def default_device() -> DefaultDevice:
    """The device that is used where none is named, with the reason as `.reason`.

    MINIGAN_DEVICE if it is set, else "cuda" where there is a usable NVIDIA GPU, else "cpu".
    """
    named = os.environ.get("MINIGAN_DEVICE")
    if named:
        return DefaultDevice(resolve_device(named), f"MINIGAN_DEVICE is set to {named!r}")
    problem = cuda_problem()
    if problem is None:
        return DefaultDevice("cuda", "an NVIDIA GPU is there")
    return DefaultDevice("cpu", problem)


def resolve_device(device: str | None) -> str:
    """The canonical name of a device: None is the default one, "cuda:0" is "cuda".

    Raises DeviceError for an unknown name and for a CUDA device that is not there.
    """
    if device is None:
        return str(default_device())
    if device in ("cpu", "emulated"):
        return device
    kind, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or (index and not index.isdecimal()) or device.endswith(":"):
        raise DeviceError(f"unknown device {device!r}: expected {DEVICES}")
    problem = cuda_problem()
    if problem is not None:
        raise DeviceError(f"device {device!r} is not available: {problem}")
    count = cupy().cuda.runtime.getDeviceCount()
    if int(index or 0) >= count:
        raise DeviceError(f"device {device!r} is not available: this machine has {count} CUDA device(s)")
    return device if index and int(index) else "cuda"


def cuda_index(device: str) -> int:
    """The number of a CUDA device: 0 for "cuda", N for "cuda:N"."""
    return int(device.partition(":")[2] or 0)


def cuda_architecture(device: str) -> int:
    """80 for an sm_80, such as an A100."""
    return int(cupy().cuda.Device(cuda_index(device)).compute_capability)


PRECISIONS = ("float32", "tf32", "bf16", "fp16")

_precision: str | None = None


def set_matmul_precision(precision: str) -> None:
    """How float32 convolutions are computed on CUDA devices, and on "emulated", from now on.

    "float32"; or by tensor cores, for which the two operands of each product are rounded: "tf32" to 11 significant
    bits (the default on cards that have it, sm_80 and later, as with PyTorch's convolutions), "bf16" to 8, "fp16" to
    11 within 6e-8 to 65504 (train with `Adam.backward`, which scales the loss so that gradients stay in there). In the
    latter two the layers of a `Sequential` leave results, and their gradients, in 16 bits where convolutions or batch
    norms read them, ELU, max-pooling or upsampling in between perhaps; in fp16 what is larger than 65504 is infinite
    from there on. Sums are float32, as are weights, statistics and dense layers. The CPU always computes in float32.
    """
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"set_matmul_precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    _precision = precision


def matmul_precision(device: str) -> str:
    """The precision in force on a device: the one that was set, else "tf32" on a GPU that has it, else "float32"."""
    if device == "cpu":
        return "float32"
    if _precision is not None:
        return _precision
    return "tf32" if is_cuda(device) and cuda_architecture(device) >= 80 else "float32"


@cache
def is_cuda(device: str) -> bool:
    return device.startswith("cuda")


def array_module(device: str) -> ModuleType:
    """numpy or cupy."""
    return cupy() if is_cuda(device) else np


_anywhere = nullcontext()


def on_device(device: str) -> AbstractContextManager[Any]:
    """`with on_device("cuda:1"):` makes that GPU the one on which CuPy allocates and computes."""
    return cupy().cuda.Device(cuda_index(device)) if is_cuda(device) else _anywhere


def contiguous(device: str, *arrays: Array | None) -> tuple[Array, ...]:
    """The arrays in C order, as kernels read them; those that are not are copied. None stays None: a null pointer."""
    return tuple(None if a is None else array_module(device).asarray(a, order="C") for a in arrays)


def address(array: Array) -> int:
    """Where its memory begins."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def memory_errors() -> tuple[type[Exception], ...]:
    """What is raised where memory runs out, on the CPU and, if CuPy is in use, on a GPU."""
    in_use = "cupy" in sys.modules
    return (MemoryError, cupy().cuda.memory.OutOfMemoryError) if in_use else (MemoryError,)


def to_device(array: Array, device: str) -> Array:
    """Copies an array to `device`; an array that is already in the right memory is returned as it is."""
    if is_cuda(device):
        with cupy().cuda.Device(cuda_index(device)):
            return cupy().asarray(array)
    return array if isinstance(array, np.ndarray) else to_numpy(array)


def to_numpy(array: Array) -> np.ndarray:
    """The array in host memory; not copied if it is there already."""
    return array if isinstance(array, np.ndarray) else cupy().asnumpy(array)


def dispatch(*, cpu: Callable[..., Any], cuda: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """One leaf function out of two: `leaf(device, *arguments)` calls the one that is made for the device.

    `cpu(*arguments)` computes on NumPy arrays; `cuda(device, *arguments)` launches kernels, on the GPU or on the
    emulator.
    """

    def leaf(device: str, *arguments: Any) -> Any:
        if device == "cpu":
            return cpu(*arguments)
        if cuda is None:
            raise DeviceError(f"{cpu.__name__.strip('_')}: there is no CUDA kernel for this yet; use device 'cpu'")
        with on_device(device):
            return cuda(device, *arguments)

    return leaf
