"""Random numbers for weights and noise, from one generator that can be seeded, saved and restored.

It is NumPy's Philox generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): its state is small,
and the same seed gives the same numbers on every platform. First weights are drawn by it, on any device. Noise on a GPU
is drawn there, by the same authors' smaller generator, of which the key comes from NumPy's: other numbers than on the
CPU, as reproducible, and there is still one state to save.
"""

from typing import Any

import numpy as np

from minigan.backend import array_module, on_device, resolve_device
from minigan.capture import active
from minigan.kernel_launch import launch
from minigan.tensor import Tensor

# kernels/random.cu: threads of a block, numbers that each draws
THREADS, PER_THREAD = 256, 4

_generator = np.random.Generator(np.random.Philox())


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


def uniform(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, device: str | None = None) -> Tensor:
    """A float32 tensor of numbers drawn evenly from [low, high)."""
    device = resolve_device(device)
    # Rounding to float32 may arrive at `high` itself.
    below = np.nextafter(np.float32(high), np.float32(low))
    if device != "cpu":
        return _drawn("uniform", shape, device, low, high, below)
    return Tensor(np.asarray(np.minimum(_generator.uniform(low, high, shape).astype(np.float32), below)))


def normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0, device: str | None = None) -> Tensor:
    """A float32 tensor of numbers drawn from the normal distribution."""
    device = resolve_device(device)
    if device != "cpu":
        return _drawn("normal", shape, device, mean, std)
    return Tensor(np.asarray(_generator.normal(mean, std, shape).astype(np.float32)))


def _drawn(kernel: str, shape: tuple[int, ...], device: str, *numbers: float) -> Tensor:
    """By a kernel of random.cu, on the device; a fresh key makes a fresh sequence of it."""
    capture = active()
    with on_device(device):
        y = array_module(device).empty(shape, np.float32)
        key = None if capture is None else capture.numbers(_key, "uint64", 1)
        args = [y, *map(float, numbers), key, *(_key() if capture is None else (0,)), 0, y.size]
        if y.size:
            blocks = -(-y.size // (THREADS * PER_THREAD))
            launch("random.cu", kernel, blocks, THREADS, args, device=device, macros={"REAL": "float"})
    return Tensor(y, device=device)


def _key() -> tuple[int]:
    return (int(_generator.integers(2**64, dtype=np.uint64)),)
