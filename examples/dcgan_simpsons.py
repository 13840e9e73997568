"""A DCGAN that draws cartoon heads.

The system is a published TensorFlow 1 program for images of 128 x 128 pixels, with the networks of `dcgan_cats.py`.
What is new keeps the discriminator from winning too easily: its target for real images is a little below 1, noise is
laid over the real images, and images are mirrored at random.

    python examples/dcgan_simpsons.py                                     # drawn toy heads; minutes on a CPU
    python examples/dcgan_simpsons.py --data faces/ --leave-out bad.txt   # your images, less those named in a list
    python examples/dcgan_simpsons.py --preset paper                      # as published: for a GPU, and hours

Salimans et al., "Improved techniques for training GANs", 2016, for the label smoothing; Sonderby et al., "Amortised
MAP inference for image super-resolution", 2017, for the noise on the images.
"""

from dataclasses import dataclass

import minigan as mg
import minigan.functional as F
from minigan import models, nn, optim
from minigan.training import Dataset, Epochs, Options, Settings, System, command_line, mean_probability, train


@dataclass(frozen=True)
class SimpsonsSettings(Settings):
    """least_smooth: the target for real images is drawn from [least_smooth, 1), once. most_noise: the deviation of the
    noise on them is drawn from [0, most_noise), once too.

    momentum: batch norm's. halve_every: after so many steps both learning rates are half what they were; None: never.
    """

    momentum: float = 0.99
    lr_generator: float = 4e-4
    lr_discriminator: float = 4e-5
    halve_every: int | None = None
    beta1: float = 0.5
    least_smooth: float = 0.9
    most_noise: float = 0.1


PRESETS = {
    # The article's, exactly.
    "paper": SimpsonsSettings(
        image_size=(128, 128),
        batch_size=64,
        steps=Epochs(300),
        sample_every=Epochs(1),
        checkpoint_every=Epochs(5),
    ),
    # Half as wide, for images a quarter as high: minutes on a CPU. For so short a run the steps are larger at first,
    # and batch norm's running statistics follow the weights more closely.
    "small": SimpsonsSettings(
        image_size=(32, 32),
        batch_size=32,
        steps=600,
        sample_every=50,
        checkpoint_every=100,
        base_channels=32,
        momentum=0.5,
        lr_discriminator=4e-4,
        halve_every=300,
    ),
}


class Simpsons(System):
    """Generator, discriminator, an optimizer for each, and the two numbers that a run draws once."""

    def __init__(self, settings: SimpsonsSettings, device: str) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.generator, self.discriminator = models.build(
            "simpsons",
            image_size=settings.image_size,
            base_channels=settings.base_channels,
            z_size=settings.z_size,
            momentum=settings.momentum,
        )
        self.generator.to(device)
        self.discriminator.to(device)
        self.generator_adam = optim.Adam(self.generator.parameters(), settings.lr_generator, settings.beta1)
        self.discriminator_adam = optim.Adam(self.discriminator.parameters(), settings.lr_discriminator, settings.beta1)
        self.numbers = {
            "smooth": mg.random.uniform((), settings.least_smooth, 1.0).item(),
            "noise": mg.random.uniform((), 0.0, settings.most_noise).item(),
        }

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

        # Noise on the real images alone, fresh at each step: seen through it they differ less from generated ones. Both
        # batches go through the discriminator together, but batch norm normalises each by its own statistics.
        noisy = real + self.numbers["noise"] * mg.random.normal(real.shape, device=self.device)
        judged_real, judged_fake = nn.together(self.discriminator, noisy, fake.detach())
        loss_real = F.binary_cross_entropy_with_logits(judged_real, self.numbers["smooth"])
        loss_fake = F.binary_cross_entropy_with_logits(judged_fake, 0.0)
        loss_discriminator = 0.5 * (loss_real + loss_fake)
        self.discriminator_adam.zero_grad()
        self.discriminator_adam.backward(loss_discriminator)
        self.discriminator_adam.step()

        # The generator is better, the more the (updated) discriminator takes its images for real.
        self.discriminator.requires_grad_(False)
        loss_generator = F.binary_cross_entropy_with_logits(self.discriminator(fake), 1.0)
        self.generator_adam.zero_grad()
        self.generator_adam.backward(loss_generator)
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)

        losses = {"loss_discriminator": loss_discriminator, "loss_generator": loss_generator}
        return {**losses, "d_real": mean_probability(judged_real), "d_fake": mean_probability(judged_fake)}


def main() -> None:
    options: Options[SimpsonsSettings] = command_line("simpsons", __doc__, PRESETS)
    train(lambda: Simpsons(options.settings, options.device), options, Dataset(toys="cartoons", flip=True))


if __name__ == "__main__":
    main()
