"""The examples as modules, run in this process with tiny networks, and a folder of small pictures for them."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from example_modules import EXAMPLES, load_example
from PIL import Image

import minigan as mg


@pytest.fixture
def noise_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device gets the numbers that the CPU would draw, instead of its own, so that runs can be compared."""

    def drawn(kernel: str, shape: tuple[int, ...], device: str, low: float, high: float, *_: float) -> mg.Tensor:
        return getattr(mg.random, kernel)(shape, low, high, "cpu").to(device)

    monkeypatch.setattr(mg.random, "_drawn", drawn)


@pytest.fixture(scope="session")
def cats() -> ModuleType:
    """examples/dcgan_cats.py."""
    return load_example("cats")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 21 pictures of 16 x 16 pixels; the working directory and the cache are the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINIGAN_DEVICE", "cpu")
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(21):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def train_example(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """train_example(system, *arguments): its command line, on the pictures, with tiny networks and 7 steps of 4."""

    def run(system: str, *arguments: str) -> None:
        module = load_example(system)
        preset = dataclasses.replace(
            module.PRESETS["small"], image_size=(16, 16), base_channels=2, z_size=5, batch_size=4, steps=7
        )
        monkeypatch.setitem(module.PRESETS, "small", preset)
        monkeypatch.setattr(sys, "argv", [f"{EXAMPLES[system]}.py", "--data", str(pictures), *arguments])
        module.main()

    return run


@pytest.fixture
def train_cats(cats: ModuleType, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The same for cats, whose preset a test may change further."""
    tiny = dataclasses.replace(cats.PRESETS["small"], image_size=(16, 16), base_channels=2, batch_size=4, steps=7)
    monkeypatch.setitem(cats.PRESETS, "small", tiny)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dcgan_cats.py", "--data", str(pictures), *arguments])
        cats.main()

    return run
