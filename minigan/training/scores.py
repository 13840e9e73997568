"""What samples are measured by while a run goes on: always by the same noise, so that scores can be compared."""

from functools import cached_property

import numpy as np

import minigan as mg
from minigan.metrics import ms_ssim_diversity, sliced_wasserstein
from minigan.models import Generator
from minigan.training.errors import UserError

# How many images each side of a comparison has.
COMPARED = 512


class Scores:
    """Compares a generator with the data. images: uint8 (N, H, W, 3), of which at most 512 are used."""

    def __init__(self, images: np.ndarray, seed: int) -> None:
        chosen = np.linspace(0, len(images) - 1, min(COMPARED, len(images))).astype(int)
        self.real = np.asarray(images[chosen])
        self.seed = seed

    def distance(self, generator: Generator) -> float:
        """The mean, over the scales, of the sliced Wasserstein distance between the data and as many samples."""
        return float(np.mean(sliced_wasserstein(self.real, self._samples(generator))))

    def all(self, generator: Generator) -> dict[str, float]:
        """swd: that distance. ms_ssim: the likeness of pairs of samples, beside ms_ssim_data, that of the data."""
        fake = self._samples(generator)
        return {
            "swd": float(np.mean(sliced_wasserstein(self.real, fake))),
            "ms_ssim": ms_ssim_diversity(fake),
            "ms_ssim_data": self.likeness_of_data,
        }

    @cached_property
    def likeness_of_data(self) -> float:
        return ms_ssim_diversity(self.real)

    def expect_measurable(self) -> None:
        """Raises UserError for images that the scores are not defined for: too small, or a single one."""
        try:
            _ = self.likeness_of_data
        except ValueError as error:
            raise UserError(f"--metrics-every: {error}") from None

    def _samples(self, generator: Generator) -> np.ndarray:
        """By random numbers of their own, so that measuring does not change the run."""
        state = mg.random.get_state()
        mg.manual_seed(self.seed + 1)
        fake = generator.generate(generator.noise(len(self.real)))
        mg.random.set_state(state)
        return fake
