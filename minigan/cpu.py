"""The CPU's executor: loops compiled by Numba, run over chunks of an array by a few threads.

A kernel is a plain function `kernel(start, stop, *arguments)` that does its work for the indices start ... stop - 1.
`parallel` shares the indices out. Kernels release Python's lock, so ordinary threads suffice: none of Numba's own
threading layers is used, which compile slowly and abort when two Python threads enter them at once.

Matrix products are BLAS's. They too run inside such shares, with BLAS itself held to one thread: its own threads would
keep spinning for a while after each product, on the very cores that the next loop needs.

How the indices are cut depends on the machine's number of threads, so a kernel that reduces must not let its result
depend on it: it writes one partial result per index, and the caller adds those up in order.
"""

import ctypes
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial, update_wrapper
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from types import FunctionType
from typing import Any

import numpy as np

from minigan.environment import SettingError

MOST_THREADS = 1024  # more of them are a slip of the keyboard, which the system may refuse only half way

# Less work than this is not worth a second thread, which has to wake up for it: elements of an array that is read and
# written once, and operations of a matrix product.
ELEMENTS_PER_THREAD = 65_536
OPERATIONS_PER_THREAD = 4_000_000

# What may be reordered to make use of vector instructions. Not "nnan" or "ninf": a NaN has to come through as a NaN.
FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}


class jit:
    """Compiles a kernel with Numba at its first call, so that importing minigan costs no compilation."""

    def __init__(self, function: Callable[..., None]) -> None:
        update_wrapper(self, function)
        self.function = function
        self.compiled: Callable[..., None] | None = None
        self.lock = threading.Lock()

    def __call__(self, *arguments: Any) -> None:
        (self.compiled or self.dispatcher())(*arguments)

    def dispatcher(self) -> Callable[..., None]:
        """Numba's, with those of the other kernels that this one calls. A division by zero is infinite, as in NumPy.

        Python's error for it would cost each loop with a division its vector instructions.
        """
        with self.lock:
            if self.compiled is None:
                function, names = self.function, self.function.__globals__
                called = {name: names[name] for name in function.__code__.co_names if isinstance(names.get(name), jit)}
                if called:
                    known = {**names, **{name: kernel.dispatcher() for name, kernel in called.items()}}
                    function = update_wrapper(FunctionType(function.__code__, known, function.__name__), function)
                # Nobody needs the entry for C that Numba would make besides: a tenth of the time.
                settings = {"fastmath": FAST_MATH, "error_model": "numpy", "no_cfunc_wrapper": True}
                self.compiled = _numba().njit(nogil=True, cache=True, **settings)(function)
        return self.compiled


@cache
def _numba() -> Any:
    """Numba, with a folder for its compiled code that can be written.

    Numba's own choice is beside the source file, which an installation for all users or a read-only disk forbids.
    """
    if "NUMBA_CACHE_DIR" not in os.environ and not os.access(Path(__file__).parent / "ops", os.W_OK):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "minigan" / "numba"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            folder = Path(tempfile.gettempdir()) / f"minigan-numba-{os.getuid()}"
        os.environ["NUMBA_CACHE_DIR"] = str(folder)
    import numba

    return numba


def thread_count() -> int:
    """How many threads to use: MINIGAN_NUM_THREADS, else as many as there are processors for this process."""
    named = os.environ.get("MINIGAN_NUM_THREADS", "")
    if named and not (named.isdecimal() and 1 <= int(named) <= MOST_THREADS):
        raise SettingError(f"MINIGAN_NUM_THREADS: expected a whole number from 1 to {MOST_THREADS:,}, got {named!r}")
    return int(named) if named else processors()


def processors() -> int:
    """How many there are for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# To sleep and to be woken takes some tens of microseconds, as long as many a share, so whoever waits first looks again
# and again for so many rounds, of about 20 nanoseconds each: longer than most pauses between the shares of a training
# step, and too short to keep a processor busy that others could use.
ROUNDS = 20_000
# The rounds in which the thread that shared out work comes to its own share's loop, and lets go of Python's lock:
# another thread that asked for the lock before that would sleep after all.
HEAD_START = 400
# Seconds. Where waiting takes so much longer than these rounds do, another program needed the processor, perhaps that
# of the thread that is waited for; then nobody looks for a while, and all sleep at once.
CROWDED, CROWDED_FOR = 0.002, 1.0


@jit
def _spin_loop(flags, target, rounds, head_start, marks, mark, own):  # type: ignore[no-untyped-def]
    """Sets marks[mark]; waits until the flags' sum is `target`, for at most so many rounds; then for the head start.

    All of it without Python's lock. Other threads set the flags. `own` is memory of this thread: a round writes a
    number there, which takes its time, and since this might be one of the flags, they are read anew in each round.
    """
    marks[mark] = 1
    number, left, found = own[0], rounds, False
    while left > 0:
        for _ in range(8):  # xorshift: each step needs the one before
            number ^= number << 13
            number ^= number >> 7
            number ^= number << 17
        own[0] = number
        left -= 1
        if not found:
            total = 0
            for i in range(len(flags)):
                total += flags[i]
            if total >= target:
                found, left = True, head_start


class _Team:
    """Threads that wait for work, for shares so short that what futures and their locks cost would be felt."""

    def __init__(self, threads: int) -> None:
        """threads: with the one that calls `run`."""
        self.threads = threads
        self.rounds = ROUNDS if threads <= processors() else 0
        self.shares: SimpleQueue[tuple[Callable[[], None], SimpleQueue[BaseException | None], np.ndarray, int]]
        self.shares = SimpleQueue()
        self.runs = np.zeros(1, np.int64)
        self.crowded_until = 0.0
        for i in range(1, threads):
            threading.Thread(target=self._work, name=f"minigan-{i}", daemon=True).start()

    def _work(self) -> None:
        own = _own_line()
        while True:
            share, done, finished, i = self.shares.get()
            seen, error = self.runs[0], None
            try:
                share()
            except BaseException as raised:  # it is the caller's, and raised there
                error = raised
            done.put(error)
            del share, done, error  # or the last share's arrays would live until the next one
            if self.shares.empty():
                self._spin(self.runs, seen + 1, HEAD_START, finished, i, own)

    def _spin(
        self, flags: np.ndarray, target: int, head_start: int, marks: np.ndarray, mark: int, own: np.ndarray
    ) -> None:
        """See `_spin_loop`; unless there are too many threads, or other programs, for the processors."""
        start = time.perf_counter()
        if self.rounds and start > self.crowded_until:
            _spin_loop(flags, target, self.rounds, head_start, marks, mark, own)
            end = time.perf_counter()
            if end - start > CROWDED:
                self.crowded_until = end + CROWDED_FOR

    def run(self, shares: Sequence[Callable[[], None]]) -> None:
        """Calls all shares, the first in this thread; returns when all are done. Raises what one of them raised."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        finished = np.zeros(len(shares) - 1, np.int64)
        self.runs[0] += 1
        for i, share in enumerate(shares[1:]):
            self.shares.put((share, done, finished, i))
        try:
            shares[0]()
        finally:
            own = _own_line()
            self._spin(finished, len(finished), 0, own, 1, own)
            errors = [done.get() for _ in shares[1:]]
        for error in errors:
            if error is not None:
                raise error


def _own_line() -> np.ndarray:
    """Two numbers that no other thread's memory shares a cache line with."""
    return np.ones(32, np.int64)[16:18]


@cache
def _team_of(named: str | None) -> _Team:
    return _Team(thread_count())


def _team() -> _Team:
    """As many threads as the environment says now: see `thread_count`."""
    return _team_of(os.environ.get("MINIGAN_NUM_THREADS"))


# A forked child has no threads: it must make its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_team_of.cache_clear)


def parallel(kernel: Callable[..., None], count: int, *arguments: Any, grain: int = 1) -> None:
    """Runs kernel(start, stop, *arguments) over 0 ... count - 1 on all threads; no share is smaller than `grain`."""
    shares = count // grain
    team = _team() if shares > 1 else None
    if team is None or team.threads == 1:
        kernel(0, count, *arguments)
        return
    shares = min(shares, team.threads)
    edges = [count * i // shares for i in range(shares + 1)]
    team.run([partial(kernel, start, stop, *arguments) for start, stop in pairwise(edges)])


def parallel_each(work: Callable[[Any], None], items: Sequence[Any], operations: int | None = None) -> None:
    """Calls work(item) for all items, on all threads; each takes the next item when it is free for one.

    operations: about how many arithmetic operations all of it takes. Little work is done by this thread alone.
    """
    shared = iter(items)

    def run() -> None:
        for item in shared:
            work(item)

    team = _team()
    alone = operations is not None and operations < OPERATIONS_PER_THREAD
    shares = 1 if alone else min(team.threads, len(items))
    if shares <= 1:
        run()
    else:
        team.run([run] * shares)


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, np.ndarray] = {}
        self.views: dict[tuple[str, tuple[int, ...], np.dtype], np.ndarray] = {}


_scratch = _Scratch()


def scratch(shape: tuple[int, ...], dtype: np.dtype, name: str = "") -> np.ndarray:
    """This thread's scratch memory of a name, uninitialised; valid until the thread asks for that name again.

    Fresh memory of this size would come page by page from the operating system each time, which costs as much as
    filling it.
    """
    view = _scratch.views.get((name, shape, dtype))
    if view is None:
        size = math.prod(shape) * dtype.itemsize
        buffer = _scratch.buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = _scratch.buffers[name] = np.empty(size, np.uint8)
            # Views of the smaller buffer would keep it alive.
            _scratch.views = {key: kept for key, kept in _scratch.views.items() if key[0] != name}
        view = _scratch.views[name, shape, dtype] = buffer[:size].view(dtype).reshape(shape)
    return view


def keep_memory() -> None:
    """Tells the C library not to give freed memory back to the operating system, for a program of many like steps.

    glibc returns large blocks, and the next step's arrays then come page by page, each with a call into the system, as
    many at a time as there are threads. Other libraries are left as they are.
    """
    library: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, (1 << 31) - 1)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """How to read and set the number of threads of the OpenBLAS inside NumPy's wheels; None for another BLAS."""
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for path in sorted(folder.glob("*openblas*")):
        library = ctypes.CDLL(str(path))
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            if hasattr(library, name.format("set")):
                return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None


_blas_lock = threading.Lock()
_blas_users = 0
_blas_threads = 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Holds BLAS to one thread inside a `with` block. Another BLAS than OpenBLAS is left as it is."""
    global _blas_users, _blas_threads
    blas = _openblas()
    if blas is None:
        yield
        return
    get, set_ = blas
    with _blas_lock:
        _blas_users += 1
        if _blas_users == 1:
            _blas_threads = get()
            set_(1)
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                set_(_blas_threads)


def parallel_flat(kernel: Callable[..., None], *arguments: Any) -> None:
    """Runs an elementwise kernel over flat views of its array arguments, all contiguous and of one size.

    Its index should be unsigned, as in `range(np.uintp(start), np.uintp(stop))`: a signed one might count from the end,
    and the provision for that keeps the loop from using vector instructions.
    """
    flat = [a.reshape(-1) if isinstance(a, np.ndarray) else a for a in arguments]
    size = next(a.size for a in flat if isinstance(a, np.ndarray))
    parallel(kernel, size, *flat, grain=ELEMENTS_PER_THREAD)
