"""Losses that are read a step later on a GPU, on the stand-in for CuPy: the same log, the right step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from example_modules import load_example

import minigan as mg
from minigan.training import loop, watch
from minigan.training.readback import Readback

Train = Callable[..., None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in.Gpu]:
    monkeypatch.setattr("minigan.backend._precision", "float32")
    monkeypatch.setenv("MINIGAN_DEVICE", "cpu")
    with stand_in.installed(stand_in.Gpu()) as gpu:
        yield gpu


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CUDA_LOGS_EVERY", 1)


def test_the_numbers_are_those_of_their_step(gpu: stand_in.Gpu) -> None:
    a, b = (mg.tensor(np.float32(value), device="cuda") for value in (0.1, -2.5))
    gpu.calls.clear()
    reading = Readback({"a": a, "k": 0.5, "b": b}, "cuda")
    a.data[...] = 7  # the next step
    assert gpu.count("download") == 0
    assert reading.values() == {"a": float(np.float32(0.1)), "k": 0.5, "b": -2.5}
    assert reading.values() == {"a": float(np.float32(0.1)), "k": 0.5, "b": -2.5}
    assert (gpu.count("download"), gpu.count("download later")) == (0, 1)


def test_on_a_cpu_and_without_tensors_there_is_nothing_to_wait_for(gpu: stand_in.Gpu) -> None:
    assert Readback({"a": mg.tensor(np.float32(3), device="cpu")}, "cpu").values() == {"a": 3}
    assert Readback({"k": 0.5}, "cuda").values() == {"k": 0.5}
    assert not gpu.calls


def rows(run: str) -> list[str]:
    """Of the log, without the speed."""
    return [line.rpartition(",")[0] for line in (Path(run) / "log.csv").read_text().splitlines()]


@pytest.mark.parametrize("system", ["cats", "began"])
@pytest.mark.parametrize("graph", [[], ["--graph"]])
def test_the_log_is_that_of_a_loop_that_waits(
    system: str,
    graph: list[str],
    gpu: stand_in.Gpu,
    every_step: None,
    train_example: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--device", "cuda", "--preset", "small", *graph]
    train_example(system, *options, "--out", "later")
    monkeypatch.setattr(loop, "is_cuda", lambda device: False)
    train_example(system, *options, "--out", "at-once")
    assert rows("later") == rows("at-once")
    assert [line.partition(",")[0] for line in rows("later")[1:]] == [str(step) for step in range(1, 8)]


def test_the_next_step_is_in_the_queue_before_losses_are_read(
    gpu: stand_in.Gpu, every_step: None, train_example: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    one_step, log = loop._Training._one_step, loop._Training._log

    def stepping(self: Any, real: Any) -> Any:
        told.append(f"step {self.step + 1}")
        return one_step(self, real)

    def logging(self: Any, line: Any, thorough: bool) -> None:
        told.append(f"read {line.step}" + " thoroughly" * thorough)
        log(self, line, thorough)

    monkeypatch.setattr(loop._Training, "_one_step", stepping)
    monkeypatch.setattr(loop._Training, "_log", logging)
    train_example("maxpool", "--device", "cuda", "--preset", "small", "--steps", "4", "--out", "run")
    assert told == ["step 1", "step 2", "read 1", "step 3", "read 2", "step 4", "read 3", "read 4 thoroughly"]


@pytest.mark.parametrize("bad", [3, 4])
def test_what_is_not_finite_is_named_by_its_step_and_never_saved(
    bad: int,
    gpu: stand_in.Gpu,
    every_step: None,
    train_example: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Step 4 is a checkpoint's; one step earlier, the loss is read when it has been asked for."""
    module = load_example("maxpool")
    step, taken = module.Maxpool.step, []

    def failing(self: Any, real: mg.Tensor) -> Any:
        taken.append(1)
        results = step(self, real)
        return {**results, "g_loss": results["g_loss"] * np.nan} if len(taken) == bad else results

    monkeypatch.setattr(module.Maxpool, "step", failing)
    preset = module.PRESETS["small"]
    monkeypatch.setitem(module.PRESETS, "small", preset.__class__(**{**vars(preset), "checkpoint_every": 2}))
    with pytest.raises(SystemExit) as caught:
        train_example("maxpool", "--device", "cuda", "--preset", "small", "--out", "run")
    assert caught.value.code == 2
    assert f"step {bad}: not finite: g_loss (nan). Nothing of it was saved" in capsys.readouterr().err
    assert len(taken) == 4
    assert [path.name for path in sorted(Path("run/checkpoints").glob("*.safetensors"))] == ["000002.safetensors"]
    assert rows("run")[-1].startswith(f"{bad},")
