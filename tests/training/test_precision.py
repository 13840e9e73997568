"""--precision: the five systems in bf16 and fp16, through the kernels on the emulator; the loss scale and resuming."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_modules import EXAMPLES

import minigan as mg
import minigan.functional as F
from minigan import backend, optim, serialization
from minigan.loss_scale import LossScale
from minigan.ops import batch_norm, batch_norm_cpu, conv2d, conv2d_cpu, conv2d_ladder, leaky_relu

Train = Callable[..., None]

ROUND = {
    "float32": lambda a: a,
    "bf16": lambda a: _significant_bits(a, 8),
    "fp16": lambda a: a.astype(np.float16).astype(np.float32),
}


def _significant_bits(a: np.ndarray, bits: int) -> np.ndarray:
    mantissa, exponent = np.frexp(a)
    return np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits).astype(np.float32)


@pytest.fixture(autouse=True)
def precision_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_precision", None)


def losses(run: str) -> list[list[float]]:
    rows = list(csv.DictReader((Path(run) / "log.csv").read_text().splitlines()))
    return [[float(value) for name, value in row.items() if "loss" in name] for row in rows]


def checkpoint(run: str) -> tuple[dict, dict]:
    return serialization.load_checkpoint(max(Path(run, "checkpoints").glob("0*.safetensors")))


class Kept:
    """Arrays that stand on the CPU for those of 16 bits: float32, rounded."""

    def __init__(self, precision: str) -> None:
        self.rounded, self.arrays = ROUND[precision], {}

    def keep(self, array: np.ndarray, wanted: bool = True) -> np.ndarray:
        """As a GPU does where convolutions need no padding."""
        if not wanted or array.shape[-1] % 8:
            return array
        array = self.rounded(array).reshape(array.shape)
        self.arrays[id(array)] = array
        return array

    def __contains__(self, array: np.ndarray) -> bool:
        return self.arrays.get(id(array)) is array


def rounded_on_cpu(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Makes the CPU compute as the GPU should: both operands of a convolution rounded, by NumPy, and what is kept so.

    The kernel for three columns has float32's operands in every precision, where they are not kept in 16 bits.
    """
    kept = Kept(precision)
    for name in ("forward", "input_grad", "weight_grad"):
        leaf = getattr(conv2d_cpu, name)

        def judge(device: str, first: Any, second: Any, g: Any, *rest: Any, leaf: Any = leaf, name: str = name) -> Any:
            operands = first, second
            if not conv2d_ladder.suits_three_columns(name, g):
                operands = kept.rounded(first), kept.rounded(second)
            return kept.keep(leaf(*operands, g, *rest), name != "weight_grad" and rest[3])

        monkeypatch.setattr(conv2d, f"conv_{name}", judge)
    if precision == "float32":
        return
    normalize, gradients = batch_norm_cpu.normalize, batch_norm_cpu.gradients
    scale = leaky_relu.scale_negative

    def normalized(device: str, x: Any, *rest: Any) -> Any:
        return kept.keep(normalize(x, *rest), x in kept and rest[-1])

    def gradients_of(device: str, x: Any, *rest: Any) -> Any:
        gx, *others = gradients(x, *rest)
        return kept.keep(gx, x in kept), *others

    monkeypatch.setattr(batch_norm, "normalize", normalized)
    monkeypatch.setattr(batch_norm, "batch_norm_gradients", gradients_of)

    def scaled(device: str, condition: Any, x: Any, slope: float) -> Any:
        return kept.keep(scale(device, condition, x, slope), condition in kept and x in kept)

    monkeypatch.setattr(leaky_relu, "scale_negative", scaled)
    monkeypatch.setattr(conv2d, "is_half", kept.__contains__)
    monkeypatch.setattr(optim, "matmul_precision", lambda device: precision)  # and so the loss is scaled, too


@pytest.mark.usefixtures("noise_of_the_cpu")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("system", EXAMPLES)
def test_every_system_trains_as_a_cpu_that_rounds_likewise(
    train_example: Train, monkeypatch: pytest.MonkeyPatch, system: str, precision: str
) -> None:
    arguments = ["--quiet", "--steps", "2", "--batch-size", "4"]
    train_example(system, "--out", "emulated", "--device", "emulated", "--precision", precision, *arguments)
    assert json.loads(Path("emulated", "config.json").read_text())["precision"] == precision
    found = {}
    for judge in ("float32", precision):
        with monkeypatch.context() as patch:
            rounded_on_cpu(patch, judge)
            train_example(system, "--out", judge, "--device", "cpu", *arguments)
        assert np.isfinite(losses("emulated")).all()
        # Of the first step: what float32 leaves open may change the rounding of some numbers, and so the steps after.
        found[judge] = np.abs(np.array(losses("emulated")[0]) / np.array(losses(judge)[0]) - 1)
    # Before the first update: a number at a tie, rounded the other way, is off by 2^-11 of itself in fp16, and a loss,
    # which has many, by less.
    assert found[precision][0] <= 2**-11
    assert found[precision].max() <= 0.2 * found["float32"].max()


def test_weights_moments_and_statistics_stay_float32(train_cats: Train) -> None:
    train_cats("--out", "run", "--quiet", "--steps", "2", "--device", "emulated", "--precision", "fp16")
    tensors, _ = checkpoint("run")
    assert {str(value.dtype) for value in tensors.values()} == {"float32"}
    weight = tensors["generator/0.weight"]
    assert np.any(weight != weight.astype(np.float16))  # and are not rounded: the masters of what is multiplied


def test_a_resumed_run_goes_on_with_its_precision_and_its_loss_scale(
    train_cats: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts so large that the first steps overflow, and are skipped."""
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 2)
    monkeypatch.setattr(LossScale, "FIRST", 2.0**24)
    monkeypatch.setattr(LossScale, "LARGEST", 2.0**30)
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**24, 0))
    arguments = ["--quiet", "--device", "emulated"]
    train_cats("--out", "whole", "--steps", "6", "--precision", "fp16", *arguments)
    train_cats("--out", "parts", "--steps", "3", "--precision", "fp16", *arguments)
    monkeypatch.setattr(backend, "_precision", None)
    train_cats("--out", "parts", "--resume", "--steps", "6", *arguments)
    (whole, whole_state), (parts, parts_state) = checkpoint("whole"), checkpoint("parts")
    assert whole_state["system"] == parts_state["system"]
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)
    adam = whole_state["system"]["discriminator_adam"]
    assert adam["steps"] < 6  # some were skipped
    assert 0 < adam["loss_scale"] < 2.0**24
    assert losses("whole") == losses("parts")


def test_dense_layers_stay_float32() -> None:
    rng = np.random.default_rng(0)
    x, w = (mg.tensor(rng.standard_normal((9, 9)).astype(np.float32), device="emulated") for _ in range(2))
    expected = F.linear(x, w).numpy()
    for precision in backend.PRECISIONS:
        mg.set_matmul_precision(precision)
        np.testing.assert_array_equal(F.linear(x, w).numpy(), expected)


def test_another_device_does_not_take_over_a_precision(train_cats: Train) -> None:
    train_cats("--out", "run", "--quiet", "--steps", "1", "--device", "emulated", "--precision", "bf16")
    train_cats("--out", "run", "--quiet", "--steps", "2", "--device", "cpu", "--resume")
    assert len(losses("run")) == 2


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_a_cpu_computes_in_float32(
    train_cats: Train, pictures: Path, capsys: pytest.CaptureFixture, precision: str
) -> None:
    with pytest.raises(SystemExit) as end:
        train_cats("--device", "cpu", "--precision", precision)
    assert end.value.code == 2
    assert (
        capsys.readouterr().err
        == f"dcgan_cats.py: error: --precision: expected float32 on device cpu, got {precision}\n"
    )
    backend.set_matmul_precision(precision)
    assert backend.matmul_precision("cpu") == "float32"
    assert backend.matmul_precision("emulated") == precision


def test_an_old_gpu_has_no_tensor_cores_for_16_bits(
    train_cats: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command_line = sys.modules["minigan.training.command_line"]
    monkeypatch.setattr(command_line, "resolve_device", lambda device: device)
    monkeypatch.setattr(command_line, "cuda_architecture", lambda device: 75)
    with pytest.raises(SystemExit):
        train_cats("--device", "cuda", "--precision", "bf16")
    assert "--precision: bf16 needs a GPU from sm_80 on; expected float32 on this sm_75" in capsys.readouterr().err
