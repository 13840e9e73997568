"""Checkpoints to go back to: --resume --from STEP, --keep, and the best by score with --metrics-every."""

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from example_modules import load_example
from processes import assert_same_log, assert_same_state, last_checkpoint, steps_in_log

from minigan import serialization
from minigan.training import load_generator, loop
from minigan.training.run import Run

Train = Callable[..., None]


@pytest.fixture
def train(train_example: Train, cats: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Train:
    """train(folder, *arguments): cats, with a checkpoint of each step, all of them kept, and some samples."""
    often = dataclasses.replace(cats.PRESETS["small"], checkpoint_every=1, sample_every=2)
    monkeypatch.setitem(cats.PRESETS, "small", often)

    def run(folder: str, *arguments: str) -> None:
        train_example("cats", "--out", folder, "--quiet", "--keep", "20", *arguments)

    return run


def refusal(capsys: pytest.CaptureFixture, train: Train, *arguments: str) -> str:
    """The one line that a mistake gets."""
    with pytest.raises(SystemExit) as refused:
        train(*arguments)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def steps_of(folder: str, pattern: str) -> list[int]:
    return sorted(int(path.stem) for path in Path(folder).glob(pattern))


def steps_in_metrics(folder: str) -> list[int]:
    return [int(row["step"]) for row in csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines())]


def seed_in(folder: str) -> int:
    return json.loads(Path(folder, "config.json").read_text())["seed"]


def contents(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# ---- --resume --from STEP


def test_what_came_after_is_forgotten_and_comes_again_as_it_was(train: Train) -> None:
    train("run", "--metrics-every", "2")
    shutil.copytree("run", "whole")
    with open("run/health.log", "a") as health:
        health.write("step 3: found early\nstep 1,004: found late\n")
    train("run", "--metrics-every", "2", "--resume", "--from", "3", "--steps", "3")
    assert steps_of("run", "checkpoints/[0-9]*.safetensors") == [1, 2, 3]
    assert steps_of("run", "samples/*.png") == [0, 2]
    assert steps_in_log("run") == [1, 2, 3]
    assert steps_in_metrics("run") == [2]
    assert Path("run/health.log").read_text() == "step 3: found early\n"
    train("run", "--metrics-every", "2", "--resume", "--steps", "7")
    assert_same_state("run", "whole")
    assert_same_log("run", "whole")
    assert Path("run/metrics.csv").read_bytes() == Path("whole/metrics.csv").read_bytes()
    for path in sorted(Path("whole/samples").iterdir()):
        assert Path("run/samples", path.name).read_bytes() == path.read_bytes()
    assert seed_in("run") == 0


def test_another_seed_goes_another_way_and_is_the_seed_of_the_run_from_then_on(
    train: Train, capsys: pytest.CaptureFixture
) -> None:
    train("run")
    shutil.copytree("run", "old")
    shutil.copytree("run", "parts")
    train("run", "--resume", "--from", "3", "--seed", "9")
    assert seed_in("run") == 9
    assert steps_in_log("run") == list(range(1, 8))
    logs = [Path(folder, "log.csv").read_text().splitlines() for folder in ("old", "run")]
    assert logs[0][:4] == logs[1][:4]
    # Another order of the data, and other noise.
    assert [a.split(",")[3] == b.split(",")[3] for a, b in zip(*(log[4:] for log in logs), strict=True)] == [False] * 4
    # Stopped before its first step, and again in the middle.
    train("parts", "--resume", "--from", "3", "--seed", "9", "--steps", "3")
    assert seed_in("parts") == 9
    for steps in ("5", "7"):
        train("parts", "--resume", "--seed", "9", "--steps", steps)
    assert_same_state("run", "parts")
    assert_same_log("run", "parts")
    for folder in ("run", "parts"):
        error = refusal(capsys, train, folder, "--resume", "--seed", "0", "--steps", "9")
        assert "seed was 9, now is 0" in error


def test_the_seed_changes_only_where_one_is_given(train: Train) -> None:
    train("run", "--seed", "5")
    shutil.copytree("run", "same")
    train("same", "--resume", "--from", "3")
    assert seed_in("same") == 5
    assert_same_state("run", "same")
    train("run", "--seed", "0", "--resume", "--from", "3")
    assert seed_in("run") == 0
    assert not np.array_equal(*(last_checkpoint(folder)[0]["generator/0.weight"] for folder in ("run", "same")))


def test_a_resume_need_not_repeat_what_the_run_was_started_with(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = load_example("anime")
    tiny = dataclasses.replace(module.PRESETS["small"], base_channels=2, z_size=5)
    monkeypatch.setitem(module.PRESETS, "small", tiny)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dcgan_anime.py", *arguments])
        module.main()

    Path("bad.txt").write_text("0.png\n")
    options = [
        "--image-size",
        "16x32",
        "--batch-size",
        "3",
        "--seed",
        "4",
        "--average",
        "0.9",
        "--leave-out",
        "bad.txt",
        "--data",
    ]
    run(*options, str(pictures), "--steps", "6", "--out", "whole")
    run(*options, str(pictures), "--steps", "4")
    run("--resume", "--steps", "6")
    assert_same_state("whole", "runs/anime-0001")
    said = capsys.readouterr().out
    assert "preset: small (as before)" in said
    run("--resume")  # of so many steps, too
    assert "all 6 steps are done" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("--resume", "--batch-size", "4")
    assert "batch_size was 3, now is 4" in capsys.readouterr().err


def test_a_step_without_a_checkpoint_names_those_that_have_one(train: Train, capsys: pytest.CaptureFixture) -> None:
    train("run", "--keep", "3")
    before = contents("run")
    for step in ("4", "8"):
        error = refusal(capsys, train, "run", "--resume", "--from", step)
        assert f"--from: run has no checkpoint of step {step}; there is --from 5 or 6 or 7" in error
    assert "--from: expected --resume with it" in refusal(capsys, train, "run", "--from", "5")
    assert "--from: expected a whole number from 1, got '0'" in refusal(capsys, train, "run", "--resume", "--from", "0")
    assert contents("run") == before


def test_steps_beyond_a_million_are_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path, kept=3)
    run.add_line("log.csv", {"step": 1_234_567, "loss": 1_234_567.0})
    run.add_line("log.csv", {"step": 1_234_568, "loss": 0.5})
    run.close()
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1234567,1.23457e+06\n1234568,0.5\n"
    run._cut("log.csv", 1_234_567)
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1234567,1.23457e+06\n"


# ---- --keep


def test_so_many_checkpoints_are_kept_as_asked_for(train_example: Train, train: Train) -> None:
    for count, resume, steps, kept in (("2", [], "5", [4, 5]), ("4", ["--resume"], "7", [4, 5, 6, 7])):
        train("run", "--keep", count, "--steps", steps, *resume)
        assert steps_of("run", "checkpoints/*.safetensors") == kept
    train("run", "--keep", "1", "--steps", "8", "--resume")
    assert steps_of("run", "checkpoints/*.safetensors") == [8]


# ---- --metrics-every, and the best


def test_measuring_leaves_scores_and_the_best_checkpoint_and_changes_nothing(train: Train) -> None:
    train("run", "--metrics-every", "2")
    train("plain")
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))
    assert list(rows[0]) == ["step", "swd", "ms_ssim", "ms_ssim_data"]
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert all(float(row["swd"]) > 0 and 0 <= float(row["ms_ssim"]) <= 1 for row in rows)
    assert len({row["ms_ssim_data"] for row in rows}) == 1
    assert_same_log("run", "plain")
    tensors, state = last_checkpoint("run")
    plain_tensors, plain_state = last_checkpoint("plain")
    assert [name for name in tensors if not np.array_equal(tensors[name], plain_tensors[name])] == []
    assert {**state, "best": None} == plain_state
    assert not Path("plain/metrics.csv").exists()
    assert not Path("plain/checkpoints/best.safetensors").exists()

    lowest = min(rows, key=lambda row: float(row["swd"]))
    best, state = serialization.load_checkpoint(Path("run/checkpoints/best.safetensors"))
    assert state["step"] == int(lowest["step"])
    assert float(f"{state['best']:.6g}") == float(lowest["swd"])
    of_that_step, _ = serialization.load_checkpoint(Path(f"run/checkpoints/{state['step']:06d}.safetensors"))
    assert [name for name in best if not np.array_equal(best[name], of_that_step[name])] == []
    generator = load_generator("run/checkpoints/best.safetensors")
    np.testing.assert_array_equal(generator.state_dict()["0.weight"], best["generator/0.weight"])
    assert generator.generate(generator.noise(2)).shape == (2, 16, 16, 3)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """scores(9, 8 ...): what the samples are found to be worth, from now on."""

    def planned(*values: float) -> None:
        following: Iterator[float] = iter(values)
        monkeypatch.setattr(
            loop.Scores, "all", lambda self, generator: {"swd": next(following), "ms_ssim": 0.5, "ms_ssim_data": 0.5}
        )

    return planned


def best_step() -> int:
    return serialization.load_checkpoint(Path("run/checkpoints/best.safetensors"))[1]["step"]


def test_a_resumed_run_does_not_replace_the_best_by_a_worse_one(train: Train, scores: Callable[..., None]) -> None:
    scores(9, 5, 7)
    train("run", "--metrics-every", "1", "--steps", "3")
    assert best_step() == 2
    scores(8, 6)
    train("run", "--metrics-every", "1", "--steps", "5", "--resume")
    assert best_step() == 2
    scores(8, 4)
    train("run", "--metrics-every", "1", "--steps", "7", "--resume")
    assert best_step() == 7


def test_going_back_forgets_a_best_of_a_later_step(train: Train, scores: Callable[..., None]) -> None:
    scores(9, 5, 7, 8, 3, 4, 6)
    train("run", "--metrics-every", "1")
    assert best_step() == 5
    scores(4)
    train("run", "--metrics-every", "1", "--resume", "--from", "6")
    assert best_step() == 5  # of an earlier step: it stays
    scores(6)
    train("run", "--metrics-every", "1", "--resume", "--from", "4", "--steps", "4")
    assert not Path("run/checkpoints/best.safetensors").exists()
    train("run", "--metrics-every", "1", "--resume", "--steps", "5")
    assert best_step() == 5
    assert serialization.load_checkpoint(Path("run/checkpoints/best.safetensors"))[1]["best"] == 6


def test_images_too_small_to_be_scored_are_refused_before_anything_is_written(
    train_example: Train, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--out", "run", "--metrics-every", "2", "--image-size", "8"]
    error = refusal(capsys, train_example, "maxpool", *arguments)
    assert "--metrics-every: ms_ssim: expected uint8 images (N, H, W, 3) of at least 11 x 11" in error
    assert not Path("run").exists()
