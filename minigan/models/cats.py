"""The DCGAN of the cats system: five-by-five convolutions, 128 x 128 pixels."""

from minigan import nn
from minigan.init import glorot_uniform, truncated_normal
from minigan.models.generator import Generator
from minigan.models.sizes import divided
from minigan.ops.geometry import Pair

_weights = truncated_normal(0.02)


def build(
    image_size: int | Pair = 128,
    base_channels: int = 64,
    z_size: int = 100,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
) -> tuple[Generator, nn.Module]:
    """(generator, discriminator). image_size: multiples of 16. momentum, epsilon: batch norm's."""
    return (
        generator(image_size, base_channels, z_size, momentum, epsilon),
        discriminator(image_size, base_channels, momentum, epsilon),
    )


def generator(image_size: int | Pair, base_channels: int, z_size: int, momentum: float, epsilon: float) -> Generator:
    """z (N, z_size) -> images (N, H, W, 3) in [-1, 1]. H = W = 128, with 64 base channels: 24,034,819 parameters."""
    height, width = divided("cats", image_size, 16)
    c = base_channels

    def up(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding="same", weight_init=_weights),
            nn.BatchNorm2d(outputs, momentum, epsilon),
            nn.LeakyReLU(0.2),
        ]

    return Generator(
        nn.Linear(z_size, height * width * 16 * c, weight_init=glorot_uniform),
        nn.LeakyReLU(0.2),
        nn.Reshape(height, width, 16 * c),
        *up(16 * c, 8 * c),
        *up(8 * c, 4 * c),
        *up(4 * c, 2 * c),
        *up(2 * c, c),
        nn.ConvTranspose2d(c, 3, 5, stride=1, padding="same", weight_init=_weights),
        nn.Tanh(),
        z_shape=(z_size,),
    )


def discriminator(image_size: int | Pair, base_channels: int, momentum: float, epsilon: float) -> nn.Sequential:
    """Images (N, H, W, 3) -> logits (N, 1). H = W = 128, with 64 base channels: 17,484,289 parameters."""
    height, width = divided("cats", image_size, 16)
    c = base_channels

    def down(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 5, stride, padding="same", weight_init=_weights),
            nn.BatchNorm2d(outputs, momentum, epsilon),
            nn.LeakyReLU(0.2),
        ]

    return nn.Sequential(
        *down(3, c, 2),
        *down(c, 2 * c, 2),
        *down(2 * c, 4 * c, 2),
        *down(4 * c, 8 * c, 1),
        *down(8 * c, 16 * c, 2),
        nn.Flatten(),
        nn.Linear(height * width * 16 * c, 1, weight_init=glorot_uniform),
    )
