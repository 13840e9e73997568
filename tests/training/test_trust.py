"""What goes wrong in a run and must not spoil what is saved: values that are not finite, full disks, leaks."""

import dataclasses
import errno
import io
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_modules import load_example
from processes import assert_same_log, assert_same_state, end, last_checkpoint, steps_in_log, temporaries, training

import minigan as mg
from minigan import serialization
from minigan.debugging import set_debug
from minigan.training import run
from minigan.training.health import Health
from minigan.training.system import System

Train = Callable[..., None]


def failure(capsys: pytest.CaptureFixture, train: Train, *arguments: str) -> str:
    """The one line of a run that ends with exit code 2."""
    with pytest.raises(SystemExit) as failed:
        train(*arguments)
    error = capsys.readouterr().err
    assert failed.value.code == 2, error
    assert error.count("\n") == 1
    return error


def often(monkeypatch: pytest.MonkeyPatch, system: str, sample_every: int, checkpoint_every: int) -> None:
    presets = load_example(system).PRESETS
    changed = dataclasses.replace(presets["small"], sample_every=sample_every, checkpoint_every=checkpoint_every)
    monkeypatch.setitem(presets, "small", changed)


# ---- values that are not finite


def planted(kind: str, at: int, step: Callable[..., Any]) -> Callable[..., Any]:
    """A system's step that goes wrong once."""
    turns = []

    def poisoned(self: Any, real: mg.Tensor) -> dict[str, mg.Tensor | float]:
        turns.append(kind)
        bad = len(turns) == at
        if bad and kind == "input":
            real.data[0, 0, 0, 0] = np.nan
        if bad and kind == "weight":
            self.discriminator.parameters()[0].data.reshape(-1)[0] = np.nan
        adam_step = self.generator_adam.step
        if bad and kind == "gradient":

            def with_bad_gradient() -> None:
                self.generator.parameters()[0].grad.data.reshape(-1)[0] = np.nan
                adam_step()

            self.generator_adam.step = with_bad_gradient
        with np.errstate(invalid="ignore"):
            values = dict(step(self, real))
        self.generator_adam.step = adam_step
        if bad and kind == "loss":
            values[next(name for name in values if "loss" in name)] = float("nan")
        return values

    return poisoned


@pytest.mark.parametrize("kind", ["loss", "gradient", "weight", "input"])
@pytest.mark.parametrize("system", ["cats", "began"])
def test_what_is_not_finite_is_never_saved_and_named(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, system: str, kind: str
) -> None:
    often(monkeypatch, system, 1000, 2)
    cls: type[System] = getattr(load_example(system), system.capitalize())
    for at in (4, 5):  # of step 4 there is to be a checkpoint
        folder = str(at)
        with monkeypatch.context() as patch:
            patch.setattr(cls, "step", planted(kind, at, cls.step))
            error = failure(capsys, train_example, system, "--out", folder, "--quiet")
        found = re.search(r"error: (step (\d): not finite: (.*?)\. Nothing of it was saved)", error)
        assert found, error
        # A gradient spoils weights at the end of a step that is not looked through; the next one's losses show it.
        assert int(found[2]) == at + (kind == "gradient" and at == 5)
        # What a step spoils before its end it spoils everywhere: then all of it is told, by its kind.
        layer = r"(generator|discriminator), layer [0.]+ \(\w+\), weight"
        spoilt = rf"(k and|{layer}) .*the gradient of {layer} .*\w*loss\w* \(nan\).*"
        named = {"loss": r"\w*loss\w* \(nan\)", "weight": spoilt, "input": spoilt}
        named["gradient"] = spoilt if at == 5 else r"generator, layer 0 \(Linear\), weight; the gradient of generator.*"
        assert re.fullmatch(named[kind], found[3]), found[3]
        assert f"go back with --resume --from {int(found[2]) - 1 & ~1} and another --seed" in error
        assert Path(folder, "health.log").read_text() == found[1].partition(". Nothing")[0] + "\n"
        saved = sorted(Path(folder, "checkpoints").iterdir())
        assert [int(path.stem) for path in saved] == ([2] if found[2] == "4" else [2, 4])
        for path in saved:
            tensors, _ = serialization.load_checkpoint(path)  # whose state has finite numbers only
            assert all(np.isfinite(value).all() for value in tensors.values())


def test_before_the_first_checkpoint_there_is_none_to_go_back_to(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cats = load_example("cats").Cats
    with monkeypatch.context() as patch:
        patch.setattr(cats, "step", planted("weight", 3, cats.step))
        error = failure(capsys, train_example, "cats", "--out", "run", "--quiet")
    assert "--from" not in error
    train_example("cats", "--out", "run", "--quiet")  # the advice can be followed
    assert Path("run/health.log").read_text() == ""


def test_a_run_that_went_wrong_can_go_another_way(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    often(monkeypatch, "cats", 1000, 2)
    cats = load_example("cats").Cats
    with monkeypatch.context() as patch:
        patch.setattr(cats, "step", planted("weight", 5, cats.step))
        failure(capsys, train_example, "cats", "--out", "run", "--quiet")
    assert "nan" in Path("run/log.csv").read_text()
    train_example("cats", "--out", "run", "--quiet", "--resume", "--from", "4", "--seed", "1")
    assert Path("run/health.log").read_text() == ""
    assert "nan" not in Path("run/log.csv").read_text()
    assert steps_in_log("run") == list(range(1, 8))


def test_no_samples_are_drawn_with_bad_weights(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    often(monkeypatch, "cats", 4, 1000)
    cats = load_example("cats").Cats
    monkeypatch.setattr(cats, "step", planted("gradient", 4, cats.step))
    assert "step 4: not finite: generator, layer 0" in failure(capsys, train_example, "cats", "--out", "run", "--quiet")
    assert [path.name for path in Path("run/samples").iterdir()] == ["000000.png"]


def test_minigan_debug_names_the_operation(train_example: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    cats = load_example("cats").Cats
    monkeypatch.setattr(cats, "step", planted("weight", 3, cats.step))
    with set_debug(True), pytest.raises(FloatingPointError, match=r"^Conv2d: output of shape .* not finite") as stopped:
        train_example("cats", "--out", "run", "--quiet")
    assert stopped.value.__notes__ == ["This was step 3."]
    assert Path("run/health.log").read_text() == f"step 3: {stopped.value}\n"


def test_a_finding_is_told_once_though_the_run_was_killed_after_it(
    train_example: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch_losses(self: Health, step: int, values: dict[str, float]) -> list[str]:
        return ["step 5: found"] if step == 5 else []

    monkeypatch.setattr(Health, "watch_losses", watch_losses)
    often(monkeypatch, "cats", 1000, 4)
    train_example("cats", "--out", "run", "--quiet", "--steps", "6")
    Path("run/checkpoints/000006.safetensors").unlink()  # as if it had been killed before this
    train_example("cats", "--out", "run", "--quiet", "--steps", "6", "--resume")
    assert Path("run/health.log").read_text() == "step 5: found\n"


# ---- disks that are full, folders that cannot be written


class Full(io.FileIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


SCORED = ["cats", "--quiet", "--metrics-every", "2", "--out"]


def test_a_disk_that_is_full_for_a_whole_file(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train_example(*SCORED, "whole")
    whole = [
        "config.json",
        "samples/000007.png",
        "checkpoints/best",
        "checkpoints/000007",
        "progress.gif",
        "losses.png",
    ]
    for name in whole:
        folder = name.replace("/", "-")
        train_example(*SCORED, folder, "--steps", "3")
        before = set(Path(folder, "checkpoints").iterdir())

        def full(path: Path, mode: str, buffering: int = -1, hit: str = f"{folder}/{name}") -> Any:
            parts = hit.split("/")
            here = path.parts[: len(parts) - 1] == tuple(parts[:-1]) and path.name.startswith(f".{parts[-1]}")
            return Full(path, mode) if here else open(path, mode, buffering)

        with monkeypatch.context() as patch:
            patch.setattr(serialization, "open", full, raising=False)
            error = failure(capsys, train_example, *SCORED, folder, "--resume", "--steps", "7")
        message = rf"{folder}/{name}\S*: cannot be written: No space left on device; the disk of {folder}\S* is full"
        assert re.search(message, error)
        assert temporaries(folder) == []
        assert before <= set(Path(folder, "checkpoints").iterdir())
        for path in Path(folder, "checkpoints").iterdir():
            serialization.load_checkpoint(path)
        train_example(*SCORED, folder, "--resume", "--steps", "7")
        assert Path(folder, "progress.gif").exists()
        assert_same_state(folder, "whole")
        assert_same_log(folder, "whole")


def test_a_disk_that_is_full_for_a_line(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train_example(*SCORED, "whole")
    for name in ("log.csv", "metrics.csv", "health.log"):
        folder = Path(name).stem
        train_example(*SCORED, folder, "--steps", "3")
        path = Path(folder, name)
        content = path.read_bytes()
        path.unlink()
        path.symlink_to("/dev/full")
        with monkeypatch.context() as patch:
            patch.setattr(run.Run, "_cut", lambda self, name, step: None)  # it would put a file in its place
            patch.setattr(Health, "watch_losses", lambda self, step, values: [f"step {step}: found"])
            error = failure(capsys, train_example, *SCORED, folder, "--resume", "--steps", "7")
        assert error == f"dcgan_cats.py: error: --out: {folder}/{name}: cannot be written: No space left on device\n"
        assert temporaries(folder) == []
        assert last_checkpoint(folder)[1]["step"] == 3
        path.unlink()
        path.write_bytes(content)
        train_example(*SCORED, folder, "--resume", "--steps", "7")
        assert_same_state(folder, "whole")
        assert_same_log(folder, "whole")


def test_a_folder_that_cannot_be_written(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train_example("cats", "--out", "run", "--quiet", "--steps", "3")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}

    def refused(path: Any, *arguments: Any, **named: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for owner, name, arguments in (
        (Path, "mkdir", ["--out", "new"]),
        (Path, "mkdir", []),
        (Path, "iterdir", ["--out", "run"]),
        (run, "open", ["--out", "run", "--resume"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refused, raising=False)
            error = failure(capsys, train_example, "cats", "--quiet", *arguments)
        assert re.fullmatch(r"dcgan_cats.py: error: --out: \S+: cannot be written: Permission denied\n", error)
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before
    assert not Path("new").exists()
    train_example("cats", "--out", "run", "--quiet", "--resume")


@pytest.mark.parametrize("place", ["a file", "below a file", "read-only", "full", "used"])
def test_where_nothing_can_be_written_is_told_before_the_data_are_read(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, place: str
) -> None:
    Path("file").touch()
    Path("folder").mkdir()
    Path("used").mkdir()
    Path("used", "a.txt").touch()
    out, where, reason = {
        "a file": ("file", "file", "cannot be written: Not a directory"),
        "below a file": ("file/a/b", "file", "cannot be written: Not a directory"),
        "read-only": ("folder/a/b", "folder", "cannot be written: Read-only file system"),
        "full": ("folder", "folder", "cannot be written: No space left on device"),
        "used": ("used", "used", "is not empty; choose another folder, or --resume to go on with the run in it"),
    }[place]

    def temporary(dir: Path) -> Any:  # as where root, who may write into any folder, cannot
        assert dir == Path(where)
        if place == "full":
            return Full("file", "w")
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    if place in ("read-only", "full"):
        monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    before = set(Path().rglob("*"))
    error = failure(capsys, train_example, "cats", "--quiet", "--data", "nowhere", "--out", out)
    assert re.fullmatch(rf"dcgan_cats.py: error: --out: {where}:? {reason}\n", error)
    assert set(Path().rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
@pytest.mark.parametrize("place", ["new", "old"])
def test_a_folder_that_the_system_keeps_closed(train_example: Train, capsys: pytest.CaptureFixture, place: str) -> None:
    closed = Path("closed")
    closed.mkdir()
    if place == "old":
        train_example("cats", "--out", "closed/run", "--quiet", "--steps", "3")
        closed = Path("closed/run/checkpoints")
    closed.chmod(0o500)
    try:
        error = failure(
            capsys, train_example, "cats", "--out", "closed/run", "--quiet", *["--resume"] * (place == "old")
        )
    finally:
        closed.chmod(0o700)
    assert "Permission denied" in error


# ---- leaks

MEASURES = """
def measure(turn):
    if turn > 500 and turn % 25 == 1:
        status = Path("/proc/self/status").read_text().split()
        names = ("VmRSS:", "Threads:")
        found = [int(status[status.index(name) + 1]) for name in names]
        print("measured", *found, len(os.listdir("/proc/self/fd")), flush=True)
before(module.Cats, "step", measure)
"""


def test_a_thousand_steps_take_no_more_memory_threads_or_files(
    train_example: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    arguments = [
        "--out",
        "run",
        "--steps",
        "1000",
        "--batch-size",
        "2",
        "--average",
        "0.9",
        "--metrics-every",
        "200",
        "--tensorboard",
    ]
    with training(*arguments, changes=MEASURES, sample_every=100, checkpoint_every=100) as process:
        out, err = end(process, timeout=300)
        assert (process.returncode, err) == (0, "")
    lines = [line.split()[1:] for line in out.splitlines() if line.startswith("measured")]
    memory, threads, files = np.array(lines, int).T
    assert len(memory) == 20
    assert memory.max() <= 1.02 * memory[0], f"{memory} kB"
    assert len(set(threads)) == 1
    assert len(set(files)) == 1
    assert list((tmp_path / "temporary").iterdir()) == []
    assert temporaries("run") == []
    assert not list(tmp_path.glob("*.part"))
