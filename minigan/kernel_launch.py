"""launch(): runs a kernel of kernels/*.cu on a GPU (CuPy) or on the emulator (NumPy), after checking every argument.

A raw kernel checks nothing: a wrong dtype, a strided view or an int of the wrong size is read as if it were
right. So all of it is checked here, once, against the C signature that stands in the source.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minigan.kernels.source import (
    KernelError,
    Macros,
    Parameter,
    Source,
    Variant,
    cache_folder,
    load,
    sources,
    supports,
)

# C types as NumPy's. bf16, which NumPy lacks, travels as its bits.
SCALARS: dict[str, np.dtype] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
    "unsigned int": np.dtype(np.uint32),
    "short": np.dtype(np.int16),
    "unsigned short": np.dtype(np.uint16),
    "signed char": np.dtype(np.int8),
    "unsigned char": np.dtype(np.uint8),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "size_t": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
}

# What the macro REAL stands for.
C_REALS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_ELEMENTS = 2**31 - 1  # what an int can count
# What sm_90 lends to a block; the emulator's limit.
EMULATED_SHARED_BYTES = 227 * 1024


def launch(
    source: str | Path,
    kernel: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Any],
    *,
    device: str,
    macros: Macros | None = None,
    shared_bytes: int = 0,
) -> None:
    """Runs `kernel` of `source` ("leaky_relu.cu") over `grid` blocks of `block` threads.

    args: arrays for pointers (None: a null pointer), Python or NumPy numbers for scalars, mappings for structs.
    device: "cuda", "cuda:N" (CuPy arrays; asynchronous, on the current stream) or "emulated" (NumPy arrays).
    macros: the variant, one of those that the source's head comment declares.
    shared_bytes: dynamic shared memory of a block.

    Raises TypeError or ValueError for an argument that does not fit, KernelError for what the kernel does wrong.
    """
    loaded = load(source)
    where = f"{loaded.label}: kernel {kernel}"
    signature = loaded.kernel(kernel)
    variant = loaded.variant(macros)
    index = _cuda_index(device, where)
    grid = _sizes("grid", grid, MAX_GRID, where)
    block = _sizes("block", block, MAX_BLOCK, where)
    if math.prod(block) > MAX_THREADS:
        raise ValueError(f"{where}: a block has at most {MAX_THREADS} threads, got {block}")
    if not isinstance(shared_bytes, int) or shared_bytes < 0:
        raise ValueError(f"{where}: shared_bytes is a number of bytes, got {shared_bytes!r}")
    if len(args) != len(signature.parameters):
        raise TypeError(
            f"{where}: expected {len(signature.parameters)} arguments "
            f"({', '.join(map(str, signature.parameters))}), got {len(args)}"
        )
    wide = kernel in loaded.wide_kernels
    values = []
    for parameter, value in zip(signature.parameters, args, strict=True):
        what = f"{where}: argument '{parameter}'"
        kind = _resolve(parameter.type, loaded, variant)
        if parameter.pointer:
            values.append(_check_array(value, kind, parameter, index, wide, what))
        else:
            values.append(_scalar(value, kind, loaded, variant, what))

    if index is None:
        _launch_emulated(loaded, variant, kernel, grid, block, values, shared_bytes, where)
    else:
        _launch_cuda(loaded, variant, kernel, grid, block, values, shared_bytes, index, where)


def launch_elements(
    source: str | Path, kernel: str, count: int, args: Sequence[Any], *, device: str, dtype: np.dtype
) -> None:
    """Runs a kernel with one thread for each of `count` elements; its REAL is `dtype`, its last argument the count."""
    if count:
        threads = min(256, -(-count // 32) * 32)
        macros: Macros = {"REAL": C_REALS[dtype]}
        launch(source, kernel, -(-count // threads), threads, [*args, count], device=device, macros=macros)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _cuda_index(device: str, where: str) -> int | None:
    """The number of the CUDA device; None for the emulator."""
    if device == "emulated":
        return None
    kind, colon, number = device.partition(":")
    if kind == "cuda" and (number.isdecimal() if colon else not number):
        return int(number or 0)
    raise ValueError(f"{where}: kernels run on 'cuda', 'cuda:N' or 'emulated', got device {device!r}")


def _sizes(name: str, value: int | Sequence[int], limits: tuple[int, int, int], where: str) -> tuple[int, int, int]:
    given = tuple(value) if isinstance(value, Sequence) else (value,)
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in given)
    if not 1 <= len(given) <= 3 or not whole:
        raise TypeError(f"{where}: {name} is one to three ints, got {value!r}")
    x, y, z = (*map(int, given), 1, 1)[:3]
    if not all(1 <= n <= limit for n, limit in zip((x, y, z), limits, strict=True)):
        raise ValueError(f"{where}: {name} {(x, y, z)} is not between (1, 1, 1) and {limits}")
    return x, y, z


def _resolve(kind: str, source: Source, variant: Variant) -> str:
    """A C type with its macros replaced: REAL is float."""
    macros = dict(variant.macros)
    for _ in range(8):
        if kind not in macros and kind not in source.defines:
            break
        kind = macros.get(kind) or source.defines[kind]
    return kind


def _element(kind: str) -> tuple[np.dtype, int] | None:
    """The dtype behind a pointer, and how many of it one element is: float4 is four float32."""
    if kind in SCALARS:
        return SCALARS[kind], 1
    base = {"u": "unsigned "}.get(kind[:1], "") + kind[:-1].removeprefix("u")
    base = {"char": "signed char", "unsigned int": "unsigned"}.get(base, base)
    return (SCALARS[base], int(kind[-1])) if kind[-1:] in ("2", "4") and base in SCALARS else None


def _check_array(value: Any, kind: str, parameter: Parameter, index: int | None, wide: bool, what: str) -> Any:
    """The array, if the kernel may read and write it as it is."""
    element = _element(kind)
    if element is None:
        raise TypeError(f"{what}: arrays of C type {kind!r} cannot be passed; use one of {', '.join(SCALARS)}")
    dtype, lanes = element
    if value is None:
        return None if index is None else np.zeros((), np.uint64)
    if index is None:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{what}: expected a NumPy array on 'emulated', got {_describe(value)}")
        if not value.flags.aligned or (not parameter.const and not value.flags.writeable):
            state = "read-only" if value.flags.aligned else "unaligned"
            raise ValueError(f"{what}: the array is {state}; pass a copy")
        address = value.ctypes.data
    else:
        if not isinstance(value, _cupy().ndarray):
            raise TypeError(f"{what}: expected a CuPy array on 'cuda:{index}', got {_describe(value)}")
        if value.device.id != index:
            raise ValueError(f"{what}: expected an array on 'cuda:{index}', got one on 'cuda:{value.device.id}'")
        address = value.data.ptr
    if value.dtype != dtype:
        raise TypeError(f"{what}: expected dtype {dtype}, got {value.dtype}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{what}: expected a C-contiguous array, got shape {value.shape} with strides {value.strides}; "
            "pass a contiguous copy"
        )
    if value.size > MAX_ELEMENTS and not wide:
        raise ValueError(
            f"{what}: {value.size} elements, but the kernel counts with int, up to {MAX_ELEMENTS}. Split the "
            "array; or let the kernel use long long, and list it in a `// 64-bit indices:` line"
        )
    alignment = min(16, lanes * dtype.itemsize)
    if lanes > 1 and (address % alignment or value.size % lanes):
        raise ValueError(
            f"{what}: expected {alignment}-byte aligned memory and a multiple of {lanes} elements, "
            f"got address {address:#x} and {value.size} elements"
        )
    return value


def _scalar(value: Any, kind: str, source: Source, variant: Variant, what: str) -> np.ndarray:
    """The value as C has it, in a 0-d array."""
    if kind in source.structs and kind not in SCALARS:
        return _struct(value, kind, source, variant, what)
    dtype = SCALARS.get(kind)
    if dtype is None:
        raise TypeError(
            f"{what}: C type {kind!r} cannot be passed; use one of {', '.join(SCALARS)} or a struct of them"
        )
    if dtype.kind == "b":
        wanted, fits = "a bool", isinstance(value, bool | np.bool_)
    elif dtype.kind == "f":
        wanted, fits = "a float", isinstance(value, float | np.floating)
    else:
        wanted, fits = "an int", isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not fits:
        raise TypeError(f"{what}: expected {wanted}, got {_describe(value)}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise ValueError(f"{what}: expected {limits.min} to {limits.max}, got {value}")
    elif dtype.kind == "f" and np.isfinite(value) and abs(value) > float(np.finfo(dtype).max):
        raise ValueError(f"{what}: {value} is more than a {dtype} can hold")
    return np.array(value, dtype)


def _struct(value: Any, kind: str, source: Source, variant: Variant, what: str) -> np.ndarray:
    """A mapping as the C struct of that name, every field checked like an argument."""
    # "rows", or "rows[80]" for an array
    declared = {name.partition("[")[0]: (name, field_kind) for name, field_kind in source.structs[kind]}
    if not isinstance(value, Mapping):
        raise TypeError(f"{what}: expected a mapping of the fields {', '.join(declared)}, got {_describe(value)}")
    if set(value) != set(declared):
        raise TypeError(f"{what}: expected the fields {', '.join(declared)}, got {', '.join(map(str, value))}")
    items = {}
    for name, (full_name, field_kind) in declared.items():
        resolved, where = _resolve(field_kind, source, variant), f"{what}, field {name}"
        if resolved not in SCALARS:
            raise TypeError(f"{where} has C type {resolved!r}; use one of {', '.join(SCALARS)}")
        length = full_name.partition("[")[2].rstrip("]")
        if length:
            items[name] = _field_array(value[name], SCALARS[resolved], int(_resolve(length, source, variant)), where)
        else:
            items[name] = _scalar(value[name], resolved, source, variant, where)
    packed = np.zeros((), np.dtype([(name, item.dtype, item.shape) for name, item in items.items()], align=True))
    for name, item in items.items():
        packed[name] = item
    return packed


def _field_array(value: Any, dtype: np.dtype, length: int, what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1 or len(value) > length:
        raise TypeError(f"{what}: expected a NumPy array of at most {length} {dtype}, got {_describe(value)}")
    return np.concatenate([value, np.zeros(length - len(value), dtype)])


def _describe(value: Any) -> str:
    module = type(value).__module__.partition(".")[0]
    if module in ("numpy", "cupy") and hasattr(value, "shape") and value.shape != ():
        return f"a {module} array of shape {value.shape}, dtype {value.dtype}"
    return f"{value!r} ({type(value).__name__})"


# ---- the two executors -----------------------------------------------------------------------------------------------


def _launch_emulated(
    source: Source,
    variant: Variant,
    kernel: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    values: list[Any],
    shared_bytes: int,
    where: str,
) -> None:
    from minigan.kernels import emulator

    if shared_bytes > EMULATED_SHARED_BYTES:
        raise ValueError(f"{where}: {shared_bytes} bytes of shared memory; a block has at most {EMULATED_SHARED_BYTES}")
    emulator.launch(source, variant, kernel, grid, block, values, shared_bytes)


@cache
def _cupy() -> Any:
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("kernels on 'cuda' need CuPy: pip install 'minigan[cuda12]' (or cuda13)") from error
    return cupy


@cache
def _cuda_function(source: Source, variant: Variant, kernel: str, index: int) -> Any:
    """The compiled kernel; the device is current. A changed file is another Source, hence another key."""
    module = _cuda_module(source, variant, index)
    try:
        return module.get_function(kernel)
    except _cupy().cuda.compiler.CompileException as error:
        raise KernelError(f"{source.label} ({variant}) does not compile:\n{error}") from error


def compile_all(index: int = 0) -> int:
    """Compiles all kernels, in all variants that cuda:index can run, into CuPy's cache; says how many.

    With an option (common.cuh) they are compiled when a network asks for them.

    In parallel: the compiler is thread-safe, and Python's lock is free while it works.
    """

    def compile_one(source: Source, variant: Variant) -> None:
        with _cupy().cuda.Device(index):  # each thread has a current device of its own
            _cuda_function(source, variant, next(iter(source.kernels)), index)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(compile_one, source, variant)
            for source in map(load, sources())
            for variant in source.variants
            if _able(variant, index)
        ]
        return len([job.result() for job in jobs])


def _able(variant: Variant, index: int) -> bool:
    """Whether a GPU runs the variant. What is for one architecture alone, such as sm_90a, all its devices can."""
    capability = _cupy().cuda.Device(index).compute_capability
    return supports(capability + "a" * variant.requires.endswith("a"), variant.requires)


@cache
def _cuda_module(source: Source, variant: Variant, index: int) -> Any:
    if not _able(variant, index):
        capability = _cupy().cuda.Device(index).compute_capability
        raise KernelError(
            f"{source.label} ({variant}) requires {variant.requires}, but 'cuda:{index}' is an sm_{capability}; "
            "choose another variant or kernel there"
        )
    if variant.requires.endswith("a"):
        return _cupy().RawModule(path=str(_cubin(source, variant)))
    return _cupy().RawModule(code=source.text, options=variant.nvrtc_options, backend="nvrtc")


def _cubin(source: Source, variant: Variant) -> Path:
    """The machine code for sm_90a, in a file: CuPy itself compiles for sm_90, never for sm_90a, but loads it."""
    nvrtc = _cupy().cuda.nvrtc
    options = (*variant.nvrtc_options, "-ftz=true", f"-arch={variant.requires}")  # -ftz: as CuPy compiles all others
    key = "\0".join([source.text, *options, str(nvrtc.getVersion())])
    target = cache_folder("cubin") / f"{source.path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"
    if not target.exists():
        program = nvrtc.createProgram(source.text, source.label, (), ())
        try:
            nvrtc.compileProgram(program, options)
            code = nvrtc.getCUBIN(program)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise KernelError(f"{source.label} ({variant}) does not compile for {variant.requires}:\n{log}") from error
        finally:
            nvrtc.destroyProgram(program)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".cubin", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(code)
        os.replace(temporary, target)  # at once: another process sees no half of it
    return target


def _launch_cuda(
    source: Source,
    variant: Variant,
    kernel: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    values: list[Any],
    shared_bytes: int,
    index: int,
    where: str,
) -> None:
    with _cupy().cuda.Device(index) as device:
        function = _cuda_function(source, variant, kernel, index)
        if shared_bytes > 48 * 1024:  # above this CUDA wants to be asked
            limit = device.attributes["MaxSharedMemoryPerBlockOptin"] - function.shared_size_bytes
            if shared_bytes > limit:
                raise ValueError(
                    f"{where}: {shared_bytes} bytes of dynamic shared memory, but 'cuda:{index}' has {limit} for it"
                )
            if function.max_dynamic_shared_size_bytes < shared_bytes:
                function.max_dynamic_shared_size_bytes = shared_bytes
        if math.prod(block) > function.max_threads_per_block:
            raise ValueError(
                f"{where}: blocks of {math.prod(block)} threads, but its registers or __launch_bounds__ allow "
                f"{function.max_threads_per_block}"
            )
        function(grid, block, tuple(values), shared_mem=shared_bytes)
