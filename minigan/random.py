"""Random numbers for weights and noise, from one generator that can be seeded, saved and restored.

NumPy's Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): its state is small, and
the same seed gives the same numbers on every platform. Numbers are drawn on the CPU and then moved, so a device
changes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigan.backend import resolve_device, to_device
from minigan.tensor import Tensor

_generator = np.random.Generator(np.random.Philox())
_share: tuple[slice, int] | None = None


def manual_seed(seed: int) -> None:
    """Starts the generator anew: what follows depends on `seed` (a whole number from 0) alone."""
    global _generator
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"manual_seed: expected a whole number from 0, got {seed!r}")
    _generator = np.random.Generator(np.random.Philox(int(seed)))


def generator() -> np.random.Generator:
    """The generator in use, for what needs NumPy's other distributions."""
    return _generator


def get_state() -> dict[str, Any]:
    """The generator's state, for a checkpoint: plain numbers and lists, so JSON can hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    return plain(_generator.bit_generator.state)


def set_state(state: dict[str, Any]) -> None:
    """Goes on from a state that `get_state` returned."""
    inner = {k: np.asarray(v, np.uint64) for k, v in state["state"].items()}
    _generator.bit_generator.state = {**state, "state": inner, "buffer": np.asarray(state["buffer"], np.uint64)}


@contextmanager
def share_of_batch(rows: slice, total: int) -> Iterator[None]:
    """For one of many processes that train together: inside, tensors are drawn for a batch of `total` images.

    Of them this process gets `rows`. The generator stays the same in all processes, whatever their number, and no two
    of them see the same noise. A tensor's first axis has to be that of this process's images; a number, of shape (), is
    the same for all.
    """
    global _share
    before, _share = _share, (rows, total)
    try:
        yield
    finally:
        _share = before


def _draw(shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Any]) -> np.ndarray:
    if _share is None or not shape:
        return np.asarray(draw(shape))
    rows, total = _share
    if shape[0] != rows.stop - rows.start:
        raise ValueError(
            f"random: in a training step on several ranks expected a tensor for this rank's {rows.stop - rows.start} "
            f"images along its first axis, or a number of shape (), got shape {shape}"
        )
    return draw((total, *shape[1:]))[rows]


def uniform(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, device: str | None = None) -> Tensor:
    """A float32 tensor of numbers drawn evenly from [low, high)."""
    device = resolve_device(device)
    # Rounding to float32 may arrive at `high` itself.
    below = np.nextafter(np.float32(high), np.float32(low))
    values = np.minimum(_draw(shape, lambda s: _generator.uniform(low, high, s)).astype(np.float32), below)
    return Tensor(to_device(np.asarray(values), device), device=device)


def normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0, device: str | None = None) -> Tensor:
    """A float32 tensor of numbers drawn from the normal distribution."""
    device = resolve_device(device)
    values = _draw(shape, lambda s: _generator.normal(mean, std, s)).astype(np.float32)
    return Tensor(to_device(values, device), device=device)
