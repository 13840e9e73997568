"""What a run depends on, besides its data: the hyper-parameters of a preset."""

from dataclasses import dataclass

from minigan.ops.geometry import Pair


class Epochs(int):
    """A duration in passes over the data; where a plain int would be a number of steps."""

    def __repr__(self) -> str:
        return f"Epochs({int(self)})"


def in_steps(duration: int, steps_per_epoch: int) -> int:
    """A duration as a number of training steps."""
    return int(duration) * steps_per_epoch if isinstance(duration, Epochs) else duration


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters that every system has; each adds its own in a subclass.

    image_size: (height, width) in pixels. base_channels: the width of the networks. z_size: of the noise.
    steps: how long to train. sample_every, checkpoint_every: when to save a grid of samples, and everything. These
    three are steps, or Epochs. samples, columns: how many images a grid has, and how many stand side by side.
    """

    image_size: Pair
    batch_size: int
    steps: int
    sample_every: int
    checkpoint_every: int
    base_channels: int = 64
    z_size: int = 100
    samples: int = 64
    columns: int = 8
