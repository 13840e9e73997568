"""The DCGAN of the anime system: four-by-four convolutions, 64 x 64 pixels."""

from minigan import nn
from minigan.models.generator import Generator
from minigan.models.sizes import divided
from minigan.ops.geometry import Pair


def build(image_size: int | Pair = 64, base_channels: int = 64, z_size: int = 100) -> tuple[Generator, nn.Module]:
    """(generator, discriminator). image_size: multiples of 16. The discriminator gives logits, before the sigmoid."""
    return generator(image_size, base_channels, z_size), discriminator(image_size, base_channels)


def _normalized(convolution: nn.Module, channels: int) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(channels, 0.5, 1e-3), nn.LeakyReLU(0.2)]


def generator(image_size: int | Pair, base_channels: int, z_size: int) -> Generator:
    """z (N, 1, 1, z_size) -> images (N, H, W, 3) in [-1, 1].

    H = W = 64, with 64 base channels: 3,614,723 parameters.
    """
    start = divided("anime", image_size, 16)
    c = base_channels

    def up(inputs: int, outputs: int) -> list[nn.Module]:
        return _normalized(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding="same"), outputs)

    return Generator(
        *_normalized(nn.ConvTranspose2d(z_size, 8 * c, start, stride=1, padding="valid"), 8 * c),
        *up(8 * c, 4 * c),
        *up(4 * c, 2 * c),
        *up(2 * c, c),
        *_normalized(nn.Conv2d(c, c, 3, stride=1, padding="same"), c),
        nn.ConvTranspose2d(c, 3, 4, stride=2, padding="same"),
        nn.Tanh(),
        z_shape=(1, 1, z_size),
        normal=True,
    )


def discriminator(image_size: int | Pair, base_channels: int) -> nn.Sequential:
    """Images (N, H, W, 3) -> logits (N, 1). H = W = 64, with 64 base channels: 2,766,529 parameters."""
    height, width = divided("anime", image_size, 16)
    c = base_channels

    def down(inputs: int, outputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 4, stride=2, padding="same")

    return nn.Sequential(
        down(3, c),
        nn.LeakyReLU(0.2),
        *_normalized(down(c, 2 * c), 2 * c),
        *_normalized(down(2 * c, 4 * c), 4 * c),
        *_normalized(down(4 * c, 8 * c), 8 * c),
        nn.Flatten(),
        nn.Linear(height * width * 8 * c, 1),
    )
