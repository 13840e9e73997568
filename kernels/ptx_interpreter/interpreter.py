"""launch(): compiles a kernel to PTX and interprets it, block after block."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from .. import nvrtc
from ..source import KernelError, Source, Variant, cache_folder, supports
from . import scalar, tensor
from .block import Block, Step
from .memory import GlobalMemory
from .text import Instruction, Kernel, Name, PtxError, parse

_reachable: list[np.ndarray] = []


@contextmanager
def reachable(*arrays: np.ndarray) -> Iterator[None]:
    """Lets kernels reach arrays whose addresses travel in a struct, which nobody could tell from other numbers."""
    _reachable.extend(arrays)
    try:
        yield
    finally:
        del _reachable[len(_reachable) - len(arrays) :]


def ptx_of(source: Source, variant: Variant, architecture: str) -> str:
    """The PTX that NVRTC makes, kept in the cache."""
    # -ftz=true: CuPy adds it to every compilation.
    options = [*variant.nvrtc_options, "-ftz=true", f"-arch=compute_{architecture}"]
    key = "\0".join([source.text, *options, nvrtc.version()])
    file = cache_folder("ptx") / f"{source.path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.ptx"
    if not file.exists():
        text = nvrtc.compile_ptx(source.text, source.label, options)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(file)
    return file.read_text()


def _step(i: Instruction, kernel: Kernel) -> Step:
    guard = None if i.guard is None else (i.guard, i.negated)
    if i.opcode in ("bra", "bra.uni"):
        label = i.operands[0]
        if not isinstance(label, Name) or label.name not in kernel.labels:
            raise PtxError(f"{i.place}: no such label")
        return Step("branch", i.place, lambda block, lanes: None, guard, target=kernel.labels[label.name])
    if i.opcode in ("ret", "exit"):
        return Step("exit", i.place, lambda block, lanes: None, guard)
    if tensor.is_known(i):
        kind, execute, size = tensor.translate(i, kernel)
        return Step(kind, i.place, execute, guard, size)
    return Step("plain", i.place, scalar.translate(i, kernel), guard)


@cache
def _program(text: str, name: str) -> tuple[Kernel, list[Step]]:
    kernel = parse(text, name)
    return kernel, [_step(instruction, kernel) for instruction in kernel.instructions]


def launch(
    source: Source,
    variant: Variant,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[np.ndarray | None],
    shared_bytes: int,
    architecture: int,
) -> None:
    """Runs a grid to its end, as the emulator's launch() does."""
    needed = variant.requires.removeprefix("sm_")
    chosen = needed if needed.endswith("a") else str(architecture)
    if not supports(chosen, variant.requires):
        raise KernelError(f"{source.label} ({variant}) requires {variant.requires}, not sm_{chosen}")
    text = ptx_of(source, variant, chosen)
    parsed, steps = _program(text, kernel)
    parameters = source.kernel(kernel).parameters
    end = max((offset + size for offset, size in parsed.parameters.values()), default=0)
    packed = np.zeros(end, np.uint8)
    arrays = [(array, True) for array in _reachable]
    for (offset, size), parameter, value in zip(parsed.parameters.values(), parameters, arguments, strict=True):
        if parameter.pointer:
            if value is not None:
                arrays.append((value, not parameter.const))
            value = np.array(0 if value is None else value.ctypes.data, np.uint64)
        assert value is not None
        if value.nbytes != size:
            raise PtxError(
                f"{source.label}: {kernel}: argument {parameter} has {value.nbytes} bytes, PTX expects {size}"
            )
        packed[offset : offset + size] = np.frombuffer(value.tobytes(), np.uint8)
    memory = GlobalMemory(arrays)
    x, y, z = grid
    try:
        with np.errstate(all="ignore"):
            for number in range(x * y * z):
                ctaid = (number % x, number // x % y, number // (x * y))
                sizes = {"ntid": block, "nctaid": grid, "ctaid": ctaid}
                Block(parsed, steps, packed, memory, shared_bytes, sizes).run()
    except PtxError as error:
        raise PtxError(f"{source.label} ({variant}), block {ctaid}: {error}") from error
