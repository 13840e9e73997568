"""A DCGAN that draws cats.

The system is a published TensorFlow 1 program for images of 128 x 128 pixels. Two networks play against each other: the
generator turns noise z into images, the discriminator tells real images from generated ones. Each is trained to beat
the other, until the images look real.

    python examples/dcgan_cats.py                        # drawn toy cats; minutes on a CPU
    python examples/dcgan_cats.py --data my_cats/        # your own images
    python examples/dcgan_cats.py --preset paper         # as published: for a GPU, and hours

Radford et al., "Unsupervised representation learning with deep convolutional generative adversarial networks", 2016.
"""

from dataclasses import dataclass

import minigan as mg
import minigan.functional as F
from minigan import models, nn, optim
from minigan.training import Dataset, Epochs, Options, Settings, System, command_line, mean_probability, train


@dataclass(frozen=True)
class CatsSettings(Settings):
    """smooth: one-sided label smoothing; the discriminator's target for a real image is 1 - smooth.

    momentum: batch norm's. halve_every: after so many steps both learning rates are half what they were; None: never.
    """

    momentum: float = 0.99
    lr_generator: float = 2e-4
    lr_discriminator: float = 5e-5
    halve_every: int | None = None
    beta1: float = 0.5
    smooth: float = 0.1


PRESETS = {
    # The article's, exactly.
    "paper": CatsSettings(
        image_size=(128, 128),
        batch_size=64,
        steps=Epochs(215),
        sample_every=10,
        checkpoint_every=Epochs(5),
    ),
    # The same networks, half as wide, for images a quarter as high: minutes on a CPU. For so short a run the steps
    # are larger at first, and batch norm's running statistics follow the weights more closely.
    "small": CatsSettings(
        image_size=(32, 32),
        batch_size=32,
        steps=500,
        sample_every=50,
        checkpoint_every=100,
        base_channels=32,
        momentum=0.5,
        lr_generator=4e-4,
        lr_discriminator=4e-4,
        halve_every=250,
    ),
}


class Cats(System):
    """Generator, discriminator, and an optimizer for each."""

    def __init__(self, settings: CatsSettings, device: str) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.generator, self.discriminator = models.build(
            "cats",
            image_size=settings.image_size,
            base_channels=settings.base_channels,
            z_size=settings.z_size,
            momentum=settings.momentum,
        )
        self.generator.to(device)
        self.discriminator.to(device)
        self.generator_adam = optim.Adam(self.generator.parameters(), settings.lr_generator, settings.beta1)
        self.discriminator_adam = optim.Adam(self.discriminator.parameters(), settings.lr_discriminator, settings.beta1)

    def schedule(self) -> dict[str, float]:
        """The learning rates fall."""
        if self.settings.halve_every is not None:
            left = 0.5 ** (self.generator_adam.steps / self.settings.halve_every)
            self.generator_adam.lr = self.settings.lr_generator * left
            self.discriminator_adam.lr = self.settings.lr_discriminator * left
        return {}

    def step(self, real: mg.Tensor) -> dict[str, mg.Tensor]:
        """The discriminator first, then the generator, with the same z."""
        self.schedule()
        fake = self.generator(self.generator.noise(len(real)))

        # The discriminator should say 1 (less the smoothing) to real images and 0 to generated ones. Both batches go
        # through it in one pass, with half the launches of two, and batch norm normalises each by its own statistics.
        # Without `detach` the generator would get gradients here, to make the discriminator's work easier.
        judged_real, judged_fake = nn.together(self.discriminator, real, fake.detach())
        loss_real = F.binary_cross_entropy_with_logits(judged_real, 1 - self.settings.smooth)
        loss_fake = F.binary_cross_entropy_with_logits(judged_fake, 0.0)
        loss_discriminator = loss_real + loss_fake
        self.discriminator_adam.zero_grad()
        self.discriminator_adam.backward(loss_discriminator)
        self.discriminator_adam.step()

        # The generator is better, the more the (updated) discriminator takes its images for real. Gradients go through
        # the discriminator, not to it: it is frozen.
        self.discriminator.requires_grad_(False)
        loss_generator = F.binary_cross_entropy_with_logits(self.discriminator(fake), 1.0)
        self.generator_adam.zero_grad()
        self.generator_adam.backward(loss_generator)
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)

        losses = {"loss_discriminator": loss_discriminator, "loss_generator": loss_generator}
        return {**losses, "d_real": mean_probability(judged_real), "d_fake": mean_probability(judged_fake)}


def main() -> None:
    options: Options[CatsSettings] = command_line("cats", __doc__, PRESETS)
    train(lambda: Cats(options.settings, options.device), options, Dataset(toys="cats"))


if __name__ == "__main__":
    main()
