"""The CPU's executor: every index once, errors of any thread, and forked children."""

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from minigan import cpu


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MINIGAN_NUM_THREADS", "3")
    cpu._team_of.cache_clear()
    yield
    cpu._team_of.cache_clear()


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


# ---- waiting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def enough_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "processors", lambda: 3)


def spin(flags: np.ndarray, target: int, rounds: int, head_start: int = 0) -> float:
    """Seconds of processor time that it takes; without Python's lock."""
    own, marks = cpu._own_line(), np.zeros(3, np.int64)
    cpu._spin_loop(flags, target, 0, 0, marks, 1, own)  # compiles it
    assert marks.tolist() == [0, 1, 0]
    start = time.thread_time()
    cpu._spin_loop(flags, target, rounds, head_start, marks, 2, own)
    assert marks.tolist() == [0, 1, 1]
    return time.thread_time() - start


def test_waiting_ends_when_another_thread_says_so() -> None:
    """It reads the flags anew in each round, and Python goes on meanwhile: else it would last for minutes."""
    flags = np.zeros(2, np.int64)

    def set_them() -> None:
        for i in range(2):
            time.sleep(0.02)
            flags[i] = 1

    threading.Thread(target=set_them).start()
    spin(flags, 2, 1 << 34)
    assert flags.tolist() == [1, 1]


def test_waiting_is_bounded() -> None:
    """No more rounds than were asked for; the head start comes after what was waited for, and not without it."""
    never, found = np.zeros(1, np.int64), np.ones(1, np.int64)
    long = spin(never, 1, 2_000_000)
    assert long > 20 * spin(never, 1, 20_000, 2_000_000)
    assert long > 20 * spin(found, 1, 2_000_000, 20_000)
    assert long < 10 * spin(found, 1, 20_000, 2_000_000)


def test_threads_sleep_when_there_is_nothing_to_do(enough_processors: None) -> None:
    cpu.parallel_each(lambda item: time.sleep(0.001), range(6))
    assert cpu._team().rounds == cpu.ROUNDS
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.03


def test_more_threads_than_processors_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would keep each other from what they wait for."""
    monkeypatch.setattr(cpu, "processors", lambda: 2)
    monkeypatch.setattr(cpu, "_spin_loop", lambda *arguments: pytest.fail("it does"))
    for _ in range(3):
        cpu.parallel_each(lambda item: time.sleep(0.001), range(6))


def test_nobody_spins_for_a_while_where_others_need_the_processors(
    enough_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting that lasts longer than its rounds do says so."""
    callers = []

    def spin_loop(*arguments: object) -> None:
        callers.append(threading.current_thread())
        time.sleep(2 * cpu.CROWDED)

    monkeypatch.setattr(cpu, "_spin_loop", spin_loop)
    monkeypatch.setattr(cpu, "CROWDED_FOR", 0.2)
    cpu.parallel_each(lambda item: time.sleep(0.001), range(6))
    assert threading.current_thread() in callers
    time.sleep(4 * cpu.CROWDED)  # all that were spinning have noticed
    before = len(callers)
    start = time.perf_counter()
    while time.perf_counter() < start + cpu.CROWDED_FOR / 4:
        cpu.parallel_each(lambda item: time.sleep(0.001), range(6))
    assert len(callers) == before
    time.sleep(cpu.CROWDED_FOR)
    cpu.parallel_each(lambda item: time.sleep(0.001), range(6))
    assert len(callers) > before


def test_all_is_done_once_whoever_spins_or_sleeps(enough_processors: None) -> None:
    """Two threads that share out work at once, with pauses shorter and longer than the others spin."""
    counts = np.zeros((2, 3), np.int64)

    def work(caller: int) -> None:
        for i in range(300):
            cpu.parallel_each(partial(add_one, caller), range(3))
            time.sleep(0.002 * (i % 50 == 0))

    def add_one(caller: int, item: int) -> None:
        counts[caller, item] += 1

    callers = [threading.Thread(target=work, args=(caller,)) for caller in range(2)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert (counts == 300).all()


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
