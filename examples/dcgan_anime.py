"""A DCGAN that draws anime faces.

The system is a published Keras program for images of 64 x 64 pixels. Unlike in `dcgan_cats.py`, the discriminator
learns from real and from generated images in two updates; the images that it is shown are drawn in inference mode, as
they would be after training; and all targets are noisy.

    python examples/dcgan_anime.py                       # drawn toy faces; minutes on a CPU
    python examples/dcgan_anime.py --data my_faces/      # your own images
    python examples/dcgan_anime.py --preset paper        # as published: for a GPU

Radford et al., "Unsupervised representation learning with deep convolutional generative adversarial networks", 2016.
"""

from dataclasses import dataclass

import minigan as mg
import minigan.functional as F
from minigan import models, optim
from minigan.training import Dataset, Options, Settings, System, command_line, mean_probability, train


@dataclass(frozen=True)
class AnimeSettings(Settings):
    """label_noise: targets are between 1 - label_noise and 1 for real images, 0 and label_noise for generated ones."""

    lr_generator: float = 1.5e-4
    lr_discriminator: float = 2e-4
    beta1: float = 0.5
    epsilon: float = 1e-7
    label_noise: float = 0.2


PRESETS = {
    # The article's, exactly.
    "paper": AnimeSettings(
        image_size=(64, 64),
        batch_size=64,
        steps=10_000,
        sample_every=100,
        checkpoint_every=500,
        samples=16,
        columns=4,
    ),
    # Half as wide, for images half as high: minutes on a CPU.
    "small": AnimeSettings(
        image_size=(32, 32),
        batch_size=32,
        steps=1500,
        sample_every=100,
        checkpoint_every=500,
        base_channels=32,
    ),
}


class Anime(System):
    """Generator, discriminator, and an optimizer for each."""

    def __init__(self, settings: AnimeSettings, device: str) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.generator, self.discriminator = models.build(
            "anime",
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
        """The discriminator on real images, then on generated ones, then the generator, with a new z."""
        count = len(real)
        low = mg.random.uniform((count, 1), 0.0, self.settings.label_noise, device=self.device)
        high = 1 - mg.random.uniform((count, 1), 0.0, self.settings.label_noise, device=self.device)

        # By its running statistics, as it draws after training.
        self.generator.eval()
        with mg.no_grad():
            fake = self.generator(self.generator.noise(count))
        self.generator.train()

        loss_real, judged_real = self._update_discriminator(real, high)
        loss_fake, judged_fake = self._update_discriminator(fake, low)

        # The generator's target are the same noisy labels that real images had.
        self.discriminator.requires_grad_(False)
        loss_generator = F.binary_cross_entropy_with_logits(
            self.discriminator(self.generator(self.generator.noise(count))), high
        )
        self.generator_adam.zero_grad()
        self.generator_adam.backward(loss_generator)
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)

        losses = {"loss_real": loss_real, "loss_fake": loss_fake, "loss_generator": loss_generator}
        return {**losses, "d_real": mean_probability(judged_real), "d_fake": mean_probability(judged_fake)}

    def _update_discriminator(self, images: mg.Tensor, target: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        """Returns the loss, and the logits from before the update."""
        judged = self.discriminator(images)
        loss = F.binary_cross_entropy_with_logits(judged, target)
        self.discriminator_adam.zero_grad()
        self.discriminator_adam.backward(loss)
        self.discriminator_adam.step()
        return loss, judged


def main() -> None:
    options: Options[AnimeSettings] = command_line("anime", __doc__, PRESETS)
    train(lambda: Anime(options.settings, options.device), options, Dataset(toys="anime", replacement=True))


if __name__ == "__main__":
    main()
