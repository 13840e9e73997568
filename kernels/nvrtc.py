"""NVIDIA's runtime compiler, by its C interface: compiles CUDA C++ for any GPU, and needs none.

cuda.pathfinder, which comes with CuPy, finds the library: that of the pip package nvidia-cuda-nvrtc (which CuPy's
extra [ctk] installs), or of a CUDA toolkit.
"""

import ctypes
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

MISSING = "NVRTC, NVIDIA's CUDA compiler library, is not installed: pip install 'minigan[nvrtc]' (or cuda12, cuda13)"


class NvrtcError(RuntimeError):
    """NVRTC is missing, or does not compile a source."""


@cache
def _library() -> ctypes.CDLL:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.pathfinder") is None:
        raise NvrtcError(MISSING)
    pathfinder = importlib.import_module("cuda.pathfinder")
    try:
        path = pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path
    except pathfinder.DynamicLibNotFoundError as error:
        raise NvrtcError(MISSING) from error
    library = ctypes.CDLL(path)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def is_available() -> bool:
    try:
        _library()
    except NvrtcError:
        return False
    return True


def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def _check(status: int, what: str) -> None:
    if status != 0:
        raise NvrtcError(f"NVRTC, {what}: {_library().nvrtcGetErrorString(status).decode()}")


def _read(what: str, program: ctypes.c_void_p) -> bytes:
    """What was compiled, or said: nvrtcGet{what}."""
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)), f"reading the size of {what}")
    content = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, content), f"reading {what}")
    return content.raw


def _text(what: str, program: ctypes.c_void_p) -> str:
    return _read(what, program).rstrip(b"\0").decode(errors="replace")


class Compiled(NamedTuple):
    """What compiler and assembler said, the PTX code, and the machine code."""

    log: str
    ptx: str
    cubin: bytes


def compile_source(text: str, name: str, options: Sequence[str]) -> Compiled:
    """Compiles to machine code. Raises NvrtcError with the errors."""
    with _compiled(text, name, options) as (log, program):
        return Compiled(log, _text("PTX", program), _read("CUBIN", program))


def compile_ptx(text: str, name: str, options: Sequence[str]) -> str:
    """Compiles to PTX only, for an -arch=compute_NN. Raises NvrtcError with the errors."""
    with _compiled(text, name, options) as (_, program):
        return _text("PTX", program)


@contextmanager
def _compiled(text: str, name: str, options: Sequence[str]) -> Iterator[tuple[str, ctypes.c_void_p]]:
    """(what the compiler said, the compiled program)"""
    library = _library()
    program = ctypes.c_void_p()
    status = library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
    _check(status, "creating a program")
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), array)
        log = _text("ProgramLog", program)
        if status != 0:
            raise NvrtcError(f"{library.nvrtcGetErrorString(status).decode()}\n{log.strip()}")
        yield log, program
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
