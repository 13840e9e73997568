"""Counters in device memory by which the blocks of a launch find out which one comes last: kernels/last_block.cuh."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, is_cuda

LIMIT = 1 << 16

_counters: dict[tuple[Any, ...], Array] = {}


@contextmanager
def block_counters(device: str, count: int) -> Iterator[Array | None]:
    """Zeros (count,) for one launch, which leaves zeros behind: they are filled once. None for a count of 0.

    Launches of a stream follow each other, so they share theirs. They are never given back, as a graph may have been
    captured with them. Raises ValueError above LIMIT.
    """
    if count > LIMIT:
        raise ValueError(f"expected a launch that counts its blocks with at most {LIMIT} counters, got {count}")
    if count == 0:
        yield None
        return
    xp, stream = array_module(device), None
    key: tuple[Any, ...] = xp, device
    if is_cuda(device):
        stream = xp.cuda.get_current_stream()
        # A thread may have a default stream of its own, under the same number as the others'.
        key = xp, device, stream.ptr, get_ident()
    zeros = _counters.get(key)
    if zeros is None:
        zeros = xp.zeros(LIMIT, np.uint32)
        if stream is None or not stream.is_capturing():  # else it is the graph that fills them, at each replay
            _counters[key] = zeros
    try:
        yield zeros[:count]
    except BaseException:
        if stream is None:  # some blocks of the emulator's launch have counted; a GPU's has not begun, or is its last
            _counters.pop(key, None)
        raise
