"""The DCGAN of the simpsons system: the cats system's networks, with another epsilon in batch norm."""

from minigan import nn
from minigan.models import cats
from minigan.models.generator import Generator
from minigan.ops.geometry import Pair


def build(image_size: int | Pair = 128, base_channels: int = 64, z_size: int = 100) -> tuple[Generator, nn.Module]:
    """(generator, discriminator). image_size: multiples of 16."""
    return cats.build(image_size, base_channels, z_size, epsilon=5e-5)
