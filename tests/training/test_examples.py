"""Every example from its command line: what it leaves behind; that a resume changes nothing; sizes; devices."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from example_modules import EXAMPLE_FOLDER, EXAMPLES, load_example
from PIL import Image

import minigan as mg
from minigan import models, serialization
from minigan.training import load_generator

Train = Callable[..., None]

COLUMNS = {
    "cats": ["loss_discriminator", "loss_generator", "d_real", "d_fake"],
    "simpsons": ["loss_discriminator", "loss_generator", "d_real", "d_fake"],
    "anime": ["loss_real", "loss_fake", "loss_generator", "d_real", "d_fake"],
    "maxpool": ["d_loss", "g_loss", "d_real", "d_fake"],
    "began": ["k", "loss_real", "loss_gen_D", "loss_D", "loss_G", "learning_rate", "M"],
}
# What the networks' sizes have to be multiples of.
FACTORS = {"cats": 16, "simpsons": 16, "anime": 16, "maxpool": 8, "began": 8}


def checkpoint(folder: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return serialization.load_checkpoint(sorted(Path(folder, "checkpoints").glob("*.safetensors"))[-1])


def log_of(folder: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "log.csv").read_text().splitlines()))


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not np.array_equal(a[name], b[name])]
    assert not different


@pytest.mark.parametrize("system", EXAMPLES)
def test_a_run_leaves_what_the_article_has(train_example: Train, system: str) -> None:
    train_example(system, "--out", "run", "--quiet")
    rows = log_of("run")
    assert list(rows[0]) == ["step", "epoch", "batch", *COLUMNS[system], "images_per_second"]
    assert [int(row["batch"]) for row in rows] == [0, 1, 2, 3, 4, 0, 1]
    assert all(np.isfinite([float(value) for value in row.values()]).all() for row in rows)
    settings = json.loads(Path("run/config.json").read_text())["settings"]
    with Image.open("run/samples/000007.png") as grid:
        rows_of_grid = -(-settings["samples"] // settings["columns"])
        ratio = (settings["columns"] * 18 - 2) / (rows_of_grid * 18 - 2)
        assert grid.width / grid.height == pytest.approx(ratio)
    assert Path("run/progress.gif").exists()


@pytest.mark.parametrize("system", EXAMPLES)
def test_a_resume_at_any_step_is_bit_exact(train_example: Train, system: str) -> None:
    # Five batches an epoch: the splits fall in the middle of one, too.
    train_example(system, "--out", "whole", "--quiet", "--steps", "11")
    for steps in range(1, 12):
        train_example(system, "--out", "parts", "--quiet", "--steps", str(steps), *(["--resume"] if steps > 1 else []))
    whole, parts = checkpoint("whole"), checkpoint("parts")
    assert_same(whole[0], parts[0])
    # What was seen of its health differs: each stop drew one more grid.
    assert {**whole[1], "health": None} == {**parts[1], "health": None}
    for a, b in zip(log_of("whole"), log_of("parts"), strict=True):
        assert {**a, "images_per_second": ""} == {**b, "images_per_second": ""}


def test_an_average_of_the_weights_is_kept_and_drawn_from(train_example: Train) -> None:
    train_example("anime", "--out", "plain", "--quiet", "--steps", "6")
    train_example("anime", "--out", "whole", "--quiet", "--steps", "6", "--average", "0.9")
    train_example("anime", "--out", "parts", "--quiet", "--steps", "2", "--average", "0.9")
    train_example("anime", "--out", "parts", "--quiet", "--steps", "6", "--average", "0.9", "--resume")
    plain, (whole, _), (parts, _) = checkpoint("plain")[0], checkpoint("whole"), checkpoint("parts")
    assert_same(whole, parts)
    # The run itself is the same as without an average; the average is another network.
    assert_same(plain, {name: value for name, value in whole.items() if not name.startswith("average/")})
    assert not np.array_equal(whole["average/0.weight"], whole["generator/0.weight"])
    np.testing.assert_array_equal(load_generator("whole").state_dict()["0.weight"], whole["average/0.weight"])


def test_the_average_is_the_weighted_mean_that_it_says() -> None:
    from minigan.training.averaging import average_of, update_average

    mg.manual_seed(0)
    network, _ = models.build("maxpool", image_size=8, base_channels=1, z_size=2)
    average = average_of(network)
    expected = network.state_dict()["0.weight"].astype(np.float64)
    for step in (1, 2, 500):
        weight = network.parameters()[0]
        weight.data[...] += 1
        update_average(average, network, 0.9, step)
        keep = {1: 2 / 11, 2: 3 / 12, 500: 0.9}[step]
        expected = keep * expected + (1 - keep) * weight.data
        np.testing.assert_allclose(average.state_dict()["0.weight"], expected, rtol=1e-6, atol=1e-6)
    assert not np.array_equal(network.state_dict()["0.weight"], average.state_dict()["0.weight"])


@pytest.mark.parametrize("system", EXAMPLES)
@pytest.mark.parametrize("size", ["32", "48x32"])
def test_other_sizes(train_example: Train, system: str, size: str) -> None:
    height, _, width = size.partition("x")
    train_example(system, "--out", "run", "--quiet", "--steps", "1", "--image-size", size)
    generator = load_generator("run")
    assert generator.generate(generator.noise(1)).shape == (1, int(height), int(width or height), 3)


@pytest.mark.parametrize("system", EXAMPLES)
def test_a_size_that_the_networks_do_not_allow(
    train_example: Train, system: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        train_example(system, "--out", "run", "--image-size", "50x36")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"expected an image size of multiples of {FACTORS[system]} (such as " in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("system", EXAMPLES)
def test_the_smallest_batch_is_told_before_anything_is_done(
    train_example: Train, system: str, capsys: pytest.CaptureFixture
) -> None:
    """Batch norm with one value a channel: at 16 x 16 the narrowest layers of three systems are one pixel."""
    one = ["--batch-size", "1", "--steps", "1", "--out"]
    if system in ("maxpool", "began"):
        train_example(system, *one, "one", "--image-size", "8")
    else:
        with pytest.raises(SystemExit) as end:
            train_example(system, *one, "one", "--data", "nowhere")
        error = capsys.readouterr().err
        assert (end.value.code, error.count("\n"), Path("one").exists()) == (2, 1, False)
        assert "--batch-size: one image of 16 x 16 is too few: batch_norm: expected at least 2 values" in error
        assert error.endswith("; expected --batch-size 2 or more, or a larger --image-size\n")
        train_example(system, *one, "two", "--batch-size", "2", "--quiet")
    # Where one image suffices, having tried it changes nothing.
    train_example(system, *one, "large", "--image-size", "32")
    trained = checkpoint("large")[0]
    mg.manual_seed(0)
    fresh, _ = models.build(system, image_size=32, base_channels=2, z_size=5)
    name, weight = next(fresh.named_parameters())
    assert 0 < np.abs(trained[f"generator/{name}"] - weight.data).max() < 1.1e-3  # a step of Adam


@pytest.mark.parametrize("system", EXAMPLES)
def test_noise_drawn_on_the_device_goes_on_bit_for_bit_after_a_resume(train_example: Train, system: str) -> None:
    options = "--quiet", "--batch-size", "2", "--device", "emulated", "--out"
    train_example(system, *options, "whole", "--steps", "3")
    train_example(system, *options, "parts", "--steps", "1")
    train_example(system, *options, "parts", "--steps", "3", "--resume")
    whole, parts = ([[row[name] for name in COLUMNS[system]] for row in log_of(run)] for run in ("whole", "parts"))
    assert len(whole) == 3
    assert whole == parts


@pytest.mark.usefixtures("noise_of_the_cpu")
@pytest.mark.parametrize("system", EXAMPLES)
def test_the_emulated_device_trains_as_the_cpu_does(train_example: Train, system: str) -> None:
    for device in ("cpu", "emulated"):
        train_example(system, "--out", device, "--quiet", "--steps", "2", "--batch-size", "2", "--device", device)
    cpu, emulated = (
        [[float(row[name]) for name in COLUMNS[system]] for row in log_of(device)] for device in ("cpu", "emulated")
    )
    np.testing.assert_allclose(cpu, emulated, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("system", EXAMPLES)
def test_an_image_depends_on_its_own_z_alone(system: str) -> None:
    mg.manual_seed(3)
    generator, _ = models.build(system, image_size=32, base_channels=4, z_size=7)
    for name, tensor in generator.named_tensors():  # as after some training
        if name.endswith("running_mean"):
            tensor.data[...] = np.random.default_rng(0).normal(0, 1, tensor.shape)
    z = generator.noise(9)
    many = generator.generate(z)
    assert np.ptp(many) > 0
    for i in (0, 4, 8):
        # In another batch BLAS may add in another order: a level of 255 at most.
        assert np.abs(generator.generate(z[i : i + 1]).astype(int) - many[i : i + 1]).max() <= 1
    assert generator.training


def test_simpsons_leaves_out_listed_files(train_example: Train, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    Path("bad.txt").write_text("0.png\n7.png\nabsent.png\n")
    train_example("simpsons", "--leave-out", "bad.txt", "--steps", "1")
    assert "19 images from pictures/, 2 of 3 listed names left out" in capsys.readouterr().out


def test_began_leaves_out_grey_images(train_example: Train, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (16, 16), (90, 90, 90)).save(pictures / "grey.png")
    train_example("began", "--steps", "1", "--out", "faces")
    assert "21 images from pictures/, 1 skipped: grey.png (grey)" in capsys.readouterr().out
    train_example("cats", "--steps", "1", "--out", "cats")
    assert "22 images from pictures/\n" in capsys.readouterr().out


def test_maxpool_turns_one_photo(train_example: Train, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    train_example("maxpool", "--data", str(pictures / "3.png"), "--steps", "1", "--out", "run")
    assert "3.png, turned by every degree and mirrored: the first 600 of 720 images" in capsys.readouterr().out
    assert json.loads(Path("run/config.json").read_text())["images"] == 600
    (pictures / "broken.png").write_bytes(b"no picture")
    for system, name, words in (
        ("maxpool", "broken.png", "broken.png: not a JPEG, PNG, WebP, GIF, BMP or TIFF image"),
        ("cats", "3.png", "3.png is one image: expected a folder or an archive of many"),
    ):
        with pytest.raises(SystemExit) as end:
            train_example(system, "--data", str(pictures / name), "--out", "other")
        assert end.value.code == 2
        assert words in capsys.readouterr().err


class TestBegan:
    """Its learning rate and k."""

    @pytest.fixture
    def began(self) -> Any:
        module: ModuleType = load_example("began")
        import dataclasses

        mg.manual_seed(0)
        settings = dataclasses.replace(module.PRESETS["paper"], image_size=(8, 8), base_channels=2, z_size=3)
        return module.Began(settings, "cpu")

    def test_the_learning_rate_falls_after_an_epoch_without_progress(self, began: Any) -> None:
        rates = []
        for m in (0.5, 0.4, 0.4, 0.3, 0.6, 0.2):
            began.sum_of_m, began.numbers["steps_in_epoch"] = mg.tensor(10 * m, device="cpu"), 10
            began.end_epoch()
            rates.append((began.generator_adam.lr, began.discriminator_adam.lr))
        expected = [1e-4, 1e-4, 0.9e-4, 0.9e-4, 0.81e-4, 0.81e-4]
        np.testing.assert_allclose(rates, np.array([expected, expected]).T)
        for _ in range(40):
            began.sum_of_m, began.numbers["steps_in_epoch"] = mg.tensor(10.0, device="cpu"), 10
            began.end_epoch()
        assert began.generator_adam.lr == began.discriminator_adam.lr == 1e-5

    def test_k_stays_between_0_and_1(self, began: Any) -> None:
        real = mg.tensor(np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 3)).astype(np.float32), device="cpu")
        for start, bound in ((0.0, 0.0), (1.0, 1.0)):
            began.k = mg.tensor(start, device="cpu")
            # A real image that is reconstructed at once lowers k; one that never is raises it.
            values = began.step(real * 0.0 if bound == 0.0 else real + 100.0)
            assert values["k"].item() == start  # the loss of a step uses the old k
            assert began.k.item() == bound


def test_every_example_is_a_story_of_one_sitting() -> None:
    for name in EXAMPLES.values():
        assert len((EXAMPLE_FOLDER / f"{name}.py").read_text().splitlines()) <= 150
