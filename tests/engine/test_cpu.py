"""The CPU's executor: every index once, errors of any thread, and forked children."""

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from minigan import cpu


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MINIGAN_NUM_THREADS", "3")
    cpu._team.cache_clear()
    yield
    cpu._team.cache_clear()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 1001])
@pytest.mark.parametrize("grain", [1, 4])
def test_each_index_is_done_once(count: int, grain: int) -> None:
    seen = np.zeros(count, int)
    threads = set()

    def kernel(start: int, stop: int, array: np.ndarray) -> None:
        threads.add(threading.get_ident())
        array[start:stop] += 1
        time.sleep(0.01)  # so that no thread is quick enough for two shares

    cpu.parallel(kernel, count, seen, grain=grain)
    assert (seen == 1).all()
    assert len(threads) == max(1, min(3, count // grain))


def test_each_item_is_done_once_and_little_work_by_the_calling_thread_alone() -> None:
    done: list[tuple[int, int]] = []

    def work(item: int) -> None:
        done.append((item, threading.get_ident()))
        time.sleep(0.005)

    cpu.parallel_each(work, range(12))
    assert sorted(item for item, _ in done) == list(range(12))
    assert len({thread for _, thread in done}) == 3
    done.clear()
    cpu.parallel_each(work, range(12), cpu.OPERATIONS_PER_THREAD - 1)
    assert {thread for _, thread in done} == {threading.get_ident()}
    cpu.parallel_each(work, [])


def test_an_error_of_any_thread_is_raised_when_all_are_done() -> None:
    finished = []

    def work(item: int) -> None:
        time.sleep(0.02 * (item + 1))
        if item == 1:
            raise ValueError("item 1")
        finished.append(item)

    for _ in range(3):  # and the threads go on working afterwards
        with pytest.raises(ValueError, match="item 1"):
            cpu.parallel_each(work, range(3))
        assert sorted(finished) == [0, 2]
        finished.clear()


def test_a_forked_child_makes_threads_of_its_own() -> None:
    cpu.parallel_each(lambda item: time.sleep(0.001), range(6))
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns: there are threads
        child = os.fork()
    if child == 0:
        done: list[int] = []
        cpu.parallel_each(done.append, range(6))
        os.write(writing, bytes([len(done)]))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        assert answer.read() == bytes([6])
    assert os.waitpid(child, 0)[1] == 0


# ---- compiled kernels that call others -----------------------------------------------------------------------------


@cpu.jit
def add_to(array, i, value):  # type: ignore[no-untyped-def]
    array[i] += value


@cpu.jit
def add_twice(array, i, value):  # type: ignore[no-untyped-def]
    add_to(array, i, value)
    add_to(array, i, value)


@cpu.jit
def count_loop(start, stop, array):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        add_twice(array, i, i)
        add_to(array, i, 1)


def test_a_compiled_kernel_may_call_others() -> None:
    """They are compiled into it, also those that they call; none of them need have been called before."""
    for dtype in (np.float64, np.int64):
        array = np.zeros(33, dtype)
        cpu.parallel(count_loop, 33, array)
        assert np.array_equal(array, 2 * np.arange(33) + 1)
    assert add_twice.compiled is not None  # once, for all that call it
    array = np.zeros(3)
    add_twice(array, 1, 2.5)  # and by itself it is a kernel too
    assert array.tolist() == [0, 5, 0]
    assert count_loop.__name__ == "count_loop"
    assert count_loop.function.__globals__["add_to"] is add_to  # the module is left as it is


def test_kernels_are_called_from_their_own_files_only() -> None:
    """Numba keeps what it compiled until the kernel's own file changes: it does not look at those of what it calls."""
    found = 0
    for module in [m for name, m in sorted(sys.modules.items()) if name.startswith("minigan.")]:
        kernels = {name: value for name, value in vars(module).items() if isinstance(value, cpu.jit)}
        for kernel in kernels.values():
            for name in set(kernels) & set(kernel.function.__code__.co_names):
                assert kernels[name].__module__ == kernel.__module__, f"{kernel.__name__} calls {name} of another file"
                found += 1
    assert found >= 3  # those of Winograd's filtering


# ---- scratch memory ------------------------------------------------------------------------------------------------


def test_scratch_memory_has_names() -> None:
    """Each name's memory is its own, and stays until that name is asked for again; it grows when it must."""
    dtype = np.dtype(np.float32)
    a, b = cpu.scratch((3, 5), dtype, "test a"), cpu.scratch((15,), np.dtype(np.float64), "test b")
    assert (a.shape, a.dtype, b.shape, b.dtype) == ((3, 5), dtype, (15,), np.dtype(np.float64))
    assert a.flags.c_contiguous
    assert not np.shares_memory(a, b)
    a.fill(1)
    b.fill(2)
    assert (a == 1).all()
    assert np.shares_memory(a, cpu.scratch((2, 7), dtype, "test a"))  # it fits
    larger = cpu.scratch((100, 5), dtype, "test a")
    larger.fill(3)
    assert (a == 1).all()  # what is still held is not taken away
    assert not np.shares_memory(larger, cpu.scratch((3,), dtype))  # no name is a name too
    assert cpu.scratch((0, 4), dtype, "test a").shape == (0, 4)


def test_scratch_memory_is_the_threads_own() -> None:
    mine = cpu.scratch((7,), np.dtype(np.int64), "test")
    shared = []

    def other() -> None:
        shared.append(np.shares_memory(mine, cpu.scratch((7,), np.dtype(np.int64), "test")))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert shared == [False]
