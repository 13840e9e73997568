"""Batches on the device that trains: on a GPU the data set lies there as bytes, and no image crosses the bus again."""

from collections.abc import Iterator

import numpy as np

from minigan.backend import array_module, on_device, to_device
from minigan.data import Batches
from minigan.kernel_launch import launch
from minigan.tensor import Tensor

THREADS = 256


def feed(batches: Batches, device: str) -> Iterator[Tensor]:
    """The batches without end, as float32 tensors (batch, H, W, 3) on the device."""
    return (Tensor(batch) for batch in batches) if device == "cpu" else _gathered(batches, device)


def _gathered(batches: Batches, device: str) -> Iterator[Tensor]:
    """Each batch gathered, mirrored and scaled by one kernel; only indices and flips are sent."""
    count, height, width, channels = batches.images.shape
    images, table = to_device(np.asarray(batches.images), device), to_device(batches.table, device)
    while True:
        indices, flips = (to_device(a, device) for a in batches.draw())
        with on_device(device):
            y = array_module(device).empty((len(indices), height, width, channels), np.float32)
            sizes = [count, len(indices), height, width, channels]
            arguments = [images, indices, flips, table, y, *sizes]
            launch("batch.cu", "gather_images", -(-y.size // THREADS), THREADS, arguments, device=device)
        yield Tensor(y, device=device)
