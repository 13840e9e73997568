"""BEGAN, a GAN in balance, that draws faces.

The system is a published Keras program for images of 64 x 64 pixels. Here the discriminator is an autoencoder: it
learns to reconstruct real images well and generated ones badly, while the generator makes images that it reconstructs
well. A control variable k, how much generated images count, holds the two in balance. It starts at 0, when the
discriminator only learns to reconstruct; and M, the measure of convergence, tells how far the training is.

    python examples/began_faces.py                              # drawn toy faces; minutes on a CPU
    python examples/began_faces.py --data lfw-deepfunneled.tgz  # Labeled Faces in the Wild, as it is downloaded
    python examples/began_faces.py --preset paper               # as published: for a GPU, and a day

Berthelot et al., "BEGAN: boundary equilibrium generative adversarial networks", 2017.
"""

from dataclasses import dataclass

import minigan as mg
import minigan.functional as F
from minigan import models, nn, optim
from minigan.training import Curves, Dataset, Epochs, Options, Settings, System, command_line, train


@dataclass(frozen=True)
class BeganSettings(Settings):
    """gamma: the ratio of the two losses that is held, lower for less variety. step_of_k: the paper's lambda.

    lr: multiplied by lr_decay after each epoch in which M did not fall, but never below least_lr. The generator's is
    generator_share of it.
    """

    base_channels: int = 128
    z_size: int = 64
    samples: int = 20
    columns: int = 5
    gamma: float = 0.5
    step_of_k: float = 0.001
    lr: float = 1e-4
    generator_share: float = 1.0
    lr_decay: float = 0.9
    least_lr: float = 1e-5


PRESETS = {
    # The article's, exactly.
    "paper": BeganSettings(
        image_size=(64, 64),
        batch_size=16,
        steps=Epochs(125),
        sample_every=Epochs(1),
        checkpoint_every=Epochs(1),
    ),
    # A fifth as wide, for images half as high: minutes on a CPU. Small networks soon draw one face whatever z is; a
    # slower generator and a gamma that asks for variety keep some. k moves faster, for it has less time.
    "small": BeganSettings(
        image_size=(32, 32),
        batch_size=16,
        steps=2500,
        sample_every=100,
        checkpoint_every=500,
        base_channels=24,
        z_size=32,
        gamma=0.9,
        step_of_k=0.02,
        lr=1e-3,
        generator_share=0.1,
    ),
}


class Began(System):
    """Generator, autoencoder, an optimizer for each, and k."""

    def __init__(self, settings: BeganSettings, device: str) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.generator, self.discriminator = models.build(
            "began",
            image_size=settings.image_size,
            base_channels=settings.base_channels,
            z_size=settings.z_size,
        )
        self.generator.to(device)
        self.discriminator.to(device)
        self.generator_adam = optim.Adam(self.generator.parameters(), settings.lr * settings.generator_share)
        self.discriminator_adam = optim.Adam(self.discriminator.parameters(), settings.lr)
        # On the device, so that a GPU need not wait for the host at each step.
        self.k, self.sum_of_m = mg.tensor(0.0, device=device), mg.tensor(0.0, device=device)
        self.numbers = {"epochs": 0, "steps_in_epoch": 0, "m_of_last_epoch": 0.0}

    def step(self, real: mg.Tensor) -> dict[str, mg.Tensor | float]:
        """The discriminator, then the generator, with a z of its own; then k."""
        k, numbers = self.k, self.schedule()
        with mg.no_grad():
            fake = self.generator(self.generator.noise(len(real)))
        # The loss of images: their mean absolute difference from what the autoencoder makes of them. Here it makes that
        # of both batches in one pass, which takes half the launches of two.
        real_again, fake_again = nn.together(self.discriminator, real, fake)
        loss_real, loss_gen_d = F.l1_loss(real, real_again), F.l1_loss(fake, fake_again)
        loss_d = loss_real - k * loss_gen_d
        self.discriminator_adam.zero_grad()
        self.discriminator_adam.backward(loss_d)
        self.discriminator_adam.step()

        self.discriminator.requires_grad_(False)
        fake = self.generator(self.generator.noise(len(real)))
        loss_g = F.l1_loss(fake, self.discriminator(fake))
        self.generator_adam.zero_grad()
        self.generator_adam.backward(loss_g)
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)

        # Where generated images are reconstructed too well, k grows, and they count for more. Losses of all ranks.
        with mg.no_grad():
            real_of_all = F.mean_over_ranks(loss_real)
            balance = self.settings.gamma * real_of_all - F.mean_over_ranks(loss_gen_d)
            m = real_of_all + balance.abs()
            self.k = (k + self.settings.step_of_k * balance).clip(0.0, 1.0)
            self.sum_of_m = self.sum_of_m + m
        losses = {"loss_real": loss_real, "loss_gen_D": loss_gen_d, "loss_D": loss_d, "loss_G": loss_g}
        return {"k": k, **losses, **numbers, "M": m}

    def schedule(self) -> dict[str, float]:
        """Counts the steps of an epoch, for its mean M."""
        self.numbers["steps_in_epoch"] += 1
        return {"learning_rate": self.discriminator_adam.lr}

    def end_epoch(self) -> None:
        """The learning rate falls after an epoch whose mean M was not below that of the one before."""
        m = self.sum_of_m.item() / self.numbers["steps_in_epoch"]
        if self.numbers["epochs"] and m >= self.numbers["m_of_last_epoch"]:
            lr = max(self.discriminator_adam.lr * self.settings.lr_decay, self.settings.least_lr)
            self.discriminator_adam.lr, self.generator_adam.lr = lr, lr * self.settings.generator_share
        self.numbers = {"epochs": self.numbers["epochs"] + 1, "steps_in_epoch": 0, "m_of_last_epoch": m}
        self.sum_of_m = self.sum_of_m * 0.0

    def curves(self, log: Curves) -> list[Curves]:
        """The two losses that meet in balance; M; k."""
        losses = {"gamma * loss_real": self.settings.gamma * log["loss_real"], "loss_gen_D": log["loss_gen_D"]}
        return [losses, {"M": log["M"]}, {"k": log["k"]}]


def main() -> None:
    options: Options[BeganSettings] = command_line("began", __doc__, PRESETS)
    train(lambda: Began(options.settings, options.device), options, Dataset(toys="faces", skip_grey=True))


if __name__ == "__main__":
    main()
