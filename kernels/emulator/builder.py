"""Builds kernel sources into shared libraries with the machine's C++ compiler, cached on disk by content."""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ..source import FOLDER, EmulatorError, KernelError, Source, cache_folder, without_comments

_HERE = Path(__file__).resolve().parent

NO_COMPILER = (
    "the emulator needs a C++ compiler (C++20: g++ 10 or clang 12, or newer), and none was found. "
    "Debian, Ubuntu: sudo apt install g++. Fedora: sudo dnf install gcc-c++. macOS: xcode-select --install. "
    "Or name one in CXX"
)


@cache
def _find_compiler(named: str | None) -> str:
    for candidate in [named] if named else ["g++", "clang++", "c++"]:
        path = shutil.which(candidate)
        if path:
            _compiler_version(path)  # refuses what is no compiler
            return path
    raise EmulatorError(NO_COMPILER if named is None else f"{NO_COMPILER} (CXX is {named!r}, which is not there)")


def compiler() -> str:
    return _find_compiler(os.environ.get("CXX"))


@cache
def _compiler_version(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True)
    except OSError as error:
        raise EmulatorError(f"{path} --version: {error.strerror}; expected a C++ compiler in CXX") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or "it did not say why").splitlines()[-1]
        raise EmulatorError(
            f"{path} --version failed with exit code {done.returncode}: {said}; expected a C++ compiler in CXX"
        )
    return done.stdout


@cache
def _processor_flags() -> tuple[str, ...]:
    """AVX2 and its companions where this processor has them all. The cache may be shared with another machine,
    so they are named one by one (and are part of the key), not asked of the compiler by -march=native."""
    wanted = {"avx2": "-mavx2", "fma": "-mfma", "f16c": "-mf16c", "bmi1": "-mbmi", "bmi2": "-mbmi2"}
    processor = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not processor.exists():
        return ()
    flags = next((line.split() for line in processor.read_text().splitlines() if line.startswith("flags")), [])
    return tuple(wanted.values()) if set(wanted) <= set(flags) else ()


def _flags(debug: bool, asan: bool, ucontext: bool) -> list[str]:
    flags = ["-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", *_processor_flags()]
    # Kernels read a float* as float4*, which nvcc allows; and they may fuse multiply and add, as nvcc does.
    flags += ["-fno-strict-aliasing", "-ffp-contract=fast"]
    # A thread has 128 KiB of stack (runtime.cpp), so large local arrays are refused here.
    flags.append("-Werror=frame-larger-than=65536")
    if "clang" not in _compiler_version(compiler()):
        flags.append("-fno-gnu-unique")  # several builds live in one process
    if asan:
        # bounds: an index beyond a row of a static array. alignment: a float4 at no multiple of 16.
        flags += ["-O1", "-g", "-fno-omit-frame-pointer"]
        flags += ["-fsanitize=address,bounds,alignment", "-fno-sanitize-recover=all"]
    elif debug:
        flags += ["-O0", "-g"]
    else:
        flags.append("-O2")
    if ucontext:
        flags.append("-DEMULATOR_UCONTEXT")
    return flags


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join([_compiler_version(compiler()), *parts]).encode()).hexdigest()[:24]


def _compile(target: Path, what: str, arguments: list[str], text: str | None = None) -> None:
    """Compiles, and renames the result to `target`: two processes that build the same see no half of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    except OSError as error:
        raise EmulatorError(
            f"compiled kernels cannot be written to {target.parent}: {error.strerror}; set MINIGAN_CACHE to a folder"
        ) from error
    os.close(handle)
    try:
        # The folder above kernels/ is where gdb looks for the "kernels/x.cu" of the #line marks.
        command = [compiler(), *arguments, "-o", temporary]
        done = subprocess.run(command, input=text, cwd=FOLDER.parent, capture_output=True, text=True)
        if done.returncode != 0:
            raise KernelError(f"{what} does not compile for the emulator:\n{done.stderr.strip()}")
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


@cache
def _runtime(flags: tuple[str, ...], folder: Path) -> Path:
    """The library with the scheduler and the tensor cores, which the kernels' libraries are linked to."""
    files = sorted([*_HERE.glob("*.cpp"), *_HERE.glob("*.h")])
    target = folder / f"runtime-{_key(*flags, *(file.read_text() for file in files))}.so"
    if not target.exists():
        code = [str(file) for file in files if file.suffix == ".cpp"]
        optimise = ["-O3"] if "-O2" in flags else []
        visible = ["-fvisibility=default", "-fno-semantic-interposition"]
        _compile(target, "the emulator itself", [*flags, *optimise, *visible, *code])
    return target


def _shared_names(declaration: str) -> list[str]:
    """The names that `__shared__ float a[2][N + 1], b;` declares; the text is without comments."""
    open_brackets, outside = "", ""  # outside: what stands in no brackets
    for character in declaration:
        if character in "([{" or (character == "<" and open_brackets in ("", "<")):
            open_brackets += character
        elif character in ")]}" or (character == ">" and open_brackets.endswith("<")):
            open_brackets = open_brackets[:-1]
            outside += " "
        elif not open_brackets:
            outside += character
    return [re.findall(r"\w+", declarator)[-1] for declarator in outside.split(",")]


def emulator_text(source: Source) -> str:
    """The source as the emulator compiles it: an Export before each kernel, a SharedArray behind each declaration
    of shared arrays. All of it is inserted within lines, so that line numbers stay."""
    insertions = {}
    for kernel in source.kernels.values():
        bounds = f", {kernel.launch_bounds}" if kernel.launch_bounds else ""
        insertions[kernel.start] = (
            f'extern "C" void {kernel.name}({kernel.parameter_text}); static const emulator::Export '
            f'emulated_{kernel.name}("{kernel.name}", emulator::call<{kernel.name}>{bounds}); '
        )
    plain = without_comments(source.text)
    for match in re.finditer(r"\b__shared__\b([^;{]*(?:\{[^}]*\}[^;]*)?);", plain):
        before = plain[plain.rfind("\n", 0, match.start()) + 1 : match.start()]
        if not re.search(r"^\s*#|\bextern\s*$", before):  # in a macro; DYN_SHARED's own
            names = _shared_names(match[1])
            insertions[match.end()] = "".join(
                f" static const emulator::SharedArray emulated_{name}({name});" for name in names
            )
    text = source.text
    for position in sorted(insertions, reverse=True):
        text = text[:position] + insertions[position] + text[position:]
    # In a namespace without a name: static arrays of inline functions are not merged with another library's.
    return f"namespace {{\n{text}\n}}\n"


@cache
def _header_text() -> str:
    return "".join(path.read_text() for path in sorted(_HERE.glob("*.h")))


def build(source: Source, macros: tuple[tuple[str, str], ...], *, debug: bool, asan: bool, ucontext: bool) -> Path:
    """The library of this source with these macros, built if it is not in the cache."""
    folder = cache_folder("emulator")
    flags = _flags(debug, asan, ucontext)
    runtime = _runtime(tuple(flags), folder)
    defines = [f"-D{name}={value}" for name, value in macros]
    text = emulator_text(source)
    target = folder / f"{source.path.stem}-{_key(text, _header_text(), str(runtime), *flags, *defines)}.so"
    if not target.exists():
        header = ["-include", str(_HERE / "cuda_emulator.h")]
        link = [str(runtime), f"-Wl,-rpath,{folder}"]
        arguments = [*flags, *defines, *header, "-x", "c++", "-", "-x", "none", *link]
        _compile(target, " ".join([source.label, *defines]), arguments, text)
    return target


def sanitizer_environment() -> dict[str, str]:
    """What a process needs in its environment to run kernels under AddressSanitizer."""
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        found = subprocess.run(
            [compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        if not Path(found).is_absolute():
            raise KernelError(
                f"{compiler()} has no {name}. Debian, Ubuntu: sudo apt install g++ (it brings libgcc-NN-dev)"
            )
        libraries.append(os.path.realpath(found))
    return {
        "MINIGAN_EMULATOR_ASAN": "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks
        "PYTHONMALLOC": "malloc",
    }


def sanitizer_is_loaded() -> bool:
    return hasattr(ctypes.CDLL(None), "__asan_init")
