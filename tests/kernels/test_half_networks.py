"""Networks whose layers keep activations and gradients in 16 bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from leaf_checks import narrow, wide

import minigan as mg
from minigan import backend, half, nn
from minigan.debugging import set_debug
from minigan.ops import conv2d_cuda

precisions = pytest.mark.parametrize("precision", ["bf16", "fp16"])


@pytest.fixture(autouse=True)
def precision_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_precision", None)


Convolution = nn.Conv2d | nn.ConvTranspose2d


def network(kind: str, channels: int = 16) -> nn.Sequential:
    """Small ones of every neighbourhood: convolution, batch norm, and convolutions with a LeakyReLU or without."""
    mg.manual_seed(3)
    c = channels
    # fmt: off
    made: dict[str, Callable[[], list[nn.Module]]] = {
        "discriminator": lambda: [
            nn.Conv2d(3, c, 5, 2, "same"), nn.LeakyReLU(0.2),
            nn.Conv2d(c, 2 * c, 4, 2, "same"), nn.BatchNorm2d(2 * c), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * c, c, 3, 1, "same"), nn.BatchNorm2d(c), nn.Flatten(), nn.Linear(9 * c, 1),
        ],
        "generator": lambda: [
            nn.Linear(5, 18 * c), nn.Reshape(3, 3, 2 * c),
            nn.ConvTranspose2d(2 * c, c, 5, 2, "same"), nn.BatchNorm2d(c), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(c, c, 4, 2, "same"), nn.ReLU(), nn.Conv2d(c, 3, 3, 1, "same"), nn.Tanh(),
        ],
    }
    # fmt: on
    net = nn.Sequential(*made[kind]())
    rng = np.random.default_rng(0)
    for name, t in net.named_tensors():  # biases and shifts that are not 0
        if name.endswith(("bias", "beta", "running_mean")):
            t.data[...] = rng.standard_normal(t.shape) * 0.3
    net.to("emulated")
    return net


def images(kind: str, seed: int = 0, count: int = 4) -> np.ndarray:
    shape = (count, 12, 12, 3) if kind == "discriminator" else (count, 5)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def units(net: nn.Sequential) -> list[tuple[Any, tuple[float, ...], bool]]:
    """Each module with the slope that is fused to it, and whether its result is kept in 16 bits."""
    modules, found = list(net), []
    while modules:
        module, *modules = modules
        kept = isinstance(module, nn.BatchNorm2d | Convolution)
        slope: tuple[float, ...] = ()
        if kept and modules and isinstance(modules[0], nn.LeakyReLU | nn.ReLU):
            slope = (getattr(modules.pop(0), "slope", 0.0),)
        found.append((module, slope, kept and bool(modules) and isinstance(modules[0], nn.BatchNorm2d | Convolution)))
    return found


def by_hand(net: nn.Sequential, x: np.ndarray, precision: str) -> tuple[np.ndarray, Callable[..., dict]]:
    """The network layer by layer, each in float32, and what is kept rounded in between; and its gradients likewise.

    Behind a convolution LeakyReLU is computed here. Its result is rounded, and so is the gradient in front of it.
    """
    values, steps = x, []
    for module, slope, kept in units(net):
        t = mg.tensor(values, requires_grad=True, device="emulated")
        y = module.forward(t, *slope) if isinstance(module, nn.BatchNorm2d) else module.forward(t)
        factor = slope[0] if slope and not isinstance(module, nn.BatchNorm2d) else 1.0
        values = scaled(y.numpy(), y.numpy(), factor)
        values = wide(narrow(values, precision)) if kept else values
        steps.append((module, t, y, values, factor, kept))

    def gradients(gy: np.ndarray) -> dict[Any, np.ndarray]:
        found = {}
        for module, t, y, values, factor, kept in reversed(steps):
            gy = scaled(values, wide(narrow(gy, precision)) if kept else gy, factor)
            gy = wide(narrow(gy, precision)) if kept else gy
            own = module.parameters()
            gy, *rest = (g.numpy() for g in mg.grad(y, [t, *own], gy))
            found |= dict(zip(own, rest, strict=True))
        return {"x": gy, **found}

    return values, gradients


def scaled(condition: np.ndarray, x: np.ndarray, slope: float) -> np.ndarray:
    return np.where(condition > 0, x, np.float32(slope) * x)


def inner(y: mg.Tensor) -> list[mg.Tensor]:
    """What an op has read whose values are still there, and that another op has made, from the end to the beginning."""
    found, pending = [], [y]
    while pending:
        op = pending.pop().op
        made = [t for t in op.inputs if t.op is not None] if op else []
        found += [t for t in made if isinstance(t._data, np.ndarray)]
        pending += made
    return found


@precisions
@pytest.mark.parametrize("kind", ["discriminator", "generator"])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_its_layers_with_what_is_kept_rounded_in_between(
    training: bool, kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, where batch norm reads what it normalises for its statistics in both."""
    mg.set_matmul_precision(precision)
    monkeypatch.setattr(conv2d_cuda, "parts_of", lambda *given: None)
    results = []
    for way in ("whole", "by hand"):
        net = network(kind).train(training)
        assert isinstance(net, nn.Sequential)
        gy = np.random.default_rng(5).standard_normal(net(mg.tensor(images(kind), device="emulated")).shape)
        gy = gy.astype(np.float32)
        if way == "whole":
            with monkeypatch.context() as patch:
                patch.setattr(half, "launch", never_widening)
                x = mg.tensor(images(kind), requires_grad=True, device="emulated")
                y = net(x)
                assert sum(half.is_half(t._data) for t in inner(y)) == sum(kept for *_, kept in units(net)) >= 3
                found = mg.grad(y, [x, *net.parameters()], gy)
            results.append((y.numpy(), *(g.numpy() for g in found)))
        else:
            expected, gradients = by_hand(net, images(kind), precision)
            known = gradients(gy)
            results.append((expected, *(known[key] for key in ("x", *net.parameters()))))
        running = [t.numpy() for name, t in net.named_tensors() if "running" in name]
        results[-1] += (*running,)
    names = ["y", "x", *(name for name, _ in net.named_parameters())] + ["running"] * len(running)
    for name, a, b in zip(names, *results, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


launch = half.launch


def never_widening(source: str, kernel: str, *args: Any, **settings: Any) -> None:
    assert kernel != "widen"
    launch(source, kernel, *args, **settings)


@precisions
@pytest.mark.parametrize("kind", ["discriminator", "generator"])
def test_who_looks_for_nan_changes_nothing(kind: str, precision: str) -> None:
    """MINIGAN_DEBUG reads every tensor; what is computed with them has to be what went wrong without it."""
    mg.set_matmul_precision(precision)

    def computed(on: bool) -> list[np.ndarray]:
        net = network(kind)
        with set_debug(on):
            x = mg.tensor(images(kind), requires_grad=True, device="emulated")
            y = net(x)
            kept = sum(half.is_half(t._data) for t in inner(y))
            assert kept == sum(kept for *_, kept in units(net))  # type: ignore[attr-defined]
            found = mg.grad(y, [x, *net.parameters()], np.ones(y.shape, np.float32))
        return [y.numpy(), *(g.numpy() for g in found), *(t.numpy() for _, t in net.named_tensors())]

    for a, b in zip(computed(False), computed(True), strict=True):
        np.testing.assert_array_equal(a, b)


@precisions
def test_what_is_written_into_an_inner_tensor_is_read_by_later_layers(precision: str) -> None:
    """Nothing goes on with the 16 bits of before; and a gradient that would need them is refused."""
    mg.set_matmul_precision(precision)
    first, second = nn.Conv2d(3, 8, 3, 1, "same"), nn.Conv2d(8, 8, 3, 1, "same", bias=False)
    first.to("emulated"), second.to("emulated")
    t = first.forward(mg.tensor(np.ones((2, 6, 6, 3), np.float32), device="emulated"), half=True)
    assert half.is_half(t._data)
    y = second(t)
    before, view = y.numpy(), t.reshape(2, 288)
    t.data[...] *= 2  # nothing is rounded
    t.mark_changed()
    np.testing.assert_array_equal(view.numpy(), t.numpy().reshape(2, 288))
    np.testing.assert_array_equal(second(t).numpy(), 2 * before)
    with pytest.raises(mg.GraphError, match="changed in place"):
        y.sum().backward()
