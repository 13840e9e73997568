"""What the tests of data share: a cache of their own, and small pictures."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; returns where the sets of images will be."""
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIGAN_CACHE_GIB", raising=False)
    return tmp_path / "cache" / "images"


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """The function encode(image, format="PNG", **settings) -> bytes; image: a Pillow image or an array."""

    def encode(image: Image.Image | np.ndarray, format: str = "PNG", **settings: object) -> bytes:
        file = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **settings)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """The function noise(seed, height=8, width=8) -> (height, width, 3), uint8."""

    def noise(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    return noise
