"""The DCGAN of the simpsons system: the cats system's networks, with another epsilon in batch norm."""

from minigan import nn
from minigan.models import cats
from minigan.models.generator import Generator
from minigan.ops.geometry import Pair


def build(
    image_size: int | Pair = 128, base_channels: int = 64, z_size: int = 100, momentum: float = 0.99
) -> tuple[Generator, nn.Module]:
    """(generator, discriminator). image_size: multiples of 16. momentum: batch norm's."""
    return cats.build(image_size, base_channels, z_size, momentum, epsilon=5e-5)
