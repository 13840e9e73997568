"""Batches of images for training: shuffled, flipped, scaled; the same again after a resume."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from minigan.data.decode import Pixels
from minigan.data.sources import DataError


class Batches(Iterator[npt.NDArray[np.float32]]):
    """Batches without end. What one holds depends on the seed and the number of steps taken, on nothing else.

    images: (N, H, W, C), uint8.  A batch: (batch_size, H, W, C), float32, 0 scaled to `low`, 255 to `high`.
    Without `replacement` an epoch passes over the images in a fresh order (in their own unless `shuffle`); a
    last short batch is dropped. With it, each image of each batch is drawn from all of them.
    flip: mirror each image, left to right, with probability one half.
    share: of each batch only these rows, for one of many processes that train together; None: all of them.
    Raises DataError for fewer images than a batch.
    """

    def __init__(
        self,
        images: Pixels,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        replacement: bool = False,
        flip: bool = False,
        low: float = -1.0,
        high: float = 1.0,
        share: slice | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(f"images must be (N, H, W, C) of uint8, not {images.shape} of {images.dtype}")
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size must be at least 1 and seed at least 0, not {batch_size} and {seed}")
        if len(images) < batch_size:
            raise DataError(
                f"{len(images):,} images do not fill a batch of {batch_size:,}: "
                "add images, or choose a smaller batch size."
            )
        if replacement and not shuffle:
            raise ValueError("images drawn with replacement have no order to keep: leave shuffle on")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.replacement = replacement
        self.flip = flip
        self.share = share or slice(None)
        self.step = 0  # batches taken so far; everything else follows from it
        self.table = np.linspace(low, high, 256, dtype=np.float32)  # what each byte becomes; the ends are exact
        self._epoch_drawn = -1
        self._order = np.empty(0, np.int64)
        self._flips = np.empty(0, np.bool_)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the images; with replacement, in as many draws as images."""
        return len(self.images) // self.batch_size

    @property
    def epoch(self) -> int:
        """Whole epochs taken so far: 0 in the first one."""
        return self.step // self.batches_per_epoch

    def draw(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Take a step: which images, (batch_size,) int64, and which of them to mirror, (batch_size,) bool.

        Or the share of them. It is all that is random in a batch, for images that are gathered, mirrored and scaled
        elsewhere.
        """
        count = self.batch_size
        if self.replacement:
            rng = self._generator(self.step)
            indices = rng.integers(len(self.images), size=count)
            flips = self._draw_flips(rng, count)
        else:
            self._draw_epoch()
            start = self.step % self.batches_per_epoch * count
            indices = self._order[start : start + count]
            flips = self._flips[start : start + count]
        self.step += 1
        return indices[self.share], flips[self.share]

    def __next__(self) -> npt.NDArray[np.float32]:
        indices, flips = self.draw()
        batch = self.images[indices]
        batch[flips] = batch[flips, :, ::-1]
        return self.table.take(batch)

    def state_dict(self) -> dict[str, int]:
        """Where the batches stand. `step` says it all; the rest is for readers, and to check it by."""
        position = self.step % self.batches_per_epoch
        return {"epoch": self.epoch, "position": position, "step": self.step, "images": len(self.images)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken. Raises ValueError where images or batch size do not fit it."""
        if state["images"] != len(self.images):
            raise ValueError(
                f"there were {state['images']:,} images, and now there are {len(self.images):,}. "
                "Resume with the same images and batch size."
            )
        epoch, position = divmod(state["step"], self.batches_per_epoch)
        if (epoch, position) != (state["epoch"], state["position"]):
            raise ValueError(
                f"step {state['step']} was epoch {state['epoch']}, batch {state['position']}; with these "
                f"{len(self.images):,} images in batches of {self.batch_size} it is epoch {epoch}, "
                f"batch {position}. Resume with the same images and batch size."
            )
        self.step = state["step"]

    def _generator(self, turn: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(turn,))))

    def _draw_flips(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.bool_]:
        return rng.integers(2, size=count).astype(np.bool_) if self.flip else np.zeros(count, np.bool_)

    def _draw_epoch(self) -> None:
        """Order and flips of the epoch that this step is in: drawn whole, so that a resume can enter it."""
        if self.epoch == self._epoch_drawn:
            return
        rng, count = self._generator(self.epoch), len(self.images)
        self._order = rng.permutation(count) if self.shuffle else np.arange(count)
        self._flips = self._draw_flips(rng, count)
        self._epoch_drawn = self.epoch
