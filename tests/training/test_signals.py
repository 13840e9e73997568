"""A run that is interrupted: by SIGINT or SIGTERM, which save it, or by `kill -9`, which cannot be helped.

Real processes, at random moments; and all places of a run, in this process.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from processes import (
    assert_same_log,
    assert_same_state,
    end,
    last_checkpoint,
    steps_in_log,
    temporaries,
    training,
    wait_for_step,
)

from minigan.training import loop, run, watch

Train = Callable[..., None]

MANY = "1000000"


def interrupt(folder: str, numbers: list[int]) -> int:
    """A run that gets a signal, goes on, gets the next one ...; returns the step that it stands at in the end."""
    rng = random.Random(folder)
    step = 0
    for i, number in enumerate(numbers):
        # Saving all the time, or only when the signal asks for it; then most of the time goes into samples.
        often = {"checkpoint_every": 1, "sample_every": 3} if i % 2 else {"checkpoint_every": 10**6, "sample_every": 1}
        with training("--out", folder, "--steps", MANY, *["--resume"] * (i > 0), **often) as process:
            wait_for_step(process, folder, step + 1)
            time.sleep(rng.uniform(0, 0.1))
            seen = steps_in_log(folder)[-1]
            out, err = end(process, number)
            assert (process.returncode, err) == (128 + number, "")
        step = steps_in_log(folder)[-1]
        assert step >= seen
        assert last_checkpoint(folder)[1]["step"] == step
        assert out.endswith(f"stopped after step {step}, which is saved; go on with --resume --out {folder}\n")
        assert temporaries(folder) == []
    return step


def kill(folder: str, times: int) -> int:
    """The same with `kill -9`, which may lose a step that is not yet saved."""
    rng = random.Random(folder)
    step = 0
    for i in range(times):
        often = {"checkpoint_every": 1, "sample_every": 1}
        with training("--out", folder, "--steps", MANY, *["--resume"] * (i > 0), **often) as process:
            wait_for_step(process, folder, step + 2)  # so that one at least is saved
            time.sleep(rng.uniform(0, 0.1))
            end(process, signal.SIGKILL)
            assert process.returncode == -signal.SIGKILL
        step = last_checkpoint(folder)[1]["step"]
        assert steps_in_log(folder)[-1] in (step, step + 1)
    # What a kill can leave, and perhaps none of these did.
    for name in (".config.json", "checkpoints/.000001.safetensors", "samples/.000001.png"):
        Path(folder, f"{name}.0123456789abcdef.part").write_bytes(b"half")
    with open(f"{folder}/log.csv", "a") as log:
        log.write(f"{step + 1},0,0,0.5")
    return step


def test_signals_and_kills_at_random_moments_change_nothing(train_example: Train) -> None:
    numbers: list[int] = [signal.SIGTERM] * 8 + [signal.SIGINT] * 4
    random.Random(0).shuffle(numbers)
    with ThreadPoolExecutor(2) as pool:  # two processes at a time
        runs = {
            "a": pool.submit(interrupt, "a", numbers[:6]),
            "b": pool.submit(interrupt, "b", numbers[6:]),
            "killed": pool.submit(kill, "killed", 5),
        }
    steps = 3 + max(run.result() for run in runs.values())
    train_example("cats", "--out", "whole", "--quiet", "--steps", str(steps))
    for folder in runs:
        train_example("cats", "--out", folder, "--quiet", "--steps", str(steps), "--resume")
        assert temporaries(folder) == []
        log = Path(folder, "log.csv").read_bytes().decode()
        assert log.endswith("\n")
        assert "\r" not in log
        assert len({line.count(",") for line in log.splitlines()}) == 1
        assert steps_in_log(folder) == list(range(1, steps + 1))
        assert_same_state(folder, "whole")
        assert_same_log(folder, "whole")


# Where a run can be when a signal comes: (object, function, the call at whose beginning it comes).
PLACES: dict[str, tuple[Any, str, int]] = {
    "making the folder": (run, "_surroundings", 1),
    "first grid": (watch.Watch, "show_samples", 1),
    "step": (loop._Training, "_one_step", 3),
    "log": (watch.Watch, "log", 3),
    "samples": (watch.Watch, "show_samples", 2),
    "scores": (loop.Scores, "all", 1),
    "best": (run.Run, "save_best", 1),
    "checkpoint": (run.Run, "save_checkpoint", 1),
    "last step": (loop._Training, "_one_step", 7),
    "film": (run, "film", 1),
    "plot": (run, "plot_losses", 1),
    "last score": (loop._Training, "_finish", 1),
}


def test_a_signal_at_each_place_of_a_run(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["--metrics-every", "3"]
    train_example("cats", "--out", "whole", "--quiet", *options)

    def deadly(number: int, frame: FrameType | None) -> None:
        raise AssertionError("this would have been the end")

    before = [(number, signal.signal(number, deadly)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        check_each_place(train_example, monkeypatch, capsys, options)
        assert [signal.getsignal(number) for number, _ in before] == [deadly] * 2
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def check_each_place(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: list[str]
) -> None:
    for i, (place, (owner, name, turn)) in enumerate(PLACES.items()):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(owner, name, interrupted(getattr(owner, name), turn, number))
            train_example("cats", "--out", place, *options)
        assert ended.value.code == 128 + number, place
        said, errors = capsys.readouterr()
        step = steps_in_log(place)[-1]
        assert errors == "", place
        assert last_checkpoint(place)[1]["step"] == step, place
        assert Path(place, "samples", f"{step:06d}.png").exists(), place
        assert (f"stopped after step {step}, which is saved" in said) == (step < 7), place
        assert Path(place, "progress.gif").exists() == (step == 7), place
        train_example("cats", "--out", place, "--quiet", "--resume", *options)
        assert Path(place, "progress.gif").exists(), place
        assert_same_state(place, "whole")
        assert_same_log(place, "whole")


def interrupted(function: Callable[..., Any], turn: int, number: int) -> Callable[..., Any]:
    """The same, but that this process sends itself a signal at the beginning of one call."""
    calls = []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(number)
        if len(calls) == turn:
            os.kill(os.getpid(), number)
        return function(*arguments, **named)

    return call


# In short pieces: of a signal that comes just before a sleep, Python hears at its end.
WAITS = 'print("here", flush=True); [time.sleep(0.01) for _ in range(3000)]'


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_leaves_nothing(train_example: Train, number: signal.Signals) -> None:
    changes = f"before(loop.Scores, 'distance', lambda turn: exec({WAITS!r}))"
    with training("--out", "run", "--quiet", changes=changes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        _, err = end(process, number, timeout=5)
    if number == signal.SIGINT:
        assert (process.returncode, err) == (130, "stopped before training began: there is nothing to save\n")
    else:  # the usual death, for which a shell says 143, too
        assert (process.returncode, err) == (-signal.SIGTERM, "")
    assert not Path("run").exists()


def catches(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether a handler would be called, and not the signal's default, by what Linux says of the process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_second_ctrl_c_ends_at_once(train_example: Train) -> None:
    changes = f"before(module.Cats, 'step', lambda turn: exec({WAITS!r}) if turn == 4 else None)"
    with training("--out", "run", "--quiet", changes=changes, checkpoint_every=2) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 10
        while catches(process, signal.SIGINT):  # until Python has called the handler
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None
        started = time.monotonic()
        assert end(process, signal.SIGINT, timeout=10) == ("", "")
        assert time.monotonic() - started < 2
        assert process.returncode == -signal.SIGINT  # for which a shell says 130
    assert last_checkpoint("run")[1]["step"] == 2
    train_example("cats", "--out", "run", "--quiet", "--resume")
    train_example("cats", "--out", "whole", "--quiet")
    assert_same_state("run", "whole")


def test_nobody_reads_any_more(train_example: Train) -> None:
    """As behind `| head -1`: no traceback, and the exit code that a shell gives for SIGPIPE."""
    with training("--out", "run", "--steps", "1000000") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("device: cpu")
        process.stdout.close()
        process.stdout = None
        assert (end(process)[1], process.returncode) == ("", 141)
    reader, writer = os.pipe()
    os.close(reader)
    for unbuffered in ("", "1"):
        environment = dict(os.environ, PYTHONUNBUFFERED=unbuffered)
        command = [sys.executable, "-m", "minigan"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
        assert (done.stderr, done.returncode) == ("", 141)
    os.close(writer)


def test_a_run_killed_before_its_first_checkpoint_does_not_block_its_folder(
    train_example: Train, capsys: pytest.CaptureFixture
) -> None:
    train_example("cats", "--out", "whole", "--quiet")
    for folder, place, turn in (
        ("a", "serialization, 'write_whole'", 1),  # the first file is config.json
        ("b", "watch.Watch, 'show_samples'", 1),
        ("c", "module.Cats, 'step'", 2),
    ):
        changes = f"before({place}, lambda turn: os.kill(os.getpid(), signal.SIGKILL) if turn == {turn} else None)"
        with training("--out", folder, "--quiet", changes=changes) as process:
            assert end(process) == ("", "")
            assert process.returncode == -signal.SIGKILL
        Path(folder, ".config.json.0123456789abcdef.part").write_bytes(b"half")
        assert Path(folder, ".lock").exists()
        with pytest.raises(SystemExit) as refused:
            train_example("cats", "--out", folder, "--resume")
        assert refused.value.code == 2
        assert f"no run with a checkpoint in {folder}; start it without --resume" in capsys.readouterr().err
        train_example("cats", "--out", folder, "--quiet")
        assert temporaries(folder) == []
        assert_same_state(folder, "whole")
        assert_same_log(folder, "whole")


def test_only_a_run_without_a_checkpoint_is_written_over(train_example: Train, capsys: pytest.CaptureFixture) -> None:
    train_example("cats", "--out", "run", "--quiet")
    Path("other").mkdir()
    Path("other/.lock").touch()
    Path("other/notes.txt").write_text("theirs")
    Path("lockless/checkpoints").mkdir(parents=True)
    for folder in ("run", "other", "lockless"):
        before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}
        with pytest.raises(SystemExit) as refused:
            train_example("cats", "--out", folder)
        assert refused.value.code == 2
        assert f"--out: {folder} is not empty" in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")} == before


def test_a_folder_belongs_to_one_process_until_that_ends(train_example: Train, capsys: pytest.CaptureFixture) -> None:
    changes = f"before(module.Cats, 'step', lambda turn: exec({WAITS!r}) if turn == %d else None)"
    # Before it has a checkpoint, and after.
    for turn, folder in ((1, "new"), (4, "old")):
        with training("--out", folder, "--quiet", changes=changes % turn, checkpoint_every=2) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            before = sorted(Path(folder).rglob("*"))
            with pytest.raises(SystemExit) as refused:
                train_example("cats", "--out", folder, *(["--resume"] if turn > 2 else []))
            assert refused.value.code == 2
            error = capsys.readouterr().err
            assert re.fullmatch(f"dcgan_cats.py: error: --out: {folder} is in use by another run, which .*\n", error)
            assert sorted(Path(folder).rglob("*")) == before
            end(process, signal.SIGKILL)
        train_example("cats", "--out", folder, "--quiet", *(["--resume"] if turn > 2 else []))
    assert_same_state("new", "old")


def test_a_disk_without_locks_can_be_trained_on(train_example: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run.fcntl, "flock", none)
    train_example("cats", "--out", "run", "--quiet")
    assert last_checkpoint("run")[1]["step"] == 7
