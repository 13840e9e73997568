"""Batches on the device that trains: on a GPU the data set lies there as bytes, and no image crosses the bus again."""

from collections.abc import Iterator

import numpy as np

from minigan.backend import Array, array_module, on_device, to_device
from minigan.data import Batches
from minigan.kernel_launch import launch
from minigan.tensor import Tensor

THREADS = 256
ROWS = 512  # kernels/batch.cu: images of a launch


def feed(batches: Batches, device: str) -> Iterator[Tensor]:
    """The batches without end, as float32 tensors (batch, H, W, 3) on the device."""
    return (Tensor(batch) for batch in batches) if device == "cpu" else _gathered(batches, device)


def _gathered(batches: Batches, device: str) -> Iterator[Tensor]:
    """Each batch gathered, mirrored and scaled by a kernel, whose arguments say which images: nothing is copied."""
    images, table = to_device(np.asarray(batches.images), device), to_device(batches.table, device)
    while True:
        yield Tensor(gather(images, table, *batches.draw(), device), device=device)


def gather(images: Array, table: Array, indices: np.ndarray, flips: np.ndarray, device: str) -> Array:
    """images (count, H, W, C) uint8, table (256,) -> the batch (len(indices), H, W, C), in float32."""
    count, *sizes = images.shape
    rows = np.where(flips, ~indices, indices).astype(np.int32)
    with on_device(device):
        y = array_module(device).empty((len(rows), *sizes), np.float32)
        for start in range(0, len(rows), ROWS):
            part, chosen = y[start : start + ROWS], rows[start : start + ROWS]
            arguments = [images, {"images": chosen}, table, part, count, len(chosen), *sizes]
            launch("batch.cu", "gather_images", -(-part.size // THREADS), THREADS, arguments, device=device)
    return y
