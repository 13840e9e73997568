"""The cats example as a module, run in this process, and a folder of small pictures for it."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def cats() -> ModuleType:
    """examples/dcgan_cats.py."""
    spec = importlib.util.spec_from_file_location("dcgan_cats", EXAMPLES / "dcgan_cats.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dcgan_cats"] = module
    spec.loader.exec_module(module)
    return module


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
def train_cats(cats: ModuleType, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the example's command line on the pictures, with tiny networks."""
    tiny = dataclasses.replace(cats.PRESETS["small"], image_size=(16, 16), base_channels=2, batch_size=4, steps=7)
    monkeypatch.setitem(cats.PRESETS, "small", tiny)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dcgan_cats.py", "--data", str(pictures), *arguments])
        cats.main()

    return run
