"""The CPU's executor: every index once, errors of any thread, and forked children."""

import os
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
