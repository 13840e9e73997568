"""A convolutional GAN with max-pooling, that learns one photo in all its rotations.

The system is a published Keras program for images of 32 x 32 pixels, without batch norm. The data set is a single
photo, turned by every whole degree and mirrored: 720 images, the first 600 to train on.

    python examples/gan_maxpool.py                       # a drawn toy picture; minutes on a CPU
    python examples/gan_maxpool.py --data photo.jpg      # your photo; or a folder of images, as in the other examples
    python examples/gan_maxpool.py --preset paper        # as published: for a GPU

Goodfellow et al., "Generative adversarial nets", 2014.
"""

from dataclasses import dataclass

import minigan as mg
import minigan.functional as F
from minigan import models, optim
from minigan.training import Dataset, Options, Settings, System, command_line, mean_probability, train


@dataclass(frozen=True)
class MaxpoolSettings(Settings):
    """Both optimizers have the same beta1 and epsilon."""

    z_size: int = 512
    samples: int = 10
    columns: int = 10
    lr_generator: float = 1e-3
    lr_discriminator: float = 1e-4
    beta1: float = 0.9
    epsilon: float = 1e-7


PRESETS = {
    # The article's, exactly, but for the checkpoints: it saved both networks every 10 steps, here 100 MB each time.
    "paper": MaxpoolSettings(
        image_size=(32, 32),
        batch_size=16,
        steps=50_000,
        sample_every=10,
        checkpoint_every=1000,
    ),
    # A quarter as wide: minutes on a CPU. With less momentum it does not stray from the photo at first.
    "small": MaxpoolSettings(
        image_size=(32, 32),
        batch_size=16,
        steps=1500,
        sample_every=100,
        checkpoint_every=500,
        base_channels=16,
        z_size=64,
        beta1=0.5,
    ),
}


class Maxpool(System):
    """Generator, discriminator, and an optimizer for each."""

    def __init__(self, settings: MaxpoolSettings, device: str) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.generator, self.discriminator = models.build(
            "maxpool",
            image_size=settings.image_size,
            base_channels=settings.base_channels,
            z_size=settings.z_size,
        )
        self.generator.to(device)
        self.discriminator.to(device)
        self.generator_adam = optim.Adam(
            self.generator.parameters(), settings.lr_generator, settings.beta1, epsilon=settings.epsilon
        )
        self.discriminator_adam = optim.Adam(
            self.discriminator.parameters(), settings.lr_discriminator, settings.beta1, epsilon=settings.epsilon
        )

    def step(self, real: mg.Tensor) -> dict[str, mg.Tensor]:
        """The discriminator on real and generated images together, then the generator, with a new z."""
        count = len(real)
        with mg.no_grad():
            fake = self.generator(self.generator.noise(count))

        # There is no batch norm, so each image is judged by itself, and the two batches can go in one.
        judged = self.discriminator(F.concatenate([real, fake]))
        loss_real = F.binary_cross_entropy_with_logits(judged[:count], 1.0)
        loss_fake = F.binary_cross_entropy_with_logits(judged[count:], 0.0)
        d_loss = 0.5 * (loss_real + loss_fake)
        self.discriminator_adam.zero_grad()
        self.discriminator_adam.backward(d_loss)
        self.discriminator_adam.step()

        self.discriminator.requires_grad_(False)
        g_loss = F.binary_cross_entropy_with_logits(
            self.discriminator(self.generator(self.generator.noise(count))), 1.0
        )
        self.generator_adam.zero_grad()
        self.generator_adam.backward(g_loss)
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)

        d_real, d_fake = mean_probability(judged[:count]), mean_probability(judged[count:])
        return {"d_loss": d_loss, "g_loss": g_loss, "d_real": d_real, "d_fake": d_fake}


def main() -> None:
    options: Options[MaxpoolSettings] = command_line("maxpool", __doc__, PRESETS)
    dataset = Dataset(toys="photo", toy_count=600, one_photo=True, replacement=True)
    train(lambda: Maxpool(options.settings, options.device), options, dataset)


if __name__ == "__main__":
    main()
