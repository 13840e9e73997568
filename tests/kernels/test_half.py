"""Tensors that are kept in 16 bits: each kernel that reads or writes such, and what the networks make of it.

A kernel that reads 16 bits has to give what it gives for the same values in float32, and one that writes them that
result, rounded to nearest even: to the last bit, as nothing else differs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from leaf_checks import fenced, run
from test_conv2d_ladder import EVERY_TILE, PASSES, fits, forced, problem

import minigan as mg
from minigan import backend, half, nn
from minigan.ops import batch_norm as norm
from minigan.ops import leaky_relu
from minigan.ops.column_sums import column_sums
from minigan.ops.conv2d_ladder import RUNGS, THREE_COLUMNS, suits_three_columns

precisions = pytest.mark.parametrize("precision", ["bf16", "fp16"])
HALF_TILES = [(rung, tile) for rung, tile in EVERY_TILE if RUNGS[rung].half]


@pytest.fixture(autouse=True)
def precision_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_precision", None)


def narrow(a: np.ndarray, precision: str) -> np.ndarray:
    """Rounded to nearest even; for bf16 by arithmetic, to 8 significant bits, which are the upper ones of float32."""
    if precision == "fp16":
        return a.astype(np.float16)
    mantissa, exponent = np.frexp(a.astype(np.float32))
    rounded = np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def wide(a: np.ndarray) -> np.ndarray:
    """Exactly the same values in float32."""
    return a.astype(np.float32) if a.dtype == np.float16 else (a.astype(np.uint32) << 16).view(np.float32)


def random(shape: tuple[int, ...], precision: str, seed: int) -> np.ndarray:
    """Right before memory that must not be read."""
    return fenced(narrow(1 + np.random.default_rng(seed).standard_normal(shape), precision))


def same(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# ---- kernels ---------------------------------------------------------------------------------------------------------


@precisions
def test_widening_is_exact(precision: str) -> None:
    """All numbers that there are."""
    every = np.arange(2**16, dtype=np.uint16).view(half.HALF_DTYPES[precision])
    same([run(lambda: half.widened("emulated", every))], [wide(every)])
    odd = fenced(every[1:25].copy(), at_end=False)
    same([run(lambda: half.widened("emulated", odd))], [wide(odd)])


@precisions
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("count", [8, 2056, 2048])
def test_the_slope_of_a_gradient(precision: str, slope: float, count: int) -> None:
    condition, x = random((count,), precision, 0), random((count,), precision, 1)
    condition[:4] = narrow(np.array([0.0, -0.0, np.inf, -1.0]), precision)
    x[1] = narrow(np.array([-np.inf]), precision)[0]
    y = run(lambda: leaky_relu.scale_negative_halves("emulated", condition, x, slope))
    same([y], [narrow(leaky_relu.scale_negative("emulated", wide(condition), wide(x), slope), precision)])
    x[2] = x[3] = narrow(np.array([np.inf]), precision)[0] + 1  # a NaN: the next bit pattern, or inf + 1
    x.view(np.uint16)[2:4] |= 1
    y = leaky_relu.scale_negative_halves("emulated", condition, x, slope)
    assert np.isnan(wide(y)[2:4]).all()
    assert np.isfinite(wide(y)[4:]).all()


@precisions
@pytest.mark.parametrize("shape", [(5, 8), (1025, 8), (300, 72), (70, 2056), (33, 1032)])
def test_column_sums(precision: str, shape: tuple[int, int]) -> None:
    x = random(shape, precision, 0)
    same([run(lambda: column_sums("emulated", x, 3.0))], [column_sums("emulated", wide(x), 3.0)])


@precisions
@pytest.mark.parametrize("gy_too", [True, False])
@pytest.mark.parametrize("slope", [1.0, 0.2])
@pytest.mark.parametrize(("shape", "groups"), [((2, 3, 11, 8), 1), ((300, 72), 2), ((63, 40), 3), ((1025, 8), 1)])
def test_batch_norm(shape: tuple[int, ...], groups: int, slope: float, gy_too: bool, precision: str) -> None:
    rng = np.random.default_rng(len(shape))
    x, gy = random(shape, precision, 0), random(shape, precision, 1)
    gamma, beta, mean = rng.standard_normal((3, shape[-1])).astype(np.float32)
    gy = gy if gy_too else wide(gy)
    wide_gy = wide(gy) if gy_too else gy

    def forward(x: np.ndarray, half: bool) -> list[np.ndarray]:
        average, variance, inverse, scale = norm.statistics("emulated", x, gamma, 1e-5, groups)
        given = norm.normalize_given("emulated", x, gamma, beta, mean, mean**2, 0.25, slope, half)
        return [norm.normalize("emulated", x, average, scale, beta, slope, half), given, average, variance, inverse]

    def gradients(x: np.ndarray, gy: np.ndarray, given: bool) -> list[np.ndarray]:
        average, _, inverse, _ = norm.statistics("emulated", x, gamma, 1e-5, 1 if given else groups)
        return norm.batch_norm_gradients("emulated", x, gamma, average, inverse, gy, beta, slope, given)

    expected = forward(wide(x), False)
    same(run(lambda: tuple(forward(x, False))), expected)
    same(run(lambda: tuple(forward(x, True))), [*(narrow(a, precision) for a in expected[:2]), *expected[2:]])
    for given in (False, True):
        gx, *sums = gradients(wide(x), wide_gy, given)
        same(run(lambda given=given: gradients(x, gy, given)), [narrow(gx, precision), *sums])


@precisions
def test_batch_norm_of_other_formats_and_addresses(precision: str) -> None:
    """gy of the other format, or 4 bytes beside a vector, where x has 16 bits; and gy of 16 bits where x has not."""
    x, gamma = random((37, 24), precision, 0), np.linspace(-2, 2, 24, dtype=np.float32)
    average, _, inverse, _ = norm.statistics("emulated", x, gamma, 1e-5)

    def gradients(x: np.ndarray, gy: np.ndarray) -> Any:
        return norm.batch_norm_gradients("emulated", x, gamma, average, inverse, gy, gamma, 0.2, False)

    other = random((37, 24), {"bf16": "fp16", "fp16": "bf16"}[precision], 1)
    moved = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    moved[...] = wide(other)
    expected = gradients(x, wide(other))
    assert expected[0].dtype == x.dtype
    same(gradients(x, other), expected)
    same(gradients(x, moved), expected)
    half_moved = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    half_moved[...] = x
    same(gradients(half_moved, wide(other)), expected)
    same(gradients(wide(x), other), gradients(wide(x), wide(other)))


def in_16_bits(g: Any, name: str) -> list[bool]:
    """Which of a pass's two operands, and its result, can be kept so, as their channels need no padding."""
    x, y = g.c % 8 == 0, g.k % 8 == 0
    return {"forward": [x, False, y], "input_grad": [y, False, x], "weight_grad": [x, y, False]}[name]


# Both, one, or none of the channels multiples of 8; strides 2 x 1, 1, 2; several tiles; images together; one pixel.
SHAPES = [
    problem((2, 7, 8, 16), (24, 3, 3, 16), 1, 1),
    problem((1, 9, 6, 8), (72, 5, 4, 8), 2, "same"),
    problem((3, 4, 5, 136), (8, 3, 2, 136), (2, 1), 1),
    problem((5, 4, 4, 16), (6, 3, 3, 16), 1, 1),
    problem((2, 6, 5, 3), (16, 4, 4, 3), 2, "same"),
    problem((1, 1, 1, 8), (8, 1, 1, 8), 1, 0),
    problem((2, 12, 12, 64), (136, 3, 3, 64), 1, "same"),
]


@pytest.mark.parametrize(("rung", "tile"), HALF_TILES)
@pytest.mark.parametrize("name", PASSES)
def test_convolutions(name: str, rung: int, tile: int) -> None:
    precision, count = RUNGS[rung].precision, 0
    for number, g in enumerate(SHAPES):
        if not fits(name, g, rung, tile):
            continue
        count += 1
        what, can = PASSES[name], in_16_bits(g, name)
        narrowed = [random(shape, precision, 10 * number + i) for i, shape in enumerate(what.inputs(g))]
        bias = np.random.default_rng(number).standard_normal(what.bias(g) or 0).astype(np.float32)
        rest = () if name == "weight_grad" else (bias, 0.3, (None, None))
        expected = what.run("emulated", *map(wide, narrowed), g, *rest, **forced(rung, tile))
        for first, second in ((True, True), (True, False), (False, True)):
            operands = [
                a if kept and able else wide(a) for a, kept, able in zip(narrowed, (first, second), can, strict=False)
            ]
            found = what.run("emulated", *operands, g, *rest, **forced(rung, tile))
            same([found], [expected])
        if rest:
            found = what.run("emulated", *operands, g, *rest, True, **forced(rung, tile))
            same([found], [narrow(expected, precision) if can[2] else expected])
    assert count >= 1


@precisions
@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_three_columns_read_16_bits(name: str, precision: str) -> None:
    sizes = [problem((2, 9, 11, 16), (3, 5, 5, 16), 1, "same"), problem((1, 33, 18, 8), (2, 3, 4, 8), 1, 1)]
    if name == "input_grad":
        sizes = [problem((2, 9, 11, 3), (16, 5, 5, 3), 1, "same"), problem((1, 33, 18, 2), (24, 4, 4, 2), 2, "same")]
    for seed, g in enumerate(sizes):
        assert suits_three_columns(name, g)
        what = PASSES[name]
        first, second = (random(shape, precision, seed + i) for i, shape in enumerate(what.inputs(g)))
        settings = {"rung": THREE_COLUMNS, "slope": 0.2}
        expected = what.run("emulated", wide(first), wide(second), g, **settings)
        same([what.run("emulated", first, wide(second), g, half=True, **settings)], [expected])


@pytest.mark.parametrize("rung", [1, 2, 3, 4, 5, 6, 8, 10, 11])
@pytest.mark.parametrize("name", PASSES)
def test_what_a_rung_cannot_read_is_widened(name: str, rung: int) -> None:
    """bf16 in all but its own rungs; and nothing is kept in 16 bits by those of 32."""
    g = SHAPES[0]
    what, can = PASSES[name], in_16_bits(g, name)
    narrowed = [random(shape, "bf16", i) for i, shape in enumerate(what.inputs(g))]
    operands = [a if able else wide(a) for a, able in zip(narrowed, can, strict=False)]
    assert any(half.is_half(a) for a in operands)
    settings: dict[str, Any] = {"rung": rung} if name == "weight_grad" else {"rung": rung, "half": not RUNGS[rung].half}
    same([what.run("emulated", *operands, g, **settings)], [what.run("emulated", *map(wide, narrowed), g, rung=rung)])


# ---- networks --------------------------------------------------------------------------------------------------------

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
    """To the last bit."""
    mg.set_matmul_precision(precision)
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
                assert sum(t.half for t in inner(y)) == sum(kept for *_, kept in units(net)) >= 3
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
