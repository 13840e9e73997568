"""bf16 and fp16: the passes that multiply by one float32 array round it once, and compute what they would without."""

import weakref
from typing import Any

import numpy as np
import pytest
from test_conv2d_ladder import EVERY_TILE, PASSES, SIZES, fits, forced, guarded, problem

import minigan as mg
from minigan import backend
from minigan.ops import conv2d, conv2d_launch
from minigan.ops import rounded as rounded_module
from minigan.ops.conv2d import placed_conv2d, placed_conv_transpose2d
from minigan.ops.conv2d_ladder import RUNGS
from minigan.ops.geometry import Geometry
from minigan.ops.place import Place
from minigan.ops.rounded import Rounded, shared_copies
from minigan.tensor import GraphError

HALF_TILES = [(rung, tile) for rung, tile in EVERY_TILE if RUNGS[rung].half]
# Padded by 3 both, by 7 and 5, and an image's colours; strides 2 x 1, 1, 2. And x, gy and their gradients of one shape.
PROBLEMS = [SIZES[12], SIZES[3], SIZES[1], problem((1, 6, 5, 8), (8, 3, 3, 8), 1, 1)]
OPERANDS = {"forward": "xw", "input_grad": "yw", "weight_grad": "xy"}
precisions = pytest.mark.parametrize("precision", ["bf16", "fp16"])
problems = pytest.mark.parametrize("g", PROBLEMS, ids=lambda g: f"{g.c}-{g.k}")


@pytest.fixture(autouse=True)
def precision_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_precision", None)


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of an array each rounding has made."""
    rows: list[int] = []
    launch = conv2d_launch.launch

    def noted(source: str, kernel: str, grid: Any, block: Any, args: Any, **settings: Any) -> None:
        if kernel == "round_operands":
            rows.extend(padding["padded_rows"] for padding in (args[2], args[5]) if padding["padded_rows"])
        launch(source, kernel, grid, block, args, **settings)

    monkeypatch.setattr(conv2d_launch, "launch", noted)
    return rows


def separately(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on each pass rounds for itself."""
    for module in (conv2d, rounded_module):
        monkeypatch.setattr(module, "Rounded", lambda: None)


def rows(*shapes: tuple[int, ...]) -> list[int]:
    return sorted(int(np.prod(shape[:-1])) for shape in shapes)


def random(shape: tuple[int, ...], seed: int, requires_grad: bool = True) -> mg.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return mg.tensor(values, requires_grad=requires_grad, device="emulated")


def convolution(g: Geometry, transposed: bool, x: mg.Tensor, w: mg.Tensor, slope: float = 1.0) -> mg.Tensor:
    """What F.conv2d and F.conv_transpose2d make, of a geometry."""
    op = conv2d.Conv2dInputGrad if transposed else conv2d.Conv2d
    return op(g, Place(slope), shared_copies(x, w))(x, w)


def shapes(g: Geometry, transposed: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the input and the output."""
    return (g.y_shape, g.x_shape) if transposed else (g.x_shape, g.y_shape)


@precisions
@pytest.mark.parametrize("transposed", [False, True])
def test_a_training_step_rounds_each_array_once(precision: str, transposed: bool, rounded: list[int]) -> None:
    mg.set_matmul_precision(precision)
    g = problem((2, 7, 8, 16), (24, 3, 3, 16), 1, 1)  # needs no padding
    into, out = shapes(g, transposed)
    x, w, gy = random(into, 0), random(g.w_shape, 1), random(out, 2)
    layer = placed_conv_transpose2d if transposed else placed_conv2d
    y = layer(Place(0.3), x, w, None, 1, 1)
    assert sorted(rounded) == rows(x.shape, w.shape)
    y.backward(gy.data)
    assert sorted(rounded) == rows(x.shape, w.shape, y.shape)


@precisions
@problems
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_the_same_to_the_last_bit(
    precision: str, transposed: bool, g: Geometry, monkeypatch: pytest.MonkeyPatch, rounded: list[int]
) -> None:
    """Those of two backward passes through one graph, too, and gradients of gradients."""
    mg.set_matmul_precision(precision)
    into, out = shapes(g, transposed)

    def computed() -> tuple[list[np.ndarray], int]:
        rounded.clear()
        x, w, gy, other = random(into, 0), random(g.w_shape, 1), random(out, 2), random(out, 3)
        gradients = []
        y = convolution(g, transposed, x, w, slope=0.3)
        for cotangent in (gy, other):
            gradients += mg.grad(y, [x, w], cotangent, retain_graph=True)
        first = mg.grad(y, [x, w], gy, create_graph=True)
        inner = (first[0] * random(into, 4)).sum() + (first[1] * random(g.w_shape, 5)).sum()
        gradients += mg.grad(inner, [x, w, gy])
        return [one.numpy() for one in (y, *gradients)], len(rounded)

    shared, few = computed()
    separately(monkeypatch)
    alone, many = computed()
    for a, b in zip(shared, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert few < many


@pytest.mark.parametrize(("rung", "tile"), HALF_TILES)
@pytest.mark.parametrize("first", PASSES)
@pytest.mark.parametrize("second", PASSES)
def test_a_pass_multiplies_by_the_copies_that_another_left(rung: int, tile: int, first: str, second: str) -> None:
    """And does not read the array itself, where its operand lies as it is: it is NaN by then."""
    for number, g in enumerate(SIZES):
        if not (fits(first, g, rung, tile) and fits(second, g, rung, tile)):
            continue
        of = {name: Rounded() for name in "xwy"}
        arrays = {}
        for seed, (name, shape) in enumerate((("x", g.x_shape), ("w", g.w_shape), ("y", g.y_shape))):
            arrays[name] = guarded(shape, np.float32)
            arrays[name][...] = np.random.default_rng(100 * number + seed).standard_normal(shape)

        def run(what: str, of: dict, arrays: dict = arrays, g: Geometry = g) -> np.ndarray:
            a, b = OPERANDS[what]
            settings = {} if what == "weight_grad" else {"bias": None, "slope": 1.0}
            copies = of.get(a), of.get(b)
            return PASSES[what].run(
                "emulated", arrays[a], arrays[b], g, **settings, copies=copies, **forced(rung, tile)
            )

        expected = [run(what, {}) for what in (first, second)]
        np.testing.assert_array_equal(run(first, of), expected[0])
        for place, name in enumerate(OPERANDS[second]):
            if of[name].copies and not (place == 1 and RUNGS[rung].tiles[tile].packed):
                arrays[name][...] = np.nan
        np.testing.assert_array_equal(run(second, of), expected[1])


def test_a_change_between_the_passes_does_not_mix_old_and_new_numbers() -> None:
    """One that nobody told minigan of: the gradients are those of the numbers that y was computed from."""
    mg.set_matmul_precision("bf16")
    g = SIZES[4]
    x, w, gy = random(g.x_shape, 0), random(g.w_shape, 1), random(g.y_shape, 2, requires_grad=False)
    expected = mg.grad(convolution(g, False, x, w), [x, w], gy)
    y = convolution(g, False, x, w)
    x.data[...] = 7
    w.data[...] = 7
    for found, right in zip(mg.grad(y, [x, w], gy), expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), right.numpy())
    # Of another pass forward they are the new ones'.
    np.testing.assert_array_equal(
        convolution(g, False, x, w).numpy(),
        convolution(g, False, mg.tensor(x.numpy(), device="emulated"), mg.tensor(w.numpy(), device="emulated")).numpy(),
    )
    w.mark_changed()
    y = convolution(g, False, x, w)
    w.mark_changed()
    with pytest.raises(GraphError, match="changed in place"):
        y.backward(gy)


def test_another_precision_in_between_rounds_anew() -> None:
    g = SIZES[4]
    x, w, gy = random(g.x_shape, 0), random(g.w_shape, 1), random(g.y_shape, 2, requires_grad=False)
    mg.set_matmul_precision("bf16")
    y = convolution(g, False, x, w)
    mg.set_matmul_precision("fp16")
    found = mg.grad(y, [x, w], gy)
    for gradient, right in zip(found, mg.grad(convolution(g, False, x, w), [x, w], gy), strict=True):
        np.testing.assert_array_equal(gradient.numpy(), right.numpy())


def test_copies_are_kept_for_the_gradients_that_need_them_and_no_longer() -> None:
    mg.set_matmul_precision("bf16")
    g = SIZES[4]
    for x_needs, w_needs in ((True, True), (True, False), (False, True)):
        x, w = random(g.x_shape, 0, x_needs), random(g.w_shape, 1, w_needs)
        y = convolution(g, False, x, w)
        op = y.op
        assert isinstance(op, conv2d.Conv2d)
        of_x, of_w = op.copies
        # The weight's gradient is made of x, that of x of the weight.
        assert (of_x is not None, of_w is not None) == (w_needs, x_needs)
        kept = [weakref.ref(copy) for one in op.copies if one is not None for copy in one.copies.values()]
        assert len(kept) == x_needs + w_needs
        del of_x, of_w
        y.backward(np.ones(y.shape, np.float32))
        assert not any(one() is not None for one in kept)
    with mg.no_grad():
        assert convolution(g, False, random(g.x_shape, 0), random(g.w_shape, 1)).op is None
