"""Loads built kernels and launches them."""

import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import ptx_interpreter
from ..source import KernelError, Source, Variant
from .builder import build, sanitizer_is_loaded


@dataclass(frozen=True)
class Options:
    """How the emulator builds and runs. Each has its environment variable, MINIGAN_EMULATOR_SEED and so on.

    seed: 0 runs blocks, warps and lanes in their natural order and lets asynchronous copies land as late as
        hardware may. Any other shuffles all three orders, and an odd one lets copies land at once. A kernel
        without races gives identical results for all (atomic additions of floats apart).
    debug: -O0 -g, for gdb.
    asan: AddressSanitizer; the process must run in builder.sanitizer_environment().
    ucontext: portable fibers also where there are fast ones.
    ptx: 80, or another architecture: what NVRTC makes for it is interpreted (ptx_interpreter), nothing is built.
    """

    seed: int = 0
    debug: bool = False
    asan: bool = False
    ucontext: bool = False
    ptx: int = 0


def _from_environment() -> Options:
    values = {}
    for name in ("seed", "debug", "asan", "ucontext", "ptx"):
        text = os.environ.get(f"MINIGAN_EMULATOR_{name.upper()}", "0")
        if not text.isdecimal():
            raise ValueError(f"MINIGAN_EMULATOR_{name.upper()}: expected a number (0: off), got {text!r}")
        values[name] = int(text)
    return Options(values["seed"], bool(values["debug"]), bool(values["asan"]), bool(values["ucontext"]), values["ptx"])


_chosen: Options | None = None  # by options(); else the environment decides
_one_launch_at_a_time = threading.Lock()  # the emulator's state is global


@contextmanager
def options(**changes: Any) -> Iterator[Options]:
    """`with options(seed=3): ...` runs kernels with other options than the environment's."""
    global _chosen
    before = _chosen
    _chosen = replace(before or _from_environment(), **changes)
    try:
        yield _chosen
    finally:
        _chosen = before


@cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.minigan_launch.restype = ctypes.c_char_p
    library.minigan_launch.argtypes = [
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint),
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_uint,
    ]
    return library


@cache
def _array_type(element: Any, length: int) -> Any:
    """A C array's type. Each one that ctypes makes anew is left to the garbage collector."""
    return element * length


_built: dict[tuple[Any, ...], ctypes.CDLL] = {}


def _load(source: Source, variant: Variant, chosen: Options) -> ctypes.CDLL:
    key = (source, variant, chosen.debug, chosen.asan, chosen.ucontext)
    library = _built.get(key)
    if library is None:
        if chosen.asan and not sanitizer_is_loaded():
            raise KernelError(
                "MINIGAN_EMULATOR_ASAN is set, but AddressSanitizer is not loaded into this process; "
                "start it by python -m minigan.kernels --sanitize PROGRAM ARGUMENTS..."
            )
        path = build(source, variant.macros, debug=chosen.debug, asan=chosen.asan, ucontext=chosen.ucontext)
        library = _built[key] = _library(path)
    return library


def _value(argument: np.ndarray | None, pointer: bool) -> np.ndarray:
    """As C has it: of an array, its address."""
    if argument is None:
        return np.zeros((), np.uint64)
    return np.array(argument.ctypes.data, np.uint64) if pointer else argument


def launch(
    source: Source,
    variant: Variant,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[np.ndarray | None],
    shared_bytes: int,
) -> None:
    """Runs a grid to its end. `arguments` are arrays for pointers (None: null), 0-d arrays with the values of the rest.

    Checks nothing: minigan.kernel_launch does. Raises KernelError for what goes wrong in the kernel.
    """
    chosen = _chosen or _from_environment()
    if chosen.ptx:
        return ptx_interpreter.launch(source, variant, kernel, grid, block, arguments, shared_bytes, chosen.ptx)
    library = _load(source, variant, chosen)
    parameters = source.kernel(kernel).parameters
    values = [_value(a, p.pointer) for p, a in zip(parameters, arguments, strict=True)]
    addresses = _array_type(ctypes.c_void_p, max(1, len(values)))(*(a.ctypes.data for a in values))
    sizes = _array_type(ctypes.c_uint, 3)(*grid), _array_type(ctypes.c_uint, 3)(*block)
    with _one_launch_at_a_time:
        error = library.minigan_launch(kernel.encode(), *sizes, shared_bytes, addresses, chosen.seed)
    if error is not None:
        raise KernelError(f"{source.label}: {error.decode()}")
