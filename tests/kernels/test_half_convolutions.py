"""Convolutions of tensors that are kept in 16 bits.

A kernel that reads 16 bits has to give what it gives for the same values in float32, and one that writes them that
result, rounded to nearest even: to the last bit, as nothing else differs.
"""

from typing import Any

import numpy as np
import pytest
from leaf_checks import narrow, random_half, run, same, wide
from test_conv2d_ladder import EVERY_TILE, PASSES, assert_sums, fits, forced, problem

from minigan import half
from minigan.ops import conv2d_cuda
from minigan.ops.conv2d_ladder import RUNGS, THREE_COLUMNS, suits_three_columns
from minigan.ops.conv2d_launch import Launcher
from minigan.ops.elu import elu_forward

precisions = pytest.mark.parametrize("precision", ["bf16", "fp16"])
HALF_TILES = [(rung, tile) for rung, tile in EVERY_TILE if RUNGS[rung].half]


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
        narrowed = [random_half(shape, precision, 10 * number + i) for i, shape in enumerate(what.inputs(g))]
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
            found = run(lambda: what.run("emulated", *operands, g, *rest, True, **forced(rung, tile)))  # noqa: B023
            same([found], [narrow(expected, precision) if can[2] else expected])
    assert count >= 1


@pytest.mark.parametrize(("rung", "tile"), HALF_TILES)
@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_an_elu_is_rounded_once(name: str, rung: int, tile: int) -> None:
    """Of a sum in float; but behind a rung that does not end with it, of a sum that was rounded already."""
    precision, count = RUNGS[rung].precision, 0
    for number, g in enumerate(SHAPES):
        what, can = PASSES[name], in_16_bits(g, name)
        if not (fits(name, g, rung, tile) and can[2]):
            continue
        count += 1
        first, second = (random_half(shape, precision, number + i) for i, shape in enumerate(what.inputs(g)))
        small = (wide(second) - 1) / 32  # and of both signs, as the sums shall be
        given = (first if can[0] else wide(first)), small, g
        y = what.run("emulated", *given, **forced(rung, tile))
        assert y.size < 9 or np.any((y > -2) & (y < 0))
        y = y if RUNGS[rung].elu else wide(narrow(y, precision))
        found = what.run("emulated", *given, None, 0.7, elu=True, half=True, **forced(rung, tile))
        same([found], [narrow(elu_forward("emulated", y, 0.7), precision)])
    assert count >= 2


@precisions
@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_three_columns_read_16_bits(name: str, precision: str) -> None:
    sizes = [problem((2, 9, 11, 16), (3, 5, 5, 16), 1, "same"), problem((1, 33, 18, 8), (2, 3, 4, 8), 1, 1)]
    if name == "input_grad":
        sizes = [problem((2, 9, 11, 3), (16, 5, 5, 3), 1, "same"), problem((1, 33, 18, 2), (24, 4, 4, 2), 2, "same")]
    for seed, g in enumerate(sizes):
        assert suits_three_columns(name, g)
        what = PASSES[name]
        first, second = (random_half(shape, precision, seed + i) for i, shape in enumerate(what.inputs(g)))
        settings = {"rung": THREE_COLUMNS, "slope": 0.2}
        expected = what.run("emulated", wide(first), wide(second), g, **settings)
        same([what.run("emulated", first, wide(second), g, half=True, **settings)], [expected])


@pytest.mark.parametrize("rung", [1, 2, 3, 4, 5, 6, 8, 10, 11])
@pytest.mark.parametrize("name", PASSES)
def test_what_a_rung_cannot_read_is_widened(name: str, rung: int) -> None:
    """bf16 in all but its own rungs; and nothing is kept in 16 bits by those of 32."""
    g = SHAPES[0]
    what, can = PASSES[name], in_16_bits(g, name)
    narrowed = [random_half(shape, "bf16", i) for i, shape in enumerate(what.inputs(g))]
    operands = [a if able else wide(a) for a, able in zip(narrowed, can, strict=False)]
    assert any(half.is_half(a) for a in operands)
    settings: dict[str, Any] = {"rung": rung} if name == "weight_grad" else {"rung": rung, "half": not RUNGS[rung].half}
    same([what.run("emulated", *operands, g, **settings)], [what.run("emulated", *map(wide, narrowed), g, rung=rung)])


# Beside the shapes above: deep ones, of more slices than a group of them has; and strides that not all taps divide.
DEEP = [
    *SHAPES,
    problem((9, 17, 16, 8), (8, 3, 3, 8), 1, "same"),
    problem((3, 9, 8, 72), (24, 4, 4, 72), (3, 2), "same"),
]


def check_bias(g: Any, rung: int, tile: int) -> int:
    """How often it was summed along. The weight gradient has the bits that it has without."""
    what, precision, count = PASSES["weight_grad"], RUNGS[rung].precision, 0
    narrowed = [random_half(shape, precision, i) for i, shape in enumerate(what.inputs(g))]
    for of, place in (("x", 0), ("gy", 1)):
        if narrowed[place].shape[-1] % 8:
            continue
        for other in (True, False):
            arrays = [a if i == place or (other and a.shape[-1] % 8 == 0) else wide(a) for i, a in enumerate(narrowed)]
            for slices in (None, 33):
                settings = {**forced(rung, tile), "slices": slices}

                def work(of: str = of, arrays: Any = arrays, settings: Any = settings) -> Any:
                    found = conv2d_cuda.weight_and_bias_grad("emulated", *arrays, g, of, **settings)
                    return () if found is None else found

                found = run(work)
                if not found:
                    assert of == "x"
                    continue
                same([found[0]], [what.run("emulated", *arrays, g, **settings)])
                assert_sums(found[1], wide(narrowed[place]))
                count += 1
    return count


@pytest.mark.parametrize(("rung", "tile"), [(rung, tile) for rung, tile in HALF_TILES if RUNGS[rung].sums])
def test_the_bias_gradient_is_summed_along(rung: int, tile: int) -> None:
    found = [check_bias(g, rung, tile) for g in DEEP if fits("weight_grad", g, rung, tile)]
    assert {4, 8} <= set(found) <= {0, 4, 8}  # of one of both, or both, that have 16 bits; of some layers x cannot be


@precisions
def test_where_the_bias_gradient_is_not_summed_along(precision: str) -> None:
    """Where the array is rounded for the launch, and by rungs that do not see it."""
    g, rung = SHAPES[0], {"bf16": 7, "fp16": 8}[precision]
    x, gy = (random_half(shape, precision, i) for i, shape in enumerate(PASSES["weight_grad"].inputs(g)))
    for arrays, of in (((x, wide(gy)), "gy"), ((wide(x), gy), "x")):
        assert conv2d_cuda.weight_and_bias_grad("emulated", *arrays, g, of, rung=rung) is None
    assert conv2d_cuda.weight_and_bias_grad("emulated", x, gy, g, "gy", rung=rung + 2) is None
    assert conv2d_cuda.weight_and_bias_grad("emulated", x, gy, g, "gy", rung=5) is not None


def test_a_nan_stays_in_its_channel_of_the_bias_gradient() -> None:
    g = SHAPES[6]
    x, gy = (random_half(shape, "fp16", i) for i, shape in enumerate(PASSES["weight_grad"].inputs(g)))
    for tile in (0, 1):
        for of, array in (("x", x), ("gy", gy)):
            array[1, 2, 3, 17] = np.nan
            _, gb = conv2d_cuda.weight_and_bias_grad("emulated", x, gy, g, of, rung=8, tile=tile)
            assert np.flatnonzero(np.isnan(gb)).tolist() == [17]
            array[1, 2, 3, 17] = 1


@pytest.mark.parametrize(("rung", "tile"), HALF_TILES)
def test_a_nan_stays_in_its_filter(rung: int, tile: int) -> None:
    """What is beyond the depth counts 0, and is not any number of the array."""
    g = SHAPES[0]
    x, gy = (random_half(shape, RUNGS[rung].precision, i) for i, shape in enumerate(PASSES["weight_grad"].inputs(g)))
    gy[0, 0, 0, 0] = narrow(np.array([np.inf], np.float32), RUNGS[rung].precision)[0]
    gy.view(np.uint16)[0, 0, 0, 0] |= 1  # a NaN
    assert fits("weight_grad", g, rung, tile)
    gw = conv2d_cuda.weight_grad("emulated", x, gy, g, **forced(rung, tile))
    assert np.isnan(gw[0]).any()
    assert np.isfinite(gw[1:]).all()


@pytest.mark.parametrize(("rung", "dtype"), [(3, "float64"), (7, "float32"), (THREE_COLUMNS, "float32")])
def test_only_16_bits_are_aligned(rung: int, dtype: str) -> None:
    """Other arrays are loaded number by number where they begin beside a vector, and not copied."""
    array = np.ones(17, dtype)[1:].reshape(2, 8)
    assert array.ctypes.data % 16
    assert Launcher("emulated", rung, np.dtype(dtype)).as_read(array) is array
