"""The benchmark of the loader sees what is wrong, times the rest, and says what it measured."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import loader
import numpy as np
import pytest
from timing import Spread

from minigan.data import Batches

THREADS = ("1 thread", "2 threads")
TINY = ["--count", "5", "--batch-size", "2", "--repeats", "2"]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads; a cache folder that has to be left alone, as the user's."""
    monkeypatch.setenv("MINIGAN_NUM_THREADS", "2")
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "mine"))
    monkeypatch.setattr(loader, "BATCHES_A_SAMPLE", 3)
    yield
    assert os.environ["MINIGAN_CACHE"] == str(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_every_case_is_right_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "out.json"
    assert loader.main([*TINY, "--out", str(path)]) == 0
    said = capsys.readouterr().out
    assert "19 of 19 right" in said
    content = json.loads(path.read_text())
    results = {result["name"]: result for result in content["results"]}
    names = [f"first start, {s}, {n} x {n}, {t}" for s in loader.SOURCES for n in (64, 128) for t in THREADS]
    names += [f"second start, {s}, {n} x {n}" for s in loader.SOURCES for n in (64, 128)]
    assert set(results) == {*names, "batches, 2 x 64 x 64 x 3, flipped"}
    for name, result in results.items():
        assert name in said
        assert result["seconds"]["count"] == 2
        assert result["amount"] == (3 if name.startswith("batches") else 5)
        assert result["per_second"]["median"] == pytest.approx(result["amount"] / result["seconds"]["median"])
        assert result["per_second"]["low"] <= result["per_second"]["median"] <= result["per_second"]["high"]
    environment = content["environment"]
    assert environment["options"] == {"count": 5, "repeats": 2, "batch_size": 2}
    assert environment["threads"] == 2
    assert {"cpu", "load", "numpy", "pillow", "python", "minigan", "date", "mean_file_bytes"} <= set(environment)


def test_images_that_are_wrong_are_named_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = loader.load

    def wrong(path: Path, side: int, threads: int) -> np.ndarray:
        images = load(path, side, threads)
        if path.suffix == ".zip" and side == 128:
            images = images.copy()
            images[3, 0, 0, 0] ^= 1
        return images

    monkeypatch.setattr(loader, "load", wrong)
    assert loader.main(TINY) == 1
    said = capsys.readouterr().out
    assert "16 of 19 right" in said
    assert said.count("wrong: 1 of 5 images are not those that decode gives") == 3
    assert "| second start, zip, 128 x 128 | wrong: " in said


def test_a_second_start_that_decodes_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("minigan.data.images.cached", lambda key, h, w, fill: without_cache(h, w, fill))

    def without_cache(height: int, width: int, fill) -> tuple[np.ndarray, object]:
        found: list[np.ndarray] = []
        listing = fill(found.append)
        return np.stack(found), listing

    assert loader.main(TINY) == 1
    said = capsys.readouterr().out
    assert said.count("wrong: the images are decoded again") == 6
    assert "13 of 19 right" in said


@pytest.mark.parametrize("fault", ["scale", "flip", "order", "nan"])
def test_batches_that_are_wrong_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    assert loader.wrong_batches(images, 3, 5) == ""
    right = Batches.__next__

    def wrong(batches: Batches) -> np.ndarray:
        batch = right(batches)
        if batches.step == 4:
            if fault == "scale":
                batch *= np.float32(1.000001)
            elif fault == "flip":
                batch = batch[:, :, ::-1]
            elif fault == "order":
                batch = batch[::-1]
            else:
                batch[0, 0, 0, 0] = np.nan
        return batch

    monkeypatch.setattr(Batches, "__next__", wrong)
    assert loader.wrong_batches(images, 3, 5).startswith("batch 3 is off by ")


def test_a_missing_image_is_seen() -> None:
    images = np.zeros((3, 2, 2, 3), np.uint8)
    assert "expected images of shape (3, 2, 2, 3), got (2, 2, 2, 3)" in loader.wrong_images(images[:2], images)


def test_the_cache_is_emptied_before_a_first_start_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cache" / "images"
    with monkeypatch.context() as own:
        own.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
        cases = {case.name: case for case in loader.Bench(tmp_path, 2, 2).cases}
        cases["second start, tgz, 64 x 64"].prepare()
        before = {path.name: path.stat().st_ino for path in kept.glob("*.npy")}
        assert before
        cases["second start, tgz, 64 x 64"].call()
        assert {path.name: path.stat().st_ino for path in kept.glob("*.npy")} == before
        cases["first start, tgz, 64 x 64, 1 thread"].prepare()
        assert not kept.exists()


def test_the_table_says_median_and_spread() -> None:
    results = [
        loader.Result("fast", "images", 100, Spread(0.05, 0.04, 0.0625, 0.03, 5)),
        loader.Result("bad", "batches", 50, None, "all of it"),
    ]
    assert loader.table(results).splitlines()[2:] == [
        "| fast | 2,000 images | 45 % |",
        "| bad | wrong: all of it | |",
    ]


@pytest.mark.parametrize("arguments", [["--count", "3"], ["--repeats", "0"], ["--batch-size", "0"]])
def test_options_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="expected --repeats from 1 and --count from --batch-size"):
        loader.main(arguments)
