"""The ten networks of the five systems in PyTorch, written from the published tables, not from minigan's code.

Images are N C H W here. Dense layers see the channels last, as they did in TensorFlow and Keras: H W C in this order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigan as mg

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
nn = torch.nn

Size = tuple[int, int]
Pair = tuple[Any, Any]


class Convolution(nn.Conv2d):
    """SAME: ceil(input / stride) pixels; of an odd number of zeros, the smaller half lies before."""

    def forward(self, x: Any) -> Any:
        zeros: list[int] = []
        for size in (x.shape[3], x.shape[2]):  # `pad` wants the last dimension first
            total = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            zeros += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, zeros))


class Transposed(nn.ConvTranspose2d):
    """SAME: input * stride pixels; what the full output has more is cropped, the smaller half of it before."""

    def forward(self, x: Any) -> Any:
        height, width = x.shape[2] * self.stride[0], x.shape[3] * self.stride[0]
        before = (self.kernel_size[0] - self.stride[0]) // 2
        return super().forward(x)[:, :, before : before + height, before : before + width]


class Flatten(nn.Module):
    """(N, C, H, W) -> (N, H W C)."""

    def forward(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1).flatten(1)


class Unflatten(nn.Module):
    """(N, H W C) -> (N, C, H, W)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width

    def forward(self, x: Any) -> Any:
        return x.reshape(len(x), *self.size, -1).permute(0, 3, 1, 2)


def normalized(layer: Any, momentum: float, epsilon: float, running: bool = True) -> list[Any]:
    """The layer, batch norm and LReLU 0.2; momentum in Keras's sense. running=False: batch statistics always."""
    return [layer, nn.BatchNorm2d(layer.out_channels, epsilon, 1 - momentum, True, running), nn.LeakyReLU(0.2)]


def cats(size: Size = (128, 128), c: int = 64, z: int = 100, epsilon: float = 1e-5) -> Pair:
    """(generator, discriminator)."""
    h, w = size[0] // 16, size[1] // 16
    generator = [nn.Linear(z, h * w * 16 * c), Unflatten(h, w), nn.LeakyReLU(0.2)]
    for inputs, outputs in ((16 * c, 8 * c), (8 * c, 4 * c), (4 * c, 2 * c), (2 * c, c)):
        generator += normalized(Transposed(inputs, outputs, 5, 2), 0.99, epsilon)
    generator += [Transposed(c, 3, 5, 1), nn.Tanh()]
    discriminator = []
    for inputs, outputs, stride in (
        (3, c, 2),
        (c, 2 * c, 2),
        (2 * c, 4 * c, 2),
        (4 * c, 8 * c, 1),
        (8 * c, 16 * c, 2),
    ):
        discriminator += normalized(Convolution(inputs, outputs, 5, stride), 0.99, epsilon, running=False)
    discriminator += [Flatten(), nn.Linear(h * w * 16 * c, 1)]
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def simpsons(size: Size = (128, 128), c: int = 64, z: int = 100) -> Pair:
    """(generator, discriminator)."""
    return cats(size, c, z, 5e-5)


def anime(size: Size = (64, 64), c: int = 64, z: int = 100) -> Pair:
    """(generator, discriminator); the discriminator without its sigmoid."""
    h, w = size[0] // 16, size[1] // 16
    generator = normalized(nn.ConvTranspose2d(z, 8 * c, (h, w)), 0.5, 1e-3)
    for inputs, outputs in ((8 * c, 4 * c), (4 * c, 2 * c), (2 * c, c)):
        generator += normalized(Transposed(inputs, outputs, 4, 2), 0.5, 1e-3)
    generator += normalized(Convolution(c, c, 3, 1), 0.5, 1e-3)
    generator += [Transposed(c, 3, 4, 2), nn.Tanh()]
    discriminator = [Convolution(3, c, 4, 2), nn.LeakyReLU(0.2)]
    for inputs, outputs in ((c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c)):
        discriminator += normalized(Convolution(inputs, outputs, 4, 2), 0.5, 1e-3, running=False)
    discriminator += [Flatten(), nn.Linear(h * w * 8 * c, 1)]
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def maxpool(size: Size = (32, 32), c: int = 64, z: int = 512) -> Pair:
    """(generator, discriminator); the discriminator without its sigmoid. c: a quarter of the widest transposed one."""
    h, w = size[0] // 8, size[1] // 8
    generator = [nn.Linear(z, h * w * 4 * c), nn.ReLU(), Unflatten(h, w)]
    for inputs, outputs in ((4 * c, 4 * c), (4 * c, 2 * c), (2 * c, c)):
        generator += [Transposed(inputs, outputs, 5, 2), nn.ReLU()]
    generator += [Convolution(c, 3, 5, 1), nn.Tanh()]
    discriminator = []
    for inputs, outputs in ((3, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c)):
        discriminator += [Convolution(inputs, outputs, 5, 1), nn.LeakyReLU(0.3), nn.MaxPool2d(2)]
    discriminator += [Flatten(), nn.Linear(h * w * 8 * c, 32 * c), nn.LeakyReLU(0.3), nn.Linear(32 * c, 1)]
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def began(size: Size = (64, 64), c: int = 128, z: int = 64) -> Pair:
    """(generator, autoencoder). c is the paper's n, z its h."""
    h, w = size[0] // 8, size[1] // 8

    def decoder() -> Any:
        layers = [nn.Linear(z, h * w * c), Unflatten(h, w)]
        for block in range(4):
            layers += [nn.Upsample(scale_factor=2, mode="nearest")] if block else []
            layers += [Convolution(c, c, 3, 1), nn.ELU(), Convolution(c, c, 3, 1), nn.ELU()]
        return nn.Sequential(*layers, Convolution(c, 3, 3, 1))

    encoder = []
    for inputs, outputs, stride in (
        (3, c, 1),
        (c, c, 2),
        (c, 2 * c, 1),
        (2 * c, 2 * c, 2),
        (2 * c, 3 * c, 1),
        (3 * c, 3 * c, 2),
        (3 * c, 4 * c, 1),
        (4 * c, 4 * c, 1),
    ):
        encoder += [Convolution(inputs, outputs, 3, stride), nn.ELU()]
    encoder += [Flatten(), nn.Linear(h * w * 4 * c, z)]
    return decoder(), nn.Sequential(*encoder, decoder())


NETWORKS: dict[str, Callable[..., Pair]] = {
    "cats": cats,
    "simpsons": simpsons,
    "anime": anime,
    "maxpool": maxpool,
    "began": began,
}


def channels_first(array: np.ndarray) -> Any:
    """A copy as PyTorch wants it: images (N, H, W, C), noise (N, 1, 1, C) and filters (a, R, S, b) as (a, b, R, S)."""
    return torch.tensor(array.transpose(0, 3, 1, 2).copy() if array.ndim == 4 else array.copy())


def channels_last(tensor: Any) -> np.ndarray:
    """The way back."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def copy_weights(ours: mg.nn.Module, theirs: Any) -> None:
    """minigan's weights into PyTorch's network: both list them in the order of the tables, weight before bias."""
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        values = channels_first(p.numpy())
        assert values.shape == q.shape
        q.data = values
    theirs.to(values.dtype)  # the running statistics too
