"""What all generators have in common.

Layers from noise to images, and the noise and the range of pixels that they are made for.
"""

import numpy as np

from minigan import nn, random
from minigan.tensor import Tensor, no_grad


class Generator(nn.Sequential):
    """Latent vectors (N, *z_shape) -> images (N, H, W, 3).

    z is uniform in (-1, 1), or normal with deviation 1. pixels: the values of black and white.
    """

    def __init__(
        self,
        *layers: nn.Module,
        z_shape: tuple[int, ...],
        normal: bool = False,
        pixels: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(*layers)
        self.z_shape, self.normal, self.pixels = z_shape, normal, pixels

    def noise(self, count: int, device: str | None = None) -> Tensor:
        """Fresh latent vectors for `count` images, from minigan's generator of random numbers.

        device: None is the network's own. On "cpu" a seed gives the same z whatever the network is on.
        """
        shape, device = (count, *self.z_shape), device or next(self.named_tensors())[1].device
        return random.normal(shape, device=device) if self.normal else random.uniform(shape, -1, 1, device)

    def generate(self, z: Tensor, batch_size: int = 64) -> np.ndarray:
        """uint8 images (N, H, W, 3), by the running statistics of batch norm: each depends on its own z alone.

        z: (N, *z_shape), on any device.
        """
        training, z = self.training, z.to(self.parameters()[0].device)
        self.eval()
        with no_grad():
            images = np.concatenate([self(z[i : i + batch_size]).numpy() for i in range(0, len(z), batch_size)])
        self.train(training)
        black, white = self.pixels
        return np.rint((images.clip(black, white) - black) * (255 / (white - black))).astype(np.uint8)
