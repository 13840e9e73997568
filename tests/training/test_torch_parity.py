"""The first steps of all five systems against PyTorch, from the same weights, noise and images.

The training steps below are written from the published descriptions, not from the examples.
"""

import dataclasses
from inspect import signature
from typing import Any

import numpy as np
import pytest
from common import PARAMETERS, compute_in_double
from example_modules import load_example
from torch_networks import NETWORKS, channels_first, channels_last, copy_weights, torch

import minigan as mg

functional = torch.nn.functional

SIZE, WIDTH, BATCH, Z = (32, 16), 4, 6, 20


def bce(logits: Any, target: Any) -> Any:
    target = target if torch.is_tensor(target) else torch.full_like(logits, target)
    return functional.binary_cross_entropy_with_logits(logits, target)


def update(adam: Any, loss: Any) -> None:
    adam.zero_grad()
    loss.backward()
    adam.step()


class Reference:
    """A system in PyTorch. `step` takes a batch and what a step draws, in this order, and gives the losses.

    draws, draws_of_run: what a step, and a run at its start, draw. forward_only: losses that no update has touched yet
    in the first step.
    """

    lr_discriminator: float
    lr_generator: float
    beta1 = 0.5
    epsilon = 1e-8
    draws: tuple[str, ...]
    draws_of_run: tuple[str, ...] = ()
    forward_only: tuple[str, ...]

    def __init__(self, generator: Any, discriminator: Any, *drawn: Any) -> None:
        self.g, self.d = generator, discriminator
        betas = self.beta1, 0.999
        self.adam_d = torch.optim.Adam(self.d.parameters(), self.lr_discriminator, betas, self.epsilon)
        self.adam_g = torch.optim.Adam(self.g.parameters(), self.lr_generator, betas, self.epsilon)

    def step(self, real: Any, *drawn: Any) -> dict[str, Any]:
        raise NotImplementedError


class Cats(Reference):
    lr_discriminator, lr_generator = 5e-5, 2e-4
    draws = ("uniform(-1, 1)",)
    forward_only = ("loss_discriminator",)

    def step(self, real: Any, z: Any) -> dict[str, Any]:
        fake = self.g(z)
        loss_d = bce(self.d(real), 0.9) + bce(self.d(fake.detach()), 0.0)
        update(self.adam_d, loss_d)
        loss_g = bce(self.d(fake), 1.0)
        update(self.adam_g, loss_g)
        return {"loss_discriminator": loss_d, "loss_generator": loss_g}


class Simpsons(Reference):
    lr_discriminator, lr_generator = 4e-5, 4e-4
    draws = ("uniform(-1, 1)", "normal(0, 1)")
    draws_of_run = ("uniform(0.9, 1)", "uniform(0, 0.1)")
    forward_only = ("loss_discriminator",)

    def __init__(self, generator: Any, discriminator: Any, smooth: Any, sigma: Any) -> None:
        super().__init__(generator, discriminator)
        self.smooth, self.sigma = smooth.item(), sigma.item()

    def step(self, real: Any, z: Any, noise: Any) -> dict[str, Any]:
        fake = self.g(z)
        loss_d = (bce(self.d(real + self.sigma * noise), self.smooth) + bce(self.d(fake.detach()), 0.0)) / 2
        update(self.adam_d, loss_d)
        loss_g = bce(self.d(fake), 1.0)
        update(self.adam_g, loss_g)
        return {"loss_discriminator": loss_d, "loss_generator": loss_g}


class Anime(Reference):
    lr_discriminator, lr_generator, epsilon = 2e-4, 1.5e-4, 1e-7
    draws = ("uniform(0, 0.2)", "uniform(0, 0.2)", "normal(0, 1)", "normal(0, 1)")
    forward_only = ("loss_real",)

    def step(self, real: Any, low: Any, below_1: Any, z: Any, new_z: Any) -> dict[str, Any]:
        real_labels, fake_labels = 1 - below_1, low  # (0.8, 1] and [0, 0.2)
        self.g.eval()
        fake = self.g(z).detach()
        self.g.train()
        loss_real = bce(self.d(real), real_labels)
        update(self.adam_d, loss_real)
        loss_fake = bce(self.d(fake), fake_labels)
        update(self.adam_d, loss_fake)
        loss_g = bce(self.d(self.g(new_z)), real_labels)
        update(self.adam_g, loss_g)
        return {"loss_real": loss_real, "loss_fake": loss_fake, "loss_generator": loss_g}


class Maxpool(Reference):
    lr_discriminator, lr_generator, beta1, epsilon = 1e-4, 1e-3, 0.9, 1e-7
    draws = ("uniform(-1, 1)", "uniform(-1, 1)")
    forward_only = ("d_loss",)

    def step(self, real: Any, z: Any, new_z: Any) -> dict[str, Any]:
        labels = torch.zeros(2 * len(real), 1, dtype=real.dtype)
        labels[: len(real)] = 1
        d_loss = bce(self.d(torch.cat([real, self.g(z).detach()])), labels)
        update(self.adam_d, d_loss)
        g_loss = bce(self.d(self.g(new_z)), 1.0)
        update(self.adam_g, g_loss)
        return {"d_loss": d_loss, "g_loss": g_loss}


class Began(Reference):
    lr_discriminator, lr_generator, beta1 = 1e-4, 1e-4, 0.9
    draws = ("uniform(-1, 1)", "uniform(-1, 1)")
    forward_only = ("loss_real", "loss_gen_D", "loss_D", "M")
    gamma, step_of_k = 0.5, 0.001

    def __init__(self, generator: Any, discriminator: Any) -> None:
        super().__init__(generator, discriminator)
        self.k, self.lr, self.falls = 0.0, 1e-4, 0
        self.of_this_epoch: list[float] = []
        self.mean_of_last_epoch = np.inf

    def loss(self, images: Any) -> Any:
        return (images - self.d(images)).abs().mean()

    def step(self, real: Any, z_d: Any, z_g: Any) -> dict[str, Any]:
        k = self.k
        loss_real, loss_fake = self.loss(real), self.loss(self.g(z_d).detach())
        loss_d = loss_real - k * loss_fake
        update(self.adam_d, loss_d)
        loss_g = self.loss(self.g(z_g))
        update(self.adam_g, loss_g)
        x, y = loss_real.item(), loss_fake.item()
        self.k = min(max(k + self.step_of_k * (self.gamma * x - y), 0.0), 1.0)
        m = x + abs(self.gamma * x - y)
        self.of_this_epoch.append(m)
        losses = {"loss_real": loss_real, "loss_gen_D": loss_fake, "loss_D": loss_d, "loss_G": loss_g}
        return {**losses, "k": k, "M": m, "learning_rate": self.lr}

    def end_epoch(self) -> None:
        mean = float(np.mean(self.of_this_epoch))
        if not mean < self.mean_of_last_epoch:
            self.falls += 1
        self.lr = max(1e-4 * 0.9**self.falls, 1e-5)
        for adam in (self.adam_d, self.adam_g):
            adam.param_groups[0]["lr"] = self.lr
        self.of_this_epoch, self.mean_of_last_epoch = [], mean


REFERENCES: dict[str, type[Reference]] = {
    "cats": Cats,
    "simpsons": Simpsons,
    "anime": Anime,
    "maxpool": Maxpool,
    "began": Began,
}


class Pair:
    """A system by minigan and by PyTorch, side by side."""

    def __init__(self, system: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dtype, self.drawn = dtype, record_draws(monkeypatch, dtype)
        if dtype is np.float64:
            compute_in_double(monkeypatch)
        mg.manual_seed(0)
        module = load_example(system)
        settings = dataclasses.replace(
            module.PRESETS["paper"], image_size=SIZE, base_channels=WIDTH, batch_size=BATCH, z_size=Z
        )
        self.ours = getattr(module, system.capitalize())(settings, "cpu")
        networks = NETWORKS[system](SIZE, WIDTH, Z)
        copy_weights(self.ours.generator, networks[0])
        copy_weights(self.ours.discriminator, networks[1])
        self.theirs = REFERENCES[system](*networks, *self.take(REFERENCES[system].draws_of_run))
        self.black = 0 if system == "began" else -1
        self.rng = np.random.default_rng(0)

    def take(self, expected: tuple[str, ...]) -> list[Any]:
        """What was drawn since the last call, for PyTorch; it has to be what was expected."""
        assert tuple(kind for kind, _ in self.drawn) == expected
        values = [channels_first(array) for _, array in self.drawn]
        self.drawn.clear()
        return values

    def step(self, darkness: float = 1.0) -> tuple[dict[str, float], dict[str, float]]:
        """One training step: minigan's losses, PyTorch's losses."""
        real = self.rng.uniform(self.black, 1, (BATCH, *SIZE, 3)).astype(self.dtype) * self.dtype(darkness)
        ours = self.ours.step(mg.tensor(real, device="cpu"))
        results = self.theirs.step(channels_first(real), *self.take(self.theirs.draws))
        theirs = {name: value.item() if torch.is_tensor(value) else value for name, value in results.items()}
        assert ours.keys() - {"d_real", "d_fake"} == theirs.keys()  # these two are for the log alone
        return {name: float(ours[name]) for name in theirs}, theirs


def record_draws(monkeypatch: pytest.MonkeyPatch, dtype: type) -> list[tuple[str, np.ndarray]]:
    """From now on, what is drawn by mg.random, in `dtype`: ("uniform(-1, 1)", values) and so on."""
    drawn = []

    def recording(name: str) -> Any:
        original = getattr(mg.random, name)

        def draw(*args: Any, **keywords: Any) -> mg.Tensor:
            bound = signature(original).bind(*args, **keywords)
            bound.apply_defaults()
            _, a, b, _ = bound.arguments.values()
            values = original(*args, **keywords).numpy().astype(dtype)
            drawn.append((f"{name}({a:g}, {b:g})", values))
            return mg.tensor(values, device="cpu")

        return draw

    for name in ("uniform", "normal"):
        monkeypatch.setattr(mg.random, name, recording(name))
    return drawn


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN PyTorch 2.13 returns a wrong gradient for some transposed convolutions."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.mark.parametrize("system", PARAMETERS)
def test_the_networks_in_pytorch_are_as_large_as_the_published_ones(system: str) -> None:
    with torch.device("meta"):  # shapes only
        networks = NETWORKS[system]()
    assert tuple(sum(p.numel() for p in network.parameters()) for network in networks) == PARAMETERS[system]


@pytest.mark.parametrize("system", REFERENCES)
def test_five_steps_in_float64_equal_pytorchs_to_the_last_digits(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(system, np.float64, monkeypatch)
    for step in range(5):
        ours, theirs = pair.step()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, err_msg=f"step {step}: {name}")
    assert_same_weights(pair.ours.generator, pair.theirs.g, pair.theirs.lr_generator)
    assert_same_weights(pair.ours.discriminator, pair.theirs.d, pair.theirs.lr_discriminator)
    assert_same_running_statistics(pair.ours.generator, pair.theirs.g)


def assert_same_weights(ours: mg.nn.Module, theirs: Any, lr: float) -> None:
    """To 1e-8 of the largest of each tensor."""
    names = [name for name, _ in ours.named_parameters()]
    for i, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
        expected = channels_last(q)
        tolerance = 1e-8 * np.abs(expected).max()
        if names[i].endswith("bias") and names[i + 1 : i + 2] and names[i + 1].endswith("gamma"):
            # A bias before batch norm has no effect: it is moved by its gradient's rounding, as far as that reaches
            # above Adam's epsilon.
            tolerance = 1e-3 * lr
        np.testing.assert_allclose(p.numpy(), expected, rtol=0, atol=tolerance, err_msg=names[i])


def assert_same_running_statistics(ours: mg.nn.Module, theirs: Any) -> None:
    """To 1e-6 of the largest of each tensor: the means follow the biases that rounding moves."""
    expected = [b.numpy() for name, b in theirs.named_buffers() if "running" in name]
    statistics = [(name, t) for name, t in ours.named_tensors() if "running" in name]
    for (name, t), values in zip(statistics, expected, strict=True):
        np.testing.assert_allclose(t.numpy(), values, rtol=0, atol=1e-6 * np.abs(values).max(), err_msg=name)


def test_the_balance_and_the_learning_rate_of_began_over_four_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair("began", np.float64, monkeypatch)
    rates = []
    for brightness in (0.5, 1.0, 0.3, 0.9):  # brighter images have a higher M
        for _ in range(2):
            ours, theirs = pair.step(brightness)
            for name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, err_msg=name)
        pair.ours.end_epoch()
        pair.theirs.end_epoch()
        np.testing.assert_allclose(pair.ours.k.item(), pair.theirs.k, rtol=1e-9)
        rates.append((pair.ours.generator_adam.lr, pair.ours.discriminator_adam.lr))
    np.testing.assert_allclose(rates, np.array([[1e-4, 0.9e-4, 0.9e-4, 0.81e-4]] * 2).T)
    np.testing.assert_allclose(pair.theirs.lr, 0.81e-4)


@pytest.mark.parametrize(
    ("system", "tolerance"),
    [
        # An activation whose value is nearly 0 may be rounded to the other side of LReLU's kink, where its gradient is
        # another; and Adam's first steps are as long for a small gradient as for a large one. What a changed sign does
        # grows from step to step, through batch norm over few pixels: over 24 runs (seeds, widths) to 2e-2 at most.
        ("cats", 5e-2),
        ("simpsons", 5e-2),
        ("anime", 5e-2),
        # Without batch norm hardly more than the rounding itself, 6e-8 for one operation.
        ("maxpool", 1e-4),
        ("began", 1e-4),
    ],
)
def test_five_steps_in_float32_stay_near_pytorchs(
    system: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(system, np.float32, monkeypatch)
    for step in range(5):
        ours, theirs = pair.step()
        for name in theirs:
            # Before any update there are only the forward passes' own roundings, a hundred at most that add up.
            rtol = 1e-5 if step == 0 and name in pair.theirs.forward_only else tolerance
            np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, err_msg=f"step {step}: {name}")
