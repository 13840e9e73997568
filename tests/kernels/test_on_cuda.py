"""On a GPU: what is kept in 16 bits between layers, and the moments that convolutions leave for batch norm.

The stand-in for CuPy runs the same checks without one, on the emulator.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import stand_in
from leaf_checks import assert_within, eps, narrow, random_half, wide
from test_conv2d_ladder import EVERY_TILE, PASSES, fits, forced, problem, random_inputs
from test_conv2d_moments import TILES, parts_of_output, suiting
from test_half_convolutions import HALF_TILES, SHAPES, in_16_bits
from test_half_networks import KINDS, images, network

import minigan as mg
from minigan import backend, half
from minigan.ops import conv2d_launch, elu, leaky_relu, max_pool2d, upsample_nearest2d
from minigan.ops.conv2d_ladder import RUNGS
from minigan.ops.geometry import Geometry
from minigan.ops.moments import Moments

ELU_TILES = [(rung, tile) for rung, tile in EVERY_TILE if RUNGS[rung].elu]
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # half of the last place of 1: 8 and 11 significant bits
PROBLEM = backend.cuda_problem()
GPU = pytest.mark.cuda, pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


Sizes = Callable[[int, Sequence[Geometry]], Sequence[Geometry]]


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=GPU)])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sizes]:
    """Which of some sizes are computed on device "cuda"; skips the test of a rung that this has no instructions for.

    The stand-in gets one: test_half_convolutions.py and test_conv2d_moments.py have the emulator compute all.
    """
    monkeypatch.setattr(backend, "_precision", None)

    def chosen(rung: int, every: Sequence[Geometry]) -> Sequence[Geometry]:
        arch = conv2d_launch.architecture("cuda")
        if not RUNGS[rung].supports(arch):
            pytest.skip(f"rung {rung} is for GPUs {RUNGS[rung].architectures}, this is an sm_{arch}")
        return every[:1] if request.param == "stand-in" else every

    with stand_in.installed(stand_in.Gpu()) if request.param == "stand-in" else nullcontext():
        yield chosen


def there(*arrays: np.ndarray) -> list[Any]:
    return [backend.to_device(a, "cuda") for a in arrays]


def here(array: Any) -> np.ndarray:
    return backend.to_numpy(half.widened("cuda", array))


@pytest.mark.parametrize(("rung", "tile"), HALF_TILES)
@pytest.mark.parametrize("name", PASSES)
def test_on_cuda_convolutions_of_16_bits(name: str, rung: int, tile: int, sizes: Sizes) -> None:
    """To the last bit what the same kernel computes of the same values in float32, rounded if that is asked for."""
    what: Any = PASSES[name]
    precision = RUNGS[rung].precision
    for number, g in enumerate(sizes(rung, [g for g in SHAPES if fits(name, g, rung, tile)])):
        narrowed = [random_half(shape, precision, 10 * number + i) for i, shape in enumerate(what.inputs(g))]
        bias = np.random.default_rng(number).standard_normal(what.bias(g) or 0).astype(np.float32)
        rest: tuple[Any, ...] = () if name == "weight_grad" else (*there(bias), 0.3, (None, None))
        expected = here(what.run("cuda", *there(*map(wide, narrowed)), g, *rest, **forced(rung, tile)))
        can = in_16_bits(g, name)
        operands = there(*(a if kept else wide(a) for a, kept in zip(narrowed, can, strict=False)))
        np.testing.assert_array_equal(here(what.run("cuda", *operands, g, *rest, **forced(rung, tile))), expected)
        if rest:
            y = what.run("cuda", *operands, g, *rest, True, **forced(rung, tile))
            assert half.is_half(y) == can[2]
            np.testing.assert_array_equal(here(y), wide(narrow(expected, precision)) if can[2] else expected)


@pytest.mark.parametrize(("rung", "tile"), ELU_TILES)
@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_on_cuda_an_elu_behind_a_convolution(name: str, rung: int, tile: int, sizes: Sizes) -> None:
    """To the last bit what elu.cu makes of the convolution in float; kept in 16 bits, it is that, rounded once."""
    what: Any = PASSES[name]
    for number, g in enumerate(sizes(rung, [g for g in SHAPES if fits(name, g, rung, tile)])):
        given = (*there(*random_inputs(what, g, seed=number)[:2]), g)
        bias = there(np.random.default_rng(number).standard_normal(what.bias(g)).astype(np.float32))[0]
        y = what.run("cuda", *given, bias, **forced(rung, tile))
        expected = here(elu.elu_forward("cuda", y, 0.7))
        np.testing.assert_array_equal(
            here(what.run("cuda", *given, bias, 0.7, elu=True, **forced(rung, tile))), expected
        )
        if RUNGS[rung].half and in_16_bits(g, name)[2]:
            kept = what.run("cuda", *given, bias, 0.7, elu=True, half=True, **forced(rung, tile))
            assert half.is_half(kept)
            np.testing.assert_array_equal(here(kept), wide(narrow(expected, RUNGS[rung].precision)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_cuda_layers_between_convolutions(precision: str, sizes: Sizes) -> None:
    """To the last bit what float32's kernels compute of the same values, rounded."""
    x, other = random_half((2, 6, 10, 24), precision, 0), random_half((2, 6, 10, 24), precision, 1)
    windows = (3, 3), (2, 2), (1, 1)
    pooled, index = max_pool2d.max_pool_forward("cuda", *there(wide(x)), windows)
    assert here(pooled).shape == (2, 3, 5, 24)
    np.testing.assert_array_equal(here(max_pool2d.max_pool_forward("cuda", *there(x), windows)[1]), here(index))
    gy = random_half(index.shape, precision, 2)
    for leaf, arrays, rest in (
        (leaky_relu.scale_negative, (x, other), (0.3,)),
        (elu.elu_forward, (x,), (0.7,)),
        (elu.elu_grad, (x, other), (0.7,)),
        (upsample_nearest2d.upsample, (x,), (2,)),
        (upsample_nearest2d.sum_blocks, (x,), (2,)),
        (lambda *given: max_pool2d.max_pool_forward(*given)[0], (x,), (windows,)),
        (max_pool2d.scatter, (gy,), (index, (6, 10), windows)),
    ):
        y = leaf("cuda", *there(*arrays), *rest)
        assert half.is_half(y)
        expected = here(leaf("cuda", *there(*map(wide, arrays)), *rest))
        np.testing.assert_array_equal(here(y), wide(narrow(expected, precision)))


@pytest.mark.parametrize(("rung", "tile"), TILES)
@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_on_cuda_moments_of_convolutions(name: str, rung: int, tile: int, sizes: Sizes) -> None:
    """Within what test_conv2d_moments.py allows, of the outputs as they are; which are those without moments."""
    what: Any = PASSES[name]
    whole = problem((2, 7, 9, 16), (24, 3, 3, 16), 1, "same"), problem((1, 34, 38, 24), (72, 4, 4, 24), 2, "same")
    for g in sizes(rung, [*whole, *suiting(name, rung, tile)]):
        for kept in {False, RUNGS[rung].half}:
            moments, rest = Moments(), (1.0, (None, None), kept)
            arrays = there(*random_inputs(what, g))
            first, second, bias = arrays
            y = what.run("cuda", first, second, g, bias, *rest, moments, **forced(rung, tile))
            other = what.run("cuda", first, second, g, bias, *rest, **forced(rung, tile))
            np.testing.assert_array_equal(here(y), here(other))
            assert moments.left is not None
            parts, means, squares = moments.left[1]
            rows = parts_of_output(name, g, here(y), parts.part_rows)
            exact = np.stack([r.mean(0) for r in rows])
            spread = np.stack([np.ptp(r, axis=0) for r in rows])
            assert_within(here(means), exact, 8 * eps("float32") * spread + 4 * eps("float64") * np.abs(exact))
            exact = np.stack([((r - r.mean(0)) ** 2).sum(0) for r in rows])
            assert_within(here(squares), exact, 32 * eps("float32") * exact + eps("float64"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_cuda_forward_and_gradients_of_networks(precision: str, training: bool, kind: str, sizes: Sizes) -> None:
    """As on the emulator. Sums differ in their last bits, and so some numbers are rounded to their neighbours.

    Such numbers are few, and off by 2 units: as a whole nothing is off by more than a few. But for gradients, where one
    of a layer's 2304 numbers may fall to the other side of LeakyReLU's kink, which is a fiftieth of the whole.
    """
    sizes(7, [])
    mg.set_matmul_precision(precision)
    results = []
    for device in ("emulated", "cuda"):
        net = network(kind).train(training).to(device)
        x = mg.tensor(images(kind), requires_grad=True, device=device)
        y = net(x)
        gy = np.random.default_rng(5).standard_normal(y.shape).astype(np.float32)
        found = mg.grad(y, [x, *net.parameters()], mg.tensor(gy, device=device))
        gradients = [g.numpy().ravel() for g in found if g is not None]
        running = [t.numpy() for name, t in net.named_tensors() if "running" in name]
        results.append([gradients[0], np.concatenate(gradients), y.numpy(), *running])
    for number, (expected, actual) in enumerate(zip(*results, strict=True)):
        limit = 2.0**-4 if number < 2 else 4 * UNIT[precision]
        assert np.linalg.norm(actual - expected) <= limit * np.linalg.norm(expected)
