"""How kernels are run in tests: in three orders of warps, on poisoned memory between guards, to the same last bit."""

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from minigan.kernels.emulator import options

from minigan.block_counters import LIMIT, block_counters

SIZES = (1, 19, 33, 111, 256, 257, 1025)  # of a block, one more, and odd ones
DTYPES = ("float32", "float64")
REAL = {"float32": "float", "float64": "double"}
SEEDS = (0, 1, 2)  # orders in which threads may run
GUARD = 64  # elements in front of and behind each array that is allocated


def run(work: Callable[[], Any]) -> Any:
    """What `work` returns, an array or a tuple of them, the same for each order in which threads may run.

    Memory that it gets from np.empty holds NaN (integers: -77) and has guards around it, which must stay.
    """
    results = [_run(work, seed) for seed in SEEDS]
    for other in results[1:]:
        for a, b in zip(_tuple(results[0]), _tuple(other), strict=True):
            np.testing.assert_array_equal(a, b)  # two NaN are equal here
    return results[0]


def _run(work: Callable[[], Any], seed: int) -> Any:
    allocated = []

    def empty(shape: Any, dtype: Any = np.float64) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        filler = np.array(np.nan if np.dtype(dtype).kind == "f" else -77).astype(dtype)  # unsigned: the bits of -77
        whole = np.full(count + 2 * GUARD, filler)
        allocated.append(whole)
        return whole[GUARD : GUARD + count].reshape(shape)

    with pytest.MonkeyPatch.context() as patch, options(seed=seed):
        patch.setattr(np, "empty", empty)
        result = work()
    for whole in allocated:
        guards = np.concatenate([whole[:GUARD], whole[-GUARD:]])
        assert np.all(np.isnan(guards) if whole.dtype.kind == "f" else guards == np.array(-77).astype(whole.dtype)), (
            "written beyond the array"
        )
    return result


def _tuple(result: Any) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_within(actual: np.ndarray, expected: np.ndarray, limit: Any) -> None:
    """|actual - expected| <= limit everywhere, and of one shape; a NaN fails."""
    assert actual.shape == expected.shape, f"expected shape {expected.shape}, got {actual.shape}"
    difference = np.abs(actual.astype(np.float64) - expected)
    # "not <=" instead of ">", so that a NaN fails
    wrong = ~(difference <= limit)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ by up to {difference.max()}; allowed {np.max(limit)}"


def eps(dtype: Any) -> float:
    return float(np.finfo(dtype).eps)


def fenced(a: np.ndarray, at_end: bool = True) -> np.ndarray:
    """A copy right before memory that must not be read, or right behind such memory: there, the process dies."""
    page = mmap.PAGESIZE
    size = -(-max(a.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (address, address + page + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    copy = np.frombuffer(memory, a.dtype, a.size, page + at_end * (size - a.nbytes)).reshape(a.shape)
    copy[...] = a
    return copy


def strided(a: np.ndarray) -> np.ndarray:
    """The same values, every second element of memory that holds NaN elsewhere."""
    big = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    view = big[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def transposed(a: np.ndarray) -> np.ndarray:
    """The same values in Fortran's order."""
    return np.asfortranarray(a)


def check_counters():
    """Whatever counted its blocks on the emulator has left zeros behind."""
    with block_counters("emulated", LIMIT) as counters:
        assert not counters.any(), "the counters have to be zeros again"


# ---- 16 bits: fp16, and bf16 as its bits ---------------------------------------------------------------------------


def narrow(a: np.ndarray, precision: str) -> np.ndarray:
    """Rounded to nearest even; for bf16 by arithmetic, to 8 significant bits, which are the upper ones of float32."""
    if precision == "fp16":
        return a.astype(np.float16)
    mantissa, exponent = np.frexp(a.astype(np.float32))
    rounded = np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def wide(a: np.ndarray) -> np.ndarray:
    """Exactly the same values in float32."""
    return a.astype(np.float32) if a.dtype == np.float16 else (a.astype(np.uint32) << 16).view(np.float32)


def random_half(shape: tuple[int, ...], precision: str, seed: int) -> np.ndarray:
    """Right before memory that must not be read."""
    return fenced(narrow(1 + np.random.default_rng(seed).standard_normal(shape), precision))


def same(found: Any, expected: Any) -> None:
    """Arrays of the same dtypes, to the last bit."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
