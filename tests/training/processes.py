"""Training in a process of its own, for signals and what else ends a process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from minigan import serialization

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# Tiny networks, as those of the fixture `train_example`. What the example needs is loaded before anything else happens.
CODE = """
import dataclasses, json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from example_modules import load_example
from minigan import serialization
from minigan.training import loop, run, watch
module = load_example("cats")
module.PRESETS["small"] = dataclasses.replace(
    module.PRESETS["small"], image_size=(16, 16), base_channels=2, z_size=5, batch_size=4, steps=7, **{settings!r}
)
def before(owner, name, act):
    "Calls act(turn) before each call of a function, turn being 1 at the first."
    original, turns = getattr(owner, name), [0]
    def function(*arguments, **named):
        turns[0] += 1
        act(turns[0])
        return original(*arguments, **named)
    setattr(owner, name, function)
{changes}
module.main()
"""


@contextmanager
def training(
    *arguments: str, changes: str = "", launcher: Sequence[str] = (), **settings: Any
) -> Iterator[subprocess.Popen[str]]:
    """The cats example with tiny networks, on the folder pictures/; it does not outlive the `with` block.

    settings: those that the preset is to have. changes: Python code that runs before it, to make things go wrong.
    launcher: a command that starts it.
    """
    code = CODE.format(benchmarks=str(BENCHMARKS), settings=settings, changes=changes)
    process = subprocess.Popen(
        [*launcher, sys.executable, "-c", code, "--data", "pictures", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], number: int | None = None, timeout: float = 60) -> tuple[str, str]:
    """Sends a signal; what the process said from then until its end, on stdout and stderr."""
    if number is not None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
    return process.communicate(timeout=timeout)


def wait_for_step(process: subprocess.Popen[str], folder: str | Path, step: int) -> None:
    """Until the log has a line of the step."""
    deadline = time.monotonic() + 60
    while step not in steps_in_log(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no step {step} within a minute"
        time.sleep(0.002)


def steps_in_log(folder: str | Path) -> list[int]:
    """Of the whole lines in log.csv."""
    log = Path(folder, "log.csv")
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [int(line.split(",")[0]) for line in lines[1:] if line.endswith("\n")]


def temporaries(folder: str | Path) -> list[Path]:
    return list(Path(folder).rglob("*.part"))


def last_checkpoint(folder: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return serialization.load_checkpoint(sorted(Path(folder, "checkpoints").glob("[0-9]*.safetensors"))[-1])


def assert_same_state(a: str | Path, b: str | Path) -> None:
    """The last checkpoints of two runs, bit for bit.

    But for what was seen of their health: a run that was stopped has drawn more grids of samples.
    """
    (tensors, state), (other_tensors, other_state) = last_checkpoint(a), last_checkpoint(b)
    assert {**state, "health": None} == {**other_state, "health": None}
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not np.array_equal(tensors[name], other_tensors[name])] == []


def assert_same_log(a: str | Path, b: str | Path) -> None:
    """But for the speed, which is the last column."""
    logs = [[line.rsplit(",", 1)[0] for line in Path(run, "log.csv").read_text().splitlines()] for run in (a, b)]
    assert logs[0] == logs[1]
