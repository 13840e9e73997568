"""Networks whose layers keep activations and gradients in 16 bits."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from leaf_checks import narrow, wide

import minigan as mg
from minigan import backend, half, nn
from minigan.debugging import set_debug
from minigan.ops import conv2d, conv2d_cuda
from minigan.ops.place import Place

precisions = pytest.mark.parametrize("precision", ["bf16", "fp16"])


@pytest.fixture(autouse=True)
def precision_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_precision", None)


KINDS = "discriminator", "generator", "autoencoder"


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
        "smooth": lambda: [
            nn.Conv2d(3, c, 3, 1, "same"), nn.ELU(), nn.UpsampleNearest2d(2),
            nn.Conv2d(c, 2 * c, 4, 2, "same"), nn.ELU(0.5),
            nn.ConvTranspose2d(2 * c, c, 3, 1, "same"), nn.ELU(), nn.Conv2d(c, c, 5, 2, "same"),
            nn.Flatten(), nn.Linear(36 * c, 1),
        ],
        "autoencoder": lambda: [
            nn.Conv2d(3, c, 3, 1, "same"), nn.ELU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(c, 2 * c, 3, 1, "same"), nn.LeakyReLU(0.3), nn.MaxPool2d(2),
            nn.BatchNorm2d(2 * c), nn.ELU(0.5), nn.UpsampleNearest2d(3), nn.UpsampleNearest2d(2),
            nn.ConvTranspose2d(2 * c, c, 3, 1, "same"), nn.ELU(),
            nn.Conv2d(c, 3, 3, 1, "same"), nn.ELU(), nn.MaxPool2d(3),
            nn.Conv2d(3, c, 3), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.ELU(), nn.Linear(4 * c, 2),
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
    shape = (count, 5) if kind == "generator" else (count, 12, 12, 3)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


ROUNDING = nn.BatchNorm2d, nn.Conv2d, nn.ConvTranspose2d
PASSING = nn.ELU, nn.MaxPool2d, nn.UpsampleNearest2d


def units(net: nn.Sequential) -> list[tuple[Any, nn.Module | None, bool]]:
    """Each module with the activation that is fused to it, and whether its result is kept in 16 bits.

    That is so from a convolution, or a batch norm, to the next one, through layers alone that give what they get.
    """
    modules, found, kept = list(net), [], False
    while modules:
        module, *modules = modules
        fusing = (nn.LeakyReLU, nn.ReLU, *([] if isinstance(module, nn.BatchNorm2d) else [nn.ELU]))
        fuses = isinstance(module, ROUNDING) and modules and isinstance(modules[0], fusing)
        activation = modules.pop(0) if fuses else None
        reader = next((one for one in modules if not isinstance(one, PASSING)), None)
        kept = isinstance(reader, ROUNDING) and (isinstance(module, ROUNDING) or (kept and isinstance(module, PASSING)))
        kept = kept and not (isinstance(module, nn.Conv2d) and len(module.weight) == 3)  # that would be padded
        found.append((module, activation, kept))
    return found


def held(net: nn.Sequential) -> int:
    """How many results are kept in 16 bits until the gradient of the layer behind has read them."""
    found = units(net)
    return sum(kept and isinstance(behind[0], ROUNDING) for (*_, kept), behind in itertools.pairwise(found))


def by_hand(net: nn.Sequential, x: np.ndarray, precision: str) -> tuple[np.ndarray, Callable[..., dict]]:
    """The network layer by layer, each in float32, and what is kept rounded in between; and its gradients likewise.

    Behind a convolution the activation is computed here. Its result is rounded, and so is the gradient in front of it.
    """
    values, steps = x, []
    for module, behind, kept in units(net):
        t = mg.tensor(values, requires_grad=True, device="emulated")
        if isinstance(module, nn.BatchNorm2d):
            y, behind = module.forward(t, Place(getattr(behind, "slope", 1.0))), None
        else:
            y = module.forward(t)
        values = y.numpy() if behind is None else behind.forward(mg.tensor(y.numpy(), device="emulated")).numpy()
        values = wide(narrow(values, precision)) if kept else values
        steps.append((module, t, y, values, behind, kept))

    def gradients(gy: np.ndarray) -> dict[Any, np.ndarray]:
        found = {}
        for module, t, y, values, behind, kept in reversed(steps):
            gy = before(behind, values, wide(narrow(gy, precision)) if kept else gy)
            gy = wide(narrow(gy, precision)) if kept else gy
            if isinstance(module, nn.ELU):
                gy = before(module, values, gy)
                continue
            own = module.parameters()
            gy, *rest = (g.numpy() for g in mg.grad(y, [t, *own], gy))
            found |= dict(zip(own, rest, strict=True))
        return {"x": gy, **found}

    return values, gradients


def before(activation: nn.Module | None, y: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """The gradient in front of an activation, from its output as it was kept."""
    if activation is None:
        return gy
    if isinstance(activation, nn.ELU):
        return np.where(y > 0, gy, gy * (y + np.float32(activation.alpha)))
    assert isinstance(activation, nn.LeakyReLU | nn.ReLU)
    return np.where(y > 0, gy, np.float32(activation.slope) * gy)


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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_its_layers_with_what_is_kept_rounded_in_between(
    training: bool, kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, where each sum is computed by itself: neither a batch's moments nor a bias's gradient along."""
    mg.set_matmul_precision(precision)
    monkeypatch.setattr(conv2d, "conv_weight_and_bias_grad", lambda *given: None)
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
                assert sum(half.is_half(t._data) for t in inner(y)) == held(net) >= 3
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
@pytest.mark.parametrize("kind", KINDS)
def test_who_looks_for_nan_changes_nothing(kind: str, precision: str) -> None:
    """MINIGAN_DEBUG reads every tensor; what is computed with them has to be what went wrong without it."""
    mg.set_matmul_precision(precision)

    def computed(on: bool) -> list[np.ndarray]:
        net = network(kind)
        with set_debug(on):
            x = mg.tensor(images(kind), requires_grad=True, device="emulated")
            y = net(x)
            kept = sum(half.is_half(t._data) for t in inner(y))
            assert kept == held(net)  # type: ignore[arg-type]
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
    t = first.forward(mg.tensor(np.ones((2, 6, 6, 3), np.float32), device="emulated"), Place(half=True))
    assert half.is_half(t._data)
    y = second(t)
    before, view = y.numpy(), t.reshape(2, 288)
    t.data[...] *= 2  # nothing is rounded
    t.mark_changed()
    np.testing.assert_array_equal(view.numpy(), t.numpy().reshape(2, 288))
    np.testing.assert_array_equal(second(t).numpy(), 2 * before)
    with pytest.raises(mg.GraphError, match="changed in place"):
        y.sum().backward()


def wanted(net: nn.Sequential) -> list[mg.Tensor]:
    """The discriminator's parameters, but the biases before batch norm, whose gradients are 0 but for roundings."""
    return [p for name, p in net.named_parameters() if name not in ("2.bias", "5.bias")]


def asked(y: mg.Tensor, x: mg.Tensor, net: nn.Sequential) -> list[np.ndarray]:
    return [g.numpy() for g in mg.grad(y, [x, *wanted(net)], np.ones(y.shape, np.float32), retain_graph=True)]


@precisions
def test_whoever_asks_gets_float32(precision: str) -> None:
    """Inner values, which stay what they are, exactly; a gradient of them; and all else but for its roundings."""
    mg.set_matmul_precision(precision)
    net, x = network("discriminator"), mg.tensor(images("discriminator"), requires_grad=True, device="emulated")
    y = net(x)
    expected = asked(y, x, net)
    for t in inner(y):
        before = t._data
        assert (t.dtype, t.data.dtype, t.numpy().dtype, t.detach().dtype) == (np.float32,) * 4
        np.testing.assert_array_equal(t.data, wide(before) if half.is_half(before) else before)
        assert t.data is t.data
        (gradient,) = mg.grad(y, [t], np.ones(y.shape, np.float32), retain_graph=True)
        assert (gradient.dtype, gradient.data.dtype, gradient.shape) == (np.float32, np.float32, t.shape)
    unit = {"bf16": 2.0**-9, "fp16": 2.0**-12}[precision]
    # Now gradients are float32 in between: of five roundings on the way, two in each, some are missing.
    assert max(errors(asked(y, x, net), expected)) <= 2 * 5 * unit


@pytest.mark.parametrize(("precision", "channels"), [("float32", 16), ("tf32", 16), ("bf16", 12), ("fp16", 12)])
def test_where_nothing_is_kept_in_16_bits(precision: str, channels: int) -> None:
    """In other precisions; and where convolutions pad the channels (24 of the 12 and 24 need no padding)."""
    mg.set_matmul_precision(precision)
    net = network("discriminator", channels)
    y = net(mg.tensor(images("discriminator"), requires_grad=True, device="emulated"))
    kept = [t.shape for t in inner(y) if half.is_half(t._data)]
    assert all(shape[-1] == 24 for shape in kept)
    assert bool(kept) == (channels == 12)


def errors(found: list[np.ndarray], exact: list[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, exact, strict=True)]


@precisions
@pytest.mark.parametrize("groups", [1, 2])
def test_against_float64(groups: int, precision: str) -> None:
    """The norm of what is wrong, relative to that of the values: at most u = 2^-9 or 2^-12 of one rounding.

    (Of a single number it is up to 2 u. In the mean square that is 2 u / sqrt(3) just above a power of two, half as
    much just below the next one, and 0.76 u of numbers spread evenly between them.)

    On its way forward a value is rounded with the operands of three convolutions, six times, and where it is kept,
    three times, of which one may be the operand's: 9 u. A gradient comes as far again, 18 u. LeakyReLU takes gradients
    to its other side where a value is nearer to 0 than its error: of normal values a share of 0.8 e with e = 9 u, whose
    gradients are off by 0.8: sqrt(0.8 e) * 0.8 a layer, two layers on the longest way.
    """
    unit = {"bf16": 2.0**-9, "fp16": 2.0**-12}[precision]
    results = []
    for kind, dtype in ((precision, np.float32), ("float32", np.float64)):
        mg.set_matmul_precision(kind)
        net = network("discriminator")
        for t in net.parameters():
            t._data, t.dtype = t.data.astype(dtype), np.dtype(dtype)
        for name, t in net.named_tensors():
            if "running" in name:
                t._data, t.dtype = t.data.astype(dtype), np.dtype(dtype)
        batches = [mg.tensor(images("discriminator", s, 8).astype(dtype), device="emulated") for s in range(groups)]
        y = nn.together(net, *batches)[0] if groups > 1 else net(batches[0])
        gy = np.random.default_rng(9).standard_normal(y.shape).astype(dtype)
        results.append([y.numpy(), *(g.numpy() for g in mg.grad(y, wanted(net), gy))])
    found = errors(*results)
    assert found[0] <= 9 * unit
    assert max(found[1:]) <= 18 * unit + 2 * 0.8 * np.sqrt(0.8 * 9 * unit)


@precisions
def test_gradients_of_gradients(precision: str) -> None:
    """A penalty on the image's gradient: as if nothing were kept in 16 bits, to what test_against_float64 allows."""
    mg.set_matmul_precision(precision)
    unit = {"bf16": 2.0**-9, "fp16": 2.0**-12}[precision]
    results = []
    for whole in (True, False):
        net, x = network("discriminator"), mg.tensor(images("discriminator"), requires_grad=True, device="emulated")
        y = x
        for module in [net] if whole else net:  # layer by layer there is no next one to keep them for
            y = module(y)
        (gx,) = mg.grad(y.sum(), [x], create_graph=True)
        weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
        results.append([gx.numpy(), *(g.numpy() for g in mg.grad((gx * gx).sum(), weights[:-1]))])
    found = errors(*results)
    assert 0 < max(found) <= 36 * unit + 4 * 0.8 * np.sqrt(0.8 * 9 * unit)


def test_what_fp16_cannot_hold_is_seen() -> None:
    """An activation, and a gradient, above 65504 between two layers: infinite, and so the gradients of the weights."""
    mg.set_matmul_precision("fp16")
    for what in ("activation", "gradient"):
        mg.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
        net.to("emulated")
        x = mg.tensor(np.full((1, 2, 2, 8), 60.0, np.float32), device="emulated")
        net[0 if what == "activation" else 1].weight.data[...] = 500.0
        gy = np.full((1, 2, 2, 8), 1.0 if what == "activation" else 50.0, np.float32)
        y = net(x)
        assert np.isfinite(y.numpy()).all() == (what == "gradient")
        found = mg.grad(y, [net[0].weight, net[0].bias, net[1].weight], gy)
        assert not np.isfinite(found[2 if what == "activation" else 0].numpy()).all()


@precisions
def test_smooth_layers_against_float64_to_second_order(precision: str) -> None:
    """As test_against_float64 counts. Forward: of four convolutions 5 operands that are not kept, and 3 results: 8 u.

    A gradient is rounded 3 times a layer, 12 u, and multiplied by 3 slopes of ELU, of at most 1 and each off by what
    its y is, 24 u; a weight's is multiplied by an activation, 8 u. The penalty's gradient goes that way twice, and has
    a product of two in it.
    """
    unit = {"bf16": 2.0**-9, "fp16": 2.0**-12}[precision]
    results = []
    for kind, dtype in ((precision, np.float32), ("float32", np.float64)):
        mg.set_matmul_precision(kind)
        net = network("smooth")
        for t in net.parameters():
            t._data, t.dtype = t.data.astype(dtype), np.dtype(dtype)
        x = mg.tensor(images("smooth").astype(dtype), requires_grad=True, device="emulated")
        y = net(x)
        weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
        first = mg.grad(y.sum(), [x, *net.parameters()], retain_graph=True)
        (gx,) = mg.grad(y.sum(), [x], create_graph=True)
        results.append([g.numpy() for g in (y, *first, *mg.grad((gx * gx).sum(), weights))])
    found, count = errors(*results), 1 + len(first)
    assert 0 < found[0] <= 8 * unit
    assert 0 < max(found[1:count]) <= 44 * unit
    assert 0 < max(found[count:]) <= 4 * 44 * unit
