"""Ctrl-C and termination: the step is finished and saved before the program ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether a signal asks the run to end: `number` is 0 until then. A second one ends it at once."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred_interrupts() -> Iterator[Interrupt]:
    """Inside the `with` block SIGINT, SIGTERM and SIGHUP (a closed terminal) only set the Interrupt."""
    interrupt = Interrupt()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
