"""Random numbers for weights and noise, from one generator that can be seeded, saved and restored.

It is NumPy's Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): its state is small,
and the same seed gives the same numbers on every platform. First weights are drawn by it, on any device. Noise on a GPU
is drawn there, by the same authors' smaller generator, of which the key comes from NumPy's: other numbers than on the
CPU, as reproducible, and there is still one state to save.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, on_device, resolve_device
from minigan.capture import active
from minigan.kernel_launch import launch
from minigan.tensor import Tensor

# kernels/random.cu: threads of a block, numbers that each draws
THREADS, PER_THREAD = 256, 4

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


def _draw(shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Array]) -> Array:
    """Of a shape; where the batch is shared out, this process's rows of what is drawn for all of it."""
    if _share is None or not shape:
        return draw(shape)
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
    if device != "cpu":
        return _drawn("uniform", shape, device, low, high, below)
    values = _draw(shape, lambda s: _generator.uniform(low, high, s).astype(np.float32))
    return Tensor(np.asarray(np.minimum(values, below)))


def normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0, device: str | None = None) -> Tensor:
    """A float32 tensor of numbers drawn from the normal distribution."""
    device = resolve_device(device)
    if device != "cpu":
        return _drawn("normal", shape, device, mean, std)
    return Tensor(np.asarray(_draw(shape, lambda s: _generator.normal(mean, std, s)).astype(np.float32)))


def _drawn(kernel: str, shape: tuple[int, ...], device: str, *numbers: float) -> Tensor:
    """By a kernel of random.cu, on the device; a fresh key makes a fresh sequence of it."""
    capture = active()

    def draw(whole: tuple[int, ...]) -> Array:
        y = array_module(device).empty(whole, np.float32)
        key = None if capture is None else capture.numbers(_key, "uint64", 1)
        args = [y, *map(float, numbers), key, *(_key() if capture is None else (0,)), 0, y.size]
        if y.size:
            blocks = -(-y.size // (THREADS * PER_THREAD))
            launch("random.cu", kernel, blocks, THREADS, args, device=device, macros={"REAL": "float"})
        return y

    with on_device(device):
        return Tensor(_draw(shape, draw), device=device)


def _key() -> tuple[int]:
    return (int(_generator.integers(2**64, dtype=np.uint64)),)
