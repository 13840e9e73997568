"""Numbers that change from step to step in work that is captured once and replayed: a CUDA graph.

A graph repeats its launches with the arguments that they were captured with. What the host works out anew for each
step, such as the key of random numbers or Adam's rates, its kernels read from device memory instead: whoever launches
one during a capture asks for words there, and says how to fill them. They are filled before each replay, in that order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minigan.backend import Array, array_module, on_device
from minigan.kernel_launch import launch

WORDS = 64  # kernels/graph.cu


class CaptureError(RuntimeError):
    """Work that cannot be captured."""


class Capture:
    """The words of one captured piece of work."""

    def __init__(self, device: str) -> None:
        self.device = device
        with on_device(device):
            self.words: Array = array_module(device).empty(WORDS, np.uint64)
        self.sources: list[tuple[Callable[[], Sequence[float]], str, int]] = []
        self.count = 0

    def numbers(self, source: Callable[[], Sequence[float]], dtype: str, count: int) -> Array:
        """Device memory (count,) of a 64-bit dtype, which holds what source() returns at each replay."""
        if self.count + count > WORDS:
            raise CaptureError(f"a graph has {WORDS} numbers that change; these would be {self.count + count}")
        self.sources.append((source, dtype, count))
        self.count += count
        return self.words[self.count - count : self.count].view(dtype)

    def fill(self) -> None:
        """Asks every source, in order, and puts its numbers into their place."""
        values = [np.array(source(), dtype).view(np.uint64) for source, dtype, _ in self.sources]
        if values:
            words = {"words": np.concatenate(values)}
            launch("graph.cu", "set_words", 1, WORDS, [words, self.words, self.count], device=self.device)


_active: Capture | None = None


def active() -> Capture | None:
    """The capture that is under way, if one is."""
    return _active


@contextmanager
def capturing(capture: Capture) -> Iterator[None]:
    """Inside, launches are captured, and `active` says so."""
    global _active
    before, _active = _active, capture
    try:
        yield
    finally:
        _active = before
