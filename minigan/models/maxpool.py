"""The convolutional GAN with max-pooling: no batch norm anywhere, 32 x 32 pixels."""

from minigan import nn
from minigan.models.generator import Generator
from minigan.models.sizes import divided
from minigan.ops.geometry import Pair


def build(image_size: int | Pair = 32, base_channels: int = 64, z_size: int = 512) -> tuple[Generator, nn.Module]:
    """(generator, discriminator). image_size: multiples of 8. The discriminator gives logits, before the sigmoid."""
    return generator(image_size, base_channels, z_size), discriminator(image_size, base_channels)


def generator(image_size: int | Pair, base_channels: int, z_size: int) -> Generator:
    """z (N, z_size) -> images (N, H, W, 3) in [-1, 1]. H = W = 32, with 64 base channels: 4,768,899 parameters."""
    height, width = divided("maxpool", image_size, 8)
    c = base_channels

    def up(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding="same"), nn.ReLU()]

    return Generator(
        nn.Linear(z_size, height * width * 4 * c),
        nn.ReLU(),
        nn.Reshape(height, width, 4 * c),
        *up(4 * c, 4 * c),
        *up(4 * c, 2 * c),
        *up(2 * c, c),
        nn.Conv2d(c, 3, 5, stride=1, padding="same"),
        nn.Tanh(),
        z_shape=(z_size,),
    )


def discriminator(image_size: int | Pair, base_channels: int) -> nn.Sequential:
    """Images (N, H, W, 3) -> logits (N, 1). H = W = 32, with 64 base channels: 20,887,809 parameters."""
    height, width = divided("maxpool", image_size, 8)
    c = base_channels

    def down(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 5, stride=1, padding="same"), nn.LeakyReLU(0.3), nn.MaxPool2d(2)]

    return nn.Sequential(
        *down(3, 2 * c),
        *down(2 * c, 4 * c),
        *down(4 * c, 8 * c),
        nn.Flatten(),
        nn.Linear(height * width * 8 * c, 32 * c),
        nn.LeakyReLU(0.3),
        nn.Linear(32 * c, 1),
    )
