"""BEGAN: the discriminator is an autoencoder whose decoder is built like the generator, 64 x 64 pixels."""

from minigan import nn
from minigan.models.generator import Generator
from minigan.models.sizes import divided
from minigan.ops.geometry import Pair


def build(image_size: int | Pair = 64, base_channels: int = 128, z_size: int = 64) -> tuple[Generator, nn.Module]:
    """(generator, discriminator). image_size: multiples of 8. base_channels: the paper's n; z_size: its h.

    The discriminator gives an image, the reconstruction of its input.
    """
    return (
        Generator(*decoder(image_size, base_channels, z_size), z_shape=(z_size,), pixels=(0.0, 1.0)),
        nn.Sequential(encoder(image_size, base_channels, z_size), decoder(image_size, base_channels, z_size)),
    )


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding="same"), nn.ELU(1.0)]


def decoder(image_size: int | Pair, base_channels: int, z_size: int) -> nn.Sequential:
    """z (N, z_size) -> images (N, H, W, 3), not bounded. H = W = 64, with 128 base channels: 1,716,611 parameters."""
    height, width = divided("began", image_size, 8)
    n = base_channels
    layers: list[nn.Module] = [nn.Linear(z_size, height * width * n), nn.Reshape(height, width, n)]
    for _ in range(3):
        layers += [*_convolution(n, n), *_convolution(n, n), nn.UpsampleNearest2d(2)]
    return nn.Sequential(*layers, *_convolution(n, n), *_convolution(n, n), nn.Conv2d(n, 3, 3, padding="same"))


def encoder(image_size: int | Pair, base_channels: int, z_size: int) -> nn.Sequential:
    """Images (N, H, W, 3) -> codes (N, z_size). H = W = 64, with 128 base channels: 9,476,032 parameters."""
    height, width = divided("began", image_size, 8)
    n = base_channels
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, n), (n, 2 * n), (2 * n, 3 * n)):
        layers += [*_convolution(inputs, outputs), *_convolution(outputs, outputs, stride=2)]
    layers += [*_convolution(3 * n, 4 * n), *_convolution(4 * n, 4 * n)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(height * width * 4 * n, z_size))
