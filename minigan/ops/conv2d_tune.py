"""Optional: the fastest of the ways to compute a convolution on this GPU, judged and timed once, and kept on disk.

MINIGAN_AUTOTUNE=1 turns it on. An environment variable, as it says something about a machine and not about a program;
off unless asked for, as another choice may round the last bits otherwise, and then a run is no longer the same on all
machines, nor before and after a new driver. The choices of a GPU are a JSON file in the cache folder (`MINIGAN_CACHE`),
which may be deleted at any time.
"""

import fcntl
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, cuda_index, is_cuda, memory_errors, on_device, to_device
from minigan.capture import active
from minigan.environment import switch
from minigan.kernels.source import FOLDER, KernelError

FORMAT = 2
REPEATS, SAMPLES = 8, 7  # calls in a graph; replays of it, of which the median counts


@dataclass(frozen=True)
class Choice:
    """slices: of a weight gradient's depth; None for the tile and the slices of conv2d_cuda's own rules."""

    rung: int
    tile: int | None = None
    slices: int | None = None


def enabled(device: str) -> bool:
    """Only a GPU's time can be taken."""
    return switch("MINIGAN_AUTOTUNE") and is_cuda(device)


def choose(
    device: str, problem: str, candidates: Sequence[Choice], run: Callable[[Choice, Any], Array], arrays: Sequence[Any]
) -> Choice:
    """The fastest of the candidates that are right, as the first is, the default; run(one, arrays) computes with one.

    In a capture nothing can be timed: what is not known yet is the default there.
    """
    known = _known(device)
    chosen = known.get(problem)
    if chosen is None or chosen not in candidates:  # not timed yet, or of a ladder that has changed
        if active() is not None:
            return candidates[0]

        @cache
        def expected() -> tuple[list[Any], Array]:
            drawn = _whole_numbers(device, arrays)
            return drawn, run(candidates[0], drawn)

        times = {one: _seconds(device, one, run, arrays, expected, problem) for one in candidates}
        chosen = min(candidates, key=lambda one: times[one])
        if times[chosen] == math.inf:
            return candidates[0]  # which raises what is wrong
        known[problem] = chosen
        _save(device, problem, chosen)
    return chosen


def _whole_numbers(device: str, arrays: Sequence[Any]) -> list[Any]:
    """As many arrays of -2 ... 2, with which every right candidate computes the same, to the bit.

    Such factors are the same in TF32, bf16 and fp16. Products are at most 4, so sums of up to 2^22 of them are exact in
    float32, in any order; and longer ones in practice, as of n random products they reach about 2 sqrt(n).
    """
    rng = np.random.default_rng(0)

    def drawn(array: Array) -> Array:
        numbers = rng.integers(-2, 3, 1_000_003, np.int8)  # again and again: no size of a layer divides a prime
        return to_device(np.resize(numbers, array.shape), device).astype(np.float32)

    return [drawn(one) if hasattr(one, "shape") else one for one in arrays]


def _seconds(
    device: str,
    one: Choice,
    run: Callable[[Choice, Any], Array],
    arrays: Any,
    expected: Callable[[], tuple[list[Any], Array]],
    problem: str,
) -> float:
    """Infinite, with a line of reason, for a candidate that this GPU does not run, or that is wrong."""
    try:
        with on_device(device):
            drawn, right = expected()
            result = run(one, drawn)
            same = bool((result == right).all())  # NaN is not
            result[...] = np.nan  # or the next candidate might get this memory, write nothing, and be right
        if not same:
            raise ValueError("its result is wrong: on small whole numbers it is not that of the default")
        return seconds(device, lambda: run(one, arrays))
    except (KernelError, ValueError, RuntimeError, *memory_errors()) as error:
        _say(f"{problem}: {one} is left out: {type(error).__name__}: {str(error).splitlines()[0]}")
        return math.inf


def seconds(device: str, work: Callable[[], Any]) -> float:
    """Of one call, without the time that Python takes to ask for it: the calls are replayed as a graph."""
    cuda = array_module(device).cuda
    with on_device(device), cuda.Stream() as stream:
        for _ in range(2):  # compiles; and the stream's memory is there when the capture asks for it
            work()
        stream.synchronize()
        stream.begin_capture()
        try:
            for _ in range(REPEATS):
                work()
        except BaseException:
            with suppress(RuntimeError):  # a capture that failed cannot be ended well
                stream.end_capture()
            raise
        graph = stream.end_capture()
        samples = []
        for _ in range(SAMPLES + 1):  # the first is not counted
            start, end = cuda.Event(), cuda.Event()
            start.record()
            graph.launch(stream)
            end.record()
            end.synchronize()
            samples.append(cuda.get_elapsed_time(start, end) / 1e3 / REPEATS)
    return sorted(samples[1:])[SAMPLES // 2]


# ---- what is kept ----------------------------------------------------------------------------------------------------


@cache
def _environment(device: str) -> dict[str, Any]:
    """All that a choice may depend on, besides the problem."""
    cupy = array_module(device)
    driver = Path("/proc/driver/nvidia/version")
    with on_device(device):
        name = cupy.cuda.runtime.getDeviceProperties(cuda_index(device))["name"].decode()
        return {
            "format": FORMAT,
            "gpu": name,
            "driver": driver.read_text().splitlines()[0] if driver.exists() else "unknown",
            "cuda_driver_api": cupy.cuda.runtime.driverGetVersion(),
            "cupy": cupy.__version__,
            "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
            "sources": _sources(),
        }


def _sources() -> str:
    """A hash of the text of all kernels of the ladder, and of what they include."""
    found = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.cuh"), *FOLDER.glob("conv2d/*.cu*")]):
        found.update(f"{path.name}\0{path.read_text()}\0".encode())
    return found.hexdigest()


def cache_file(environment: Mapping[str, Any]) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]
    return Path(os.environ.get("MINIGAN_CACHE") or Path(home) / "minigan") / "conv2d" / f"{key}.json"


@cache
def _known(device: str) -> dict[str, Choice]:
    """The choices of this GPU, by problem, which grow while the program runs."""
    return _load(_environment(device))


def _load(environment: Mapping[str, Any]) -> dict[str, Choice]:
    """What is on disk; nothing, and a line, where that is not such a file of this environment."""
    path = cache_file(environment)
    try:
        content = json.loads(path.read_text())
        if content["environment"] != environment:
            raise ValueError("it is of another GPU, driver or source")
        return {str(problem): _checked(given) for problem, given in content["choices"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _say(f"{path} is ignored: {type(error).__name__}: {error}")
        return {}


def _checked(given: Any) -> Choice:
    numbers = given if isinstance(given, list) and len(given) == 3 else [None]
    if not isinstance(numbers[0], int) or not all(one is None or type(one) is int for one in numbers):
        raise ValueError(f"expected rung, tile and slices, got {given!r}")
    return Choice(*numbers)


def _save(device: str, problem: str, chosen: Choice) -> None:
    """Adds to what is on disk now, where another process may have added meanwhile."""
    environment = _environment(device)
    path = cache_file(environment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when it is closed
            choices = {**_load(environment), problem: chosen}
            plain = {name: [one.rung, one.tile, one.slices] for name, one in choices.items()}
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"environment": environment, "choices": plain}, indent=1) + "\n")
            os.replace(part, path)
    except OSError as error:
        _say(f"{path} is not written: {error}")


def _say(text: str) -> None:
    print(f"MINIGAN_AUTOTUNE: {text}", file=sys.stderr)
