"""MINIGAN_DEBUG=1: the op that first made a value that is not finite is named, forward and backward."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import minigan as mg
import minigan.functional as F
from minigan import nn
from minigan.backend import Array
from minigan.debugging import set_debug
from minigan.tensor import Fused, Tensor

Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """NumPy's own warnings come or not, as without the checks; here they are expected."""
    with np.errstate(all="ignore"):
        yield


def leaf(*values: float, device: str = "cpu") -> Tensor:
    return mg.tensor(np.array(values, np.float32), requires_grad=True, device=device)


@dataclass
class Broken(Fused, abstract=True):
    """The identity, with a gradient by hand that is wrong in its second value."""

    def forward(self, x: Array) -> Array:
        return x.copy()

    def gradients(self, gy: Array) -> tuple[Array]:
        gx = gy.copy()
        gx[1] = np.inf
        return (gx,)


def test_the_op_of_the_forward_pass_is_named_not_those_after_it(device: str) -> None:
    x = leaf(2.0, 0.0, 3.0, device=device)
    with set_debug(True), pytest.raises(FloatingPointError) as caught:
        ((x * 2.0).log() * 3.0).sum()
    kind = f"shape (3,), float32 on {device}"
    assert str(caught.value) == f"Log: output of {kind}: 1 of 3 values not finite; input 0 of {kind}: all finite"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_that_was_not_finite_before_is_told(value: float) -> None:
    with set_debug(True), pytest.raises(FloatingPointError) as caught:
        leaf(1.0, 2.0) + leaf(value, 1.0)
    assert str(caught.value) == (
        "Add: output of shape (2,), float32 on cpu: 1 of 2 values not finite; "
        "input 0 of shape (2,), float32 on cpu: all finite; "
        "input 1 of shape (2,), float32 on cpu: 1 of 2 values not finite"
    )


def test_large_values_are_finite_until_they_overflow() -> None:
    x = leaf(3e38, 3e38, 3e38)  # their sum overflows, but no value does
    with set_debug(True):
        assert np.array_equal((x * 1.0).numpy(), x.numpy())
        with pytest.raises(
            FloatingPointError, match=r"^Multiply: output of .*: 3 of 3 .*; input 0 of .*: all finite; input"
        ):
            x * 10.0


def test_the_op_whose_backward_made_it_is_named() -> None:
    """sqrt(0) is 0, and its gradient 1 / 0."""
    x = leaf(4.0, 0.0)
    with set_debug(True):
        y = (x.sqrt() * 3.0).sum()
        with pytest.raises(
            FloatingPointError, match=r"^backward of Sqrt, with gy of shape \(2,\), .*: all finite: \w+: output of "
        ):
            y.backward()


def test_the_gradients_of_hand_written_loops_are_checked_too() -> None:
    x = leaf(1.0, 2.0)
    with set_debug(True):
        y = Broken()(x) * 2.0
        with pytest.raises(FloatingPointError) as caught:
            y.backward(np.ones(2, np.float32))
    kind = "shape (2,), float32 on cpu"
    assert str(caught.value) == (
        f"backward of Broken: gradient of input 0 of {kind}: 1 of 2 values not finite; gy of {kind}: all finite"
    )


def test_a_gradient_that_was_not_finite_before_is_told() -> None:
    with set_debug(True), pytest.raises(FloatingPointError, match=r"gy of shape \(2,\).*: 1 of 2 values not finite"):
        (leaf(1.0, 2.0) * 2.0).backward(np.array([1.0, np.nan], np.float32))


def test_it_is_off_unless_asked_for_and_nests() -> None:
    assert np.isnan((leaf(-1.0).log()).item())
    with set_debug(True):
        with set_debug(False):
            assert np.isnan(leaf(-1.0).log().item())
        with pytest.raises(FloatingPointError):
            leaf(-1.0).log()
    assert np.isnan(leaf(-1.0).log().item())


def test_values_and_gradients_are_the_same_with_it(device: str) -> None:
    """Nothing in the layers that the systems are made of passes through values that are not finite."""

    def gradients(on: bool) -> list[np.ndarray]:
        mg.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.MaxPool2d(2), nn.ELU(),
            nn.UpsampleNearest2d(2), nn.ConvTranspose2d(4, 3, 3, 2, "same"), nn.Tanh(), nn.Flatten(), nn.Linear(768, 1),
        ).to(device)  # fmt: skip
        with set_debug(on):
            logits = net(mg.random.normal((2, 8, 8, 3), device=device) * 1e3)
            F.binary_cross_entropy_with_logits(logits, 1.0).backward()
        return [logits.numpy(), *(p.grad.numpy() for p in net.parameters() if p.grad is not None)]

    off, on = gradients(False), gradients(True)
    assert len(on) == 1 + 2 + 2 + 2 + 2
    assert all(np.array_equal(a, b) for a, b in zip(off, on, strict=True))


def logarithm_with(value: str | None) -> subprocess.CompletedProcess[str]:
    """A program that makes a value which is not finite, with this in MINIGAN_DEBUG."""
    code = "import numpy as np, minigan as mg; np.seterr(all='ignore'); mg.tensor([-1.0], device='cpu').log()"
    surroundings = {k: v for k, v in os.environ.items() if k != "MINIGAN_DEBUG"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=surroundings | ({} if value is None else {"MINIGAN_DEBUG": value}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_is_neither_on_nor_off_is_refused() -> None:
    last = logarithm_with("yes").stderr.strip().splitlines()[-1]
    assert last == "minigan.environment.SettingError: MINIGAN_DEBUG: expected 0 or 1, got 'yes'"


@pytest.mark.parametrize(("value", "raised"), [("1", True), ("0", False), ("", False), (None, False)])
def test_the_environment_switches_it_on(value: str | None, raised: bool) -> None:
    done = logarithm_with(value)
    assert (done.returncode != 0) == raised, done.stderr
    assert done.stderr.strip().splitlines()[-1:] == (
        [
            "FloatingPointError: Log: output of shape (1,), float32 on cpu: 1 of 1 values not finite; "
            "input 0 of shape (1,), float32 on cpu: all finite"
        ]
        if raised
        else []
    )
