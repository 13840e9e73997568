"""The one timing harness of the benchmarks, for the CPU and for a GPU.

    timer = HostTimer()                     # or CudaTimer(cupy, torch)
    times = interleave(timer, [Work("ours", call), Work("theirs", other)], seconds=1.0)
    times["ours"].cold.median               # seconds a call

What is compared is timed in one loop: in each round all works are timed once in a cold and once in a warm cache, in
random order, so that a slow moment of the machine meets all of them. Reported are the median and the quartiles.

- cold: a buffer larger than the last cache is written before each timed call, so its inputs come from memory.
- warm: the call runs once untimed, then some times in a row; a sample is the mean of those.
- On a GPU the clock is a pair of events on the stream that everything runs on. The calls are replayed from CUDA graphs,
  one with a single call, one with the repeats, so that Python's time between launches is not measured. A work that
  cannot be captured is timed without a graph, and its `note` says so.

Nothing here says whether a result is right; that comes before the timing.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LEAST_ROUNDS = 3
MOST_ROUNDS = 200
# A warm sample lasts about so long, in at most so many calls.
WARM_SECONDS = {"host": 0.02, "cuda": 0.002}
MOST_REPEATS = 50
# At least this much is written to empty the caches; and so many times the last cache.
FLUSH_BYTES = {"host": 64 << 20, "cuda": 256 << 20}
FLUSH_CACHES = {"host": 2, "cuda": 4}


@dataclass(frozen=True)
class Work:
    """Something to time. framework: whose arrays `call` works on, "numpy", "cupy" or "torch"; that one captures it."""

    name: str
    call: Callable[[], Any]
    framework: str = "numpy"


@dataclass(frozen=True)
class Spread:
    """Seconds a call: the median, the quartiles, the best, and of how many samples."""

    median: float
    low: float
    high: float
    best: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        if not samples or not all(0 < sample < float("inf") for sample in samples):
            raise ValueError(f"timing: expected positive finite times, got {list(samples)}")
        low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high), min(samples), len(samples))


@dataclass(frozen=True)
class Timing:
    """warm: None for a call so long that the budget was spent on its cold time."""

    cold: Spread
    warm: Spread | None
    note: str = ""


@dataclass
class Prepared:
    """A work that was warmed up. once, many: enqueue or do one call, and `repeats` of them."""

    once: Callable[[], Any]
    many: Callable[[], Any]
    repeats: int
    estimate: float  # seconds a call
    note: str = ""
    keep: tuple[Any, ...] = ()  # memory that the graphs write to


class Timer(Protocol):
    def prepare(self, work: Work, limit: float) -> Prepared:
        """Warms up; a call that takes longer than `limit` seconds is not warmed up further."""

    def cold(self, prepared: Prepared) -> float:
        """Seconds of one call, with nothing of its data in a cache."""

    def warm(self, prepared: Prepared) -> float:
        """Seconds a call, of some in a row."""


def interleave(
    timer: Timer,
    works: Sequence[Work],
    seconds: float,
    order: random.Random | None = None,
    least: int = LEAST_ROUNDS,
) -> dict[str, Timing]:
    """The times of all works, by name; all of them are measured in each round, in random order.

    seconds: for all rounds together; there are `least` of them at least. A work whose one call takes longer than that
    is timed once, cold, and left out of the other rounds.
    """
    if len({work.name for work in works}) != len(works):
        raise ValueError(f"interleave: expected different names, got {[work.name for work in works]}")
    order = order or random.Random(0)
    prepared = {work.name: timer.prepare(work, seconds) for work in works}
    cold: dict[str, list[float]] = {name: [] for name in prepared}
    warm: dict[str, list[float]] = {name: [] for name in prepared}
    steps = []
    for name, one in prepared.items():
        if one.estimate > seconds:
            cold[name].append(timer.cold(one))
            one.note = "; ".join(filter(None, [one.note, "timed once: one call is longer than the budget"]))
        else:
            steps += [(timer.cold, cold, name), (timer.warm, warm, name)]
    end = time.perf_counter() + seconds
    rounds = 0
    while steps and rounds < MOST_ROUNDS and (rounds < least or time.perf_counter() < end):
        order.shuffle(steps)
        for measure, samples, name in steps:
            samples[name].append(measure(prepared[name]))
        rounds += 1
    return {
        name: Timing(Spread.of(cold[name]), Spread.of(warm[name]) if warm[name] else None, one.note)
        for name, one in prepared.items()
    }


def _repeats(estimate: float, kind: str) -> int:
    return max(1, min(MOST_REPEATS, round(WARM_SECONDS[kind] / max(estimate, 1e-9))))


class HostTimer:
    """Times calls on the CPU by the wall clock."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, flush_bytes: int | None = None) -> None:
        self.clock = clock
        size = (
            max(FLUSH_BYTES["host"], FLUSH_CACHES["host"] * host_cache_bytes()) if flush_bytes is None else flush_bytes
        )
        self.buffer = np.ones(size // 4, np.float32)

    def prepare(self, work: Work, limit: float) -> Prepared:
        work.call()  # compiles, and takes memory from the operating system
        start = self.clock()
        work.call()
        estimate = self.clock() - start
        repeats = _repeats(estimate, "host")

        def many() -> None:
            for _ in range(repeats):
                work.call()

        return Prepared(work.call, many, repeats, estimate)

    def cold(self, prepared: Prepared) -> float:
        np.add(self.buffer, 1, out=self.buffer)
        start = self.clock()
        prepared.once()
        return self.clock() - start

    def warm(self, prepared: Prepared) -> float:
        prepared.once()
        start = self.clock()
        prepared.many()
        return (self.clock() - start) / prepared.repeats


def host_cache_bytes() -> int:
    """The size of the last cache as Linux tells it; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 0)
        if unit and text[:-1].isdecimal():
            sizes.append(int(text[:-1]) * unit)
    return max(sizes)


class CudaTimer:
    """Times work on one GPU by events, replayed from graphs.

    cupy, torch: the modules (torch only if there are works of it). Everything, also making the inputs, has to run
    inside `with timer.active():`, which makes one non-default stream the current one of both libraries: so what one of
    them writes is there when the other reads it, without any synchronisation between the two.
    """

    def __init__(self, cupy: Any, torch: Any = None, index: int = 0) -> None:
        self.cupy, self.torch, self.index = cupy, torch, index
        with cupy.cuda.Device(index) as device:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self.cache_bytes = int(device.attributes["L2CacheSize"])
            with self.stream:
                size = max(FLUSH_BYTES["cuda"], FLUSH_CACHES["cuda"] * self.cache_bytes)
                self.buffer = cupy.empty(size, np.uint8)
            self.start, self.stop = cupy.cuda.Event(), cupy.cuda.Event()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes this GPU and this stream the current ones of CuPy and PyTorch."""
        with ExitStack() as stack:
            stack.enter_context(self.cupy.cuda.Device(self.index))
            stack.enter_context(self.stream)
            if self.torch is not None:
                stack.enter_context(self.torch.cuda.device(self.index))
                stream = self.torch.cuda.ExternalStream(self.stream.ptr, device=self.index)
                stack.enter_context(self.torch.cuda.stream(stream))
            yield

    def prepare(self, work: Work, limit: float) -> Prepared:
        with self.active():
            work.call()  # compiles; cuDNN chooses its algorithm
            estimate = self._elapsed(work.call)
            if estimate > limit:
                return Prepared(work.call, work.call, 1, estimate)
            repeats = _repeats(estimate, "cuda")
            try:
                once, kept = self._capture(work, 1)
                many, kept_too = self._capture(work, repeats)
            except RuntimeError as error:  # CuPy's and PyTorch's errors from CUDA are RuntimeErrors
                self.stream.synchronize()

                def loop() -> None:
                    for _ in range(repeats):
                        work.call()

                return Prepared(work.call, loop, repeats, estimate, f"without a graph: {error}")
            prepared = Prepared(once, many, repeats, estimate, keep=(kept, kept_too))
            prepared.estimate = self._elapsed(once)
            return prepared

    def cold(self, prepared: Prepared) -> float:
        with self.active():
            self.buffer.data.memset_async(0, self.buffer.nbytes, self.stream)
            return self._elapsed(prepared.once)

    def warm(self, prepared: Prepared) -> float:
        with self.active():
            prepared.once()
            return self._elapsed(prepared.many) / prepared.repeats

    def _elapsed(self, enqueue: Callable[[], Any]) -> float:
        """Seconds between two events around what `enqueue` puts on the stream."""
        self.start.record(self.stream)
        enqueue()
        self.stop.record(self.stream)
        self.stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(self.start, self.stop)) / 1e3

    def _capture(self, work: Work, repeats: int) -> tuple[Callable[[], Any], Any]:
        """(what launches a graph of so many calls, what has to be kept for it)."""
        if work.framework == "torch":
            graph = self.torch.cuda.CUDAGraph()
            # Captured on a stream of PyTorch's, with a memory pool of the graph's own; replayed on the current one.
            with self.torch.cuda.graph(graph):
                for _ in range(repeats):
                    work.call()
            return graph.replay, graph
        # The graph writes to the addresses that it was captured with, so they come from a pool that nobody else uses.
        # One call fills it; those that are captured take the same blocks again, as they are freed after each call.
        pool = self.cupy.cuda.MemoryPool()
        with self.cupy.cuda.using_allocator(pool.malloc):
            work.call()
            self.stream.begin_capture()
            try:
                for _ in range(repeats):
                    work.call()
            except BaseException:
                self._abandon_capture()
                raise
            captured = self.stream.end_capture()
        return (lambda: captured.launch(self.stream)), (captured, pool)

    def _abandon_capture(self) -> None:
        """Ends a capture that went wrong, so that the stream can be used again; its own error is what matters."""
        with suppress(RuntimeError):
            self.stream.end_capture()
