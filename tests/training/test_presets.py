"""The presets called paper against the published systems: every setting, the optimizers, the noise, the data."""

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from example_modules import EXAMPLES, load_example

import minigan as mg
from minigan.training import Dataset, Epochs, Options

# As published, but for what a comment says.
SETTINGS: dict[str, dict[str, Any]] = {
    "cats": {
        "image_size": (128, 128),
        "batch_size": 64,
        "steps": Epochs(215),
        "sample_every": 10,
        "checkpoint_every": Epochs(5),
        "base_channels": 64,
        "z_size": 100,
        "samples": 64,  # ours
        "columns": 8,  # ours
        "momentum": 0.99,
        "lr_generator": 2e-4,
        "lr_discriminator": 5e-5,
        "halve_every": None,
        "beta1": 0.5,
        "smooth": 0.1,
    },
    "simpsons": {
        "image_size": (128, 128),
        "batch_size": 64,
        "steps": Epochs(300),
        "sample_every": Epochs(1),
        "checkpoint_every": Epochs(5),  # ours
        "base_channels": 64,
        "z_size": 100,
        "samples": 64,  # ours
        "columns": 8,  # ours
        "momentum": 0.99,
        "lr_generator": 4e-4,
        "lr_discriminator": 4e-5,
        "halve_every": None,
        "beta1": 0.5,
        "least_smooth": 0.9,
        "most_noise": 0.1,
    },
    "anime": {
        "image_size": (64, 64),
        "batch_size": 64,
        "steps": 10_000,
        "sample_every": 100,
        "checkpoint_every": 500,
        "base_channels": 64,
        "z_size": 100,
        "samples": 16,
        "columns": 4,
        "lr_generator": 1.5e-4,
        "lr_discriminator": 2e-4,
        "beta1": 0.5,
        "epsilon": 1e-7,
        "label_noise": 0.2,
    },
    "maxpool": {
        "image_size": (32, 32),
        "batch_size": 16,
        "steps": 50_000,
        "sample_every": 10,
        "checkpoint_every": 1000,  # published: every 10 steps, too
        "base_channels": 64,
        "z_size": 512,
        "samples": 10,  # a strip; how many is ours
        "columns": 10,
        "lr_generator": 1e-3,
        "lr_discriminator": 1e-4,
        "beta1": 0.9,
        "epsilon": 1e-7,
    },
    "began": {
        "image_size": (64, 64),
        "batch_size": 16,
        "steps": Epochs(125),
        "sample_every": Epochs(1),
        "checkpoint_every": Epochs(1),
        "base_channels": 128,
        "z_size": 64,
        "samples": 20,
        "columns": 5,
        "gamma": 0.5,
        "step_of_k": 0.001,
        "lr": 1e-4,
        "generator_share": 1.0,
        "lr_decay": 0.9,
        "least_lr": 1e-5,
    },
}


@pytest.mark.parametrize("system", SETTINGS)
def test_the_settings(system: str) -> None:
    paper = load_example(system).PRESETS["paper"]
    # By what they look like: Epochs(1) equals 1.
    assert {field.name: repr(getattr(paper, field.name)) for field in dataclasses.fields(paper)} == {
        name: repr(value) for name, value in SETTINGS[system].items()
    }


def build(system: str) -> Any:
    """A system by its preset, as narrow as can be."""
    module = load_example(system)
    paper = dataclasses.replace(module.PRESETS["paper"], image_size=(16, 16), base_channels=1)
    return getattr(module, system.capitalize())(paper, "cpu")


@pytest.mark.parametrize(
    ("system", "lr_generator", "lr_discriminator", "beta1", "epsilon"),
    [
        ("cats", 2e-4, 5e-5, 0.5, 1e-8),
        ("simpsons", 4e-4, 4e-5, 0.5, 1e-8),
        ("anime", 1.5e-4, 2e-4, 0.5, 1e-7),
        ("maxpool", 1e-3, 1e-4, 0.9, 1e-7),
        ("began", 1e-4, 1e-4, 0.9, 1e-8),
    ],
)
def test_the_optimizers(
    system: str, lr_generator: float, lr_discriminator: float, beta1: float, epsilon: float
) -> None:
    built = build(system)
    for adam, network, lr in (
        (built.generator_adam, built.generator, lr_generator),
        (built.discriminator_adam, built.discriminator, lr_discriminator),
    ):
        assert (adam.lr, adam.beta1, adam.beta2, adam.epsilon) == (lr, beta1, 0.999, epsilon)
        assert [id(p) for p in adam.parameters] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize(
    ("system", "shape", "normal"),
    [
        ("cats", (100,), False),
        ("simpsons", (100,), False),
        ("anime", (1, 1, 100), True),
        ("maxpool", (512,), False),
        ("began", (64,), False),
    ],
)
def test_the_noise(system: str, shape: tuple[int, ...], normal: bool) -> None:
    mg.manual_seed(0)
    z = build(system).generator.noise(2000).numpy()
    assert z.shape == (2000, *shape)
    # Of 128,000 numbers or more: 0.02 is nine standard errors at least.
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - (1 if normal else 3**-0.5)) < 0.02
    assert (np.abs(z).max() > 3) if normal else (0.999 < np.abs(z).max() <= 1)


@pytest.mark.parametrize(
    ("system", "pixels", "dataset"),
    [
        ("cats", (-1, 1), {}),
        ("simpsons", (-1, 1), {"flip": True}),
        ("anime", (-1, 1), {"replacement": True}),
        ("maxpool", (-1, 1), {"replacement": True, "one_photo": True, "toy_count": 600}),
        ("began", (0, 1), {"skip_grey": True}),
    ],
)
def test_the_data(
    system: str, pixels: tuple[float, float], dataset: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_example(system)
    trained: list[tuple[Options[Any], Dataset]] = []
    monkeypatch.setattr(module, "train", lambda make, options, dataset: trained.append((options, dataset)))
    monkeypatch.setattr(sys, "argv", [f"{EXAMPLES[system]}.py", "--preset", "paper", "--device", "cpu", "--quiet"])
    module.main()
    ((options, used),) = trained
    assert options.system == system
    assert options.settings == module.PRESETS["paper"]
    assert used == Dataset(toys=used.toys, **dataset)
    assert build(system).generator.pixels == pixels


def test_simpsons_draws_its_two_numbers_for_each_run() -> None:
    mg.manual_seed(0)
    runs = [build("simpsons").numbers for _ in range(50)]
    for name, low, high in (("smooth", 0.9, 1.0), ("noise", 0.0, 0.1)):
        values = [run[name] for run in runs]
        assert low <= min(values) < low + 0.01
        assert high - 0.01 < max(values) < high
