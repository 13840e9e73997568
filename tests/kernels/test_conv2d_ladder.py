"""The convolution ladder: every rung, every tile, every pass, against float64, on the emulator.

What is allowed, from the arithmetic. An output is a sum of n products; let s be the square root of the sum of their
squares, the size of such a sum for random signs, so that partial sums stay within 3 s. Each addition rounds by
u = 2^-24 of its partial sum at most, evenly spread, so by u / sqrt(3) of it on average, and n such errors of random
signs add up to sqrt(n) of one: 3 s u sqrt(n / 3). Three times that is allowed, and two roundings of the result for sums
of one or two: (5.2 sqrt(n) + 2) u s. A product too few or too many is an error of s / sqrt(n), a thousand times as much
and more.

TF32 inputs are rounded to 11 significant bits, so each is off by 2^-11 of itself at most, 2^-11 / sqrt(3) on average
over the mantissas, and a product of two by 2^-11 sqrt(2 / 3): together 0.82 * 2^-11 s; six times that, 5 * 2^-11 s, is
allowed. fp16 has 11 significant bits too, bf16 has 8: 5 * 2^-8 s. Compared with the reference of inputs that were
rounded in the same way, rungs 6 to 11 have to be as exact as the others: a product of two of these numbers has at most
22 significant bits, and is exact in float32.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from leaf_checks import check_counters, fenced
from minigan.kernels import KernelError, load
from minigan.kernels.emulator import options

import minigan as mg
from minigan import backend
from minigan.block_counters import LIMIT
from minigan.kernel_launch import launch
from minigan.ops import conv2d_cuda, conv2d_ladder, conv2d_launch
from minigan.ops.conv2d import (
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    _sample_geometries,
    placed_conv2d,
    placed_conv_transpose2d,
)
from minigan.ops.conv2d_ladder import RUNGS, THREE_COLUMNS, choose_rung, choose_slices, choose_tile, suits_three_columns
from minigan.ops.elu import elu_forward
from minigan.ops.geometry import Geometry, convolution
from minigan.ops.place import Place

GUARD = 64  # elements on both sides of every array
NAN_BITS = {2: 0x7FC1, 4: 0x7FC0BEEF, 8: 0x7FC0BEEF << 32}  # by bytes: NaNs that no arithmetic makes; 2: bf16 and fp16

# ---- references: one loop over the taps, in float64 ------------------------------------------------------------------


def padded(g: Geometry, x: np.ndarray) -> np.ndarray:
    h = max(g.h + g.top, (g.p - 1) * g.stride_h + g.r)
    w = max(g.w + g.left, (g.q - 1) * g.stride_w + g.s)
    out = np.zeros((g.n, h, w, g.c), x.dtype)
    out[:, g.top : g.top + g.h, g.left : g.left + g.w] = x
    return out


def taps(g: Geometry, x: np.ndarray):
    """(r, s, the pixels of padded x that this tap reads: a view (N, P, Q, C))."""
    for r, s in np.ndindex(g.r, g.s):
        rows, columns = slice(r, r + g.p * g.stride_h, g.stride_h), slice(s, s + g.q * g.stride_w, g.stride_w)
        yield r, s, x[:, rows, columns][:, : g.p, : g.q]


def reference_forward(g, x, w, bias=None):
    y = np.zeros(g.y_shape) + (0 if bias is None else bias)
    for r, s, pixels in taps(g, padded(g, x)):
        y += pixels @ w[:, r, s].T
    return y


def reference_input_grad(g, gy, w, bias=None):
    gx = padded(g, np.zeros(g.x_shape))
    for r, s, pixels in taps(g, gx):
        pixels += gy @ w[:, r, s]
    return gx[:, g.top : g.top + g.h, g.left : g.left + g.w] + (0 if bias is None else bias)


def reference_weight_grad(g, x, gy):
    gw = np.zeros(g.w_shape)
    for r, s, pixels in taps(g, padded(g, x)):
        gw[:, r, s] = np.tensordot(gy, pixels, ((0, 1, 2), (0, 1, 2)))
    return gw


@dataclass(frozen=True)
class Pass:
    run: object
    reference: object
    inputs: object  # geometry -> the shapes of the two operands
    bias: object  # geometry -> its length, or None
    depth: object  # geometry -> the longest sum


PASSES = {
    "forward": Pass(
        conv2d_cuda.forward,
        reference_forward,
        lambda g: (g.x_shape, g.w_shape),
        lambda g: g.k,
        lambda g: g.r * g.s * g.c + 1,
    ),
    "input_grad": Pass(
        conv2d_cuda.input_grad,
        reference_input_grad,
        lambda g: (g.y_shape, g.w_shape),
        lambda g: g.c,
        lambda g: -(-g.r // g.stride_h) * -(-g.s // g.stride_w) * g.k + 1,
    ),
    "weight_grad": Pass(
        conv2d_cuda.weight_grad,
        reference_weight_grad,
        lambda g: (g.x_shape, g.y_shape),
        lambda g: None,
        lambda g: g.n * g.p * g.q,
    ),
}


def round_to_tf32(x: np.ndarray) -> np.ndarray:
    """To 11 significant bits, ties away from zero, by float64 arithmetic and not by bit tricks."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.trunc(mantissa * 2.0**11 + np.copysign(0.5, mantissa)), exponent - 11)


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """To 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 2.0**8), exponent - 8)


# What the two operands of a product go through, and by what of themselves it may change them.
ROUNDED = {
    "float32": lambda x: x.astype(np.float64),
    "tf32": round_to_tf32,
    "bf16": round_to_bf16,
    "fp16": lambda x: x.astype(np.float16).astype(np.float64),
}
UNIT = {"tf32": 2.0**-11, "bf16": 2.0**-8, "fp16": 2.0**-11}


# ---- inputs, memory, comparison --------------------------------------------------------------------------------------


def guarded(shape, dtype) -> np.ndarray:
    """Memory with guards around it; all of it NaN, so that an element that is not written, or read outside, is seen."""
    count, itemsize = int(np.prod(shape)), np.dtype(dtype).itemsize
    bits = np.full(count + 2 * GUARD + 16, NAN_BITS[itemsize], f"u{itemsize}")
    begin = GUARD + -(bits.ctypes.data // itemsize) % (16 // itemsize)  # aligned to 16 bytes
    return bits.view(dtype)[begin : begin + count].reshape(shape)


def check_guards(array: np.ndarray) -> None:
    flat = array.base
    begin = (array.ctypes.data - flat.ctypes.data) // flat.itemsize
    rest = np.concatenate([flat[:begin], flat[begin + array.size :]]).view(f"u{flat.itemsize}")
    assert np.all(rest == NAN_BITS[flat.itemsize]), "written outside of an array"


def poisoned(arrays: list):
    """In place of conv2d_launch.empty: memory with guards, which it also appends to `arrays`."""

    def empty(device, shape, dtype):
        arrays.append(guarded(shape, dtype))
        return arrays[-1]

    return empty


@pytest.fixture(autouse=True)
def allocated(monkeypatch):
    """Outputs and workspaces are poisoned, and nothing is written beside them."""
    arrays = []
    monkeypatch.setattr(conv2d_launch, "empty", poisoned(arrays))
    yield arrays
    for array in arrays:
        check_guards(array)


def random_inputs(what: Pass, g: Geometry, dtype=np.float32, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [*what.inputs(g), *([(what.bias(g),)] if bias and what.bias(g) else [])]
    arrays = []
    for shape in shapes:
        arrays.append(guarded(shape, dtype))
        arrays[-1][...] = rng.standard_normal(shape)
    return arrays


def run(what: Pass, g: Geometry, arrays, **settings):
    first, second, *bias = arrays
    return what.run("emulated", first, second, g, *bias, **settings)


def assert_right(what: Pass, g: Geometry, arrays, result, precision="float32", slope=1.0, elu=False):
    """As exact as the arithmetic allows; also where the result is NaN, or has no variance at all."""
    wide = [a.astype(np.float64) for a in arrays]
    if precision != "float32":
        wide[:2] = [ROUNDED[precision](a) for a in arrays[:2]]
    exact = what.reference(g, *wide)
    size = np.sqrt(what.reference(g, *(a**2 for a in wide)))
    unit = np.finfo(arrays[0].dtype).eps / 2
    allowed = (5.2 * np.sqrt(what.depth(g)) + 2) * unit * size
    if elu:  # whose slope is at most 1 or alpha; and e^x - 1, within 2 units of itself, is multiplied by alpha
        exact = np.where(exact > 0, exact, slope * np.expm1(exact))
        allowed = max(1, slope) * allowed + 3 * unit * np.abs(exact)
    elif slope != 1:  # which at most 1 makes no error larger, and rounds once more
        exact, allowed = np.where(exact > 0, exact, slope * exact), allowed + unit * np.abs(exact)
    assert result.shape == exact.shape
    assert result.dtype == arrays[0].dtype
    wrong = ~(np.abs(result - exact) <= allowed)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} are wrong, e.g. {np.argwhere(wrong)[0]}"


def problem(x, w, stride, padding) -> Geometry:
    return convolution("test", x, w, stride, padding)


# Sizes that straddle the edges of all tiles: rows 1, 19, 33, 111 ..., columns 1, 3, 33, 68, 132, depths likewise.
SIZES = [
    problem((1, 1, 1, 1), (1, 1, 1, 1), 1, 0),
    problem((2, 19, 33, 3), (5, 5, 5, 3), 2, "same"),
    problem((1, 9, 7, 8), (20, 4, 4, 8), 2, "same"),
    problem((1, 8, 9, 33), (19, 3, 3, 33), 1, "same"),
    problem((2, 7, 8, 20), (68, 3, 3, 20), 1, 1),
    problem((1, 5, 6, 132), (36, 2, 2, 132), 1, "valid"),
    problem((2, 3, 111, 4), (8, 3, 3, 4), 1, "same"),  # deep enough for slices on every rung
    problem(
        (70, 3, 3, 4), (8, 3, 3, 4), 1, "same"
    ),  # so many small images that whole tiles read padding with some taps
    problem((40, 4, 4, 8), (12, 5, 5, 8), 2, "same"),
    problem((3, 7, 8, 2), (3, 3, 2, 2), (3, 1), ((2, 0), (1, 3))),  # asymmetric in every way
    problem((2, 9, 7, 12), (4, 2, 1, 12), (3, 2), (1, 0)),  # kernel smaller than the stride: classes without taps
    problem((1, 2, 2, 4), (4, 5, 5, 4), 3, "same"),  # image smaller than the stride: classes without pixels
    problem((5, 6, 6, 1), (7, 4, 4, 1), 1, "valid"),
    problem((1, 4, 4, 16), (3, 3, 3, 16), 1, ((4, 0), (0, 5))),  # more padding than kernel
    problem((2, 9, 15, 68), (132, 1, 2, 68), 1, "same"),  # a weight gradient of several of the largest tiles, in slices
    problem((2, 9, 11, 13), (21, 5, 4, 13), (2, 1), "same"),  # channels that 16-bit operands pad, both by 3
]

# (height, channels, filters, kernel, stride, padding) of every convolution of the five systems, and of the convolution
# whose input gradient each transposed one is; channels divided by 16 and the colours kept, batch 1.
SYSTEMS = {
    "cats, simpsons": [
        (128, 3, 4, 5, 2, "same"),
        (64, 4, 8, 5, 2, "same"),
        (32, 8, 16, 5, 2, "same"),
        (16, 16, 32, 5, 1, "same"),
        (16, 32, 64, 5, 2, "same"),
        (128, 3, 4, 5, 1, "same"),
        (128, 4, 8, 5, 2, "same"),
    ],
    "anime": [
        (64, 3, 4, 4, 2, "same"),
        (32, 4, 8, 4, 2, "same"),
        (16, 8, 16, 4, 2, "same"),
        (8, 16, 32, 4, 2, "same"),
        (32, 4, 4, 3, 1, "same"),
        (4, 32, 7, 4, 1, "valid"),
    ],
    "maxpool": [
        (32, 3, 8, 5, 1, "same"),
        (16, 8, 16, 5, 1, "same"),
        (8, 16, 32, 5, 1, "same"),
        (8, 16, 16, 5, 2, "same"),
        (16, 8, 16, 5, 2, "same"),
        (32, 4, 8, 5, 2, "same"),
        (32, 4, 3, 5, 1, "same"),
    ],
    "began": [
        (64, 3, 8, 3, 1, "same"),
        (64, 8, 8, 3, 2, "same"),
        (32, 8, 16, 3, 1, "same"),
        (32, 16, 16, 3, 2, "same"),
        (16, 16, 24, 3, 1, "same"),
        (16, 24, 24, 3, 2, "same"),
        (8, 24, 32, 3, 1, "same"),
        (8, 32, 32, 3, 1, "same"),
        (64, 8, 3, 3, 1, "same"),
    ],
}

EVERY_TILE = [(rung, tile) for rung, spec in RUNGS.items() for tile in range(len(spec.tiles)) or [None]]
tiles = pytest.mark.parametrize(("rung", "tile"), EVERY_TILE, ids=lambda n: str(n))
passes = pytest.mark.parametrize("name", PASSES)
rungs = pytest.mark.parametrize("rung", RUNGS)


def forced(rung, tile):
    """The settings that force a rung and, from rung 4 on, a tile."""
    return {"rung": rung} if rung < 4 else {"rung": rung, "tile": tile}


def fits(name, g, rung, tile):
    """Whether the tile has loads that are narrow enough for these channels."""
    both = RUNGS[rung].operands(name, *conv2d_ladder.channels(name, g))
    allowed = tuple(4 if channels % 4 == 0 else 1 for channels in both)
    if RUNGS[rung].half:  # channels are padded
        allowed = tuple(4 if channels <= 4 else 8 for channels in both)
    return rung < 4 or conv2d_ladder.widest(RUNGS[rung].tiles[tile], allowed) is not None


# ---- right numbers ---------------------------------------------------------------------------------------------------


@passes
def test_the_reference_agrees_with_the_ops(name):
    op = {"forward": Conv2d, "input_grad": Conv2dInputGrad, "weight_grad": Conv2dWeightGrad}[name]
    for g in _sample_geometries():
        arrays = random_inputs(PASSES[name], g, np.float64)
        expected = op.reference(*arrays, geometry=g)
        np.testing.assert_allclose(PASSES[name].reference(g, *arrays), expected, rtol=0, atol=1e-12)


@passes
@tiles
def test_sizes_that_straddle_tiles(rung, tile, name):
    what = PASSES[name]
    checked = 0
    for g in SIZES:
        if not fits(name, g, rung, tile):
            continue
        arrays = random_inputs(what, g, bias=checked % 2 == 0)
        copies = [a.copy() for a in arrays]
        result = run(what, g, arrays, **forced(rung, tile))
        assert_right(what, g, arrays, result, precision=RUNGS[rung].precision)
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("name", ["forward", "input_grad"])
@pytest.mark.parametrize("slope", [0.0, 0.3])
@tiles
def test_bias_and_leaky_relu_at_the_end(rung, tile, slope, name):
    what, checked = PASSES[name], 0
    for g in SIZES[1:6]:
        if fits(name, g, rung, tile):
            arrays = random_inputs(what, g, bias=checked % 2 == 0)
            result = run(what, g, [*arrays, *[None] * (3 - len(arrays)), slope], **forced(rung, tile))
            assert_right(what, g, arrays, result, precision=RUNGS[rung].precision, slope=slope)
            checked += 1
    assert checked >= 2


def check_elu(name, g, rung, tile, seed):
    """To the last bit what elu.cu makes of the convolution; that is a launch only where the rung cannot do it along."""
    what, alpha, before = PASSES[name], (1.0, 0.7, 1.5)[seed], []
    arrays = random_inputs(what, g, bias=seed > 0, seed=seed)
    first, second, bias = (*arrays, None)[:3]

    def noted(device, x, alpha):
        before.append(x)
        return elu_forward(device, x, alpha)

    with pytest.MonkeyPatch.context() as patch, options(seed=seed):
        patch.setattr(conv2d_cuda, "elu_forward", noted)
        result = run(what, g, [first, second, bias, alpha], elu=True, **forced(rung, tile))
    assert len(before) == (rung not in (4, 5, 6, 7, 8))
    np.testing.assert_array_equal(result, elu_forward("emulated", run(what, g, arrays, **forced(rung, tile)), alpha))
    precision = RUNGS[rung].precision if rung else "float32"
    assert_right(what, g, arrays, result, precision=precision, slope=alpha, elu=True)


@pytest.mark.parametrize("name", ["forward", "input_grad"])
@tiles
def test_bias_and_elu_at_the_end(rung, tile, name):
    suiting = [g for g in SIZES[1:6] if fits(name, g, rung, tile)]
    assert len(suiting) >= 2
    for seed, g in enumerate(suiting[:3]):
        check_elu(name, g, rung, tile, seed)


@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_an_elu_behind_three_columns(name):
    g = problem((1, 9, 11, 8), (2, 3, 3, 8), 1, 1) if name == "forward" else problem((1, 9, 11, 3), (8, 5, 5, 3), 2, 1)
    check_elu(name, g, THREE_COLUMNS, None, 1)


@rungs
def test_what_elu_makes_of_infinity_and_nan(rung):
    g = problem((1, 1, 3, 4), (4, 1, 1, 4), 1, 0)
    x, w, _ = random_inputs(PASSES["forward"], g)
    x[...], w[...] = 0, 0
    x[0, 0, :, 0], w[:, 0, 0, 0] = [-np.inf, np.inf, np.nan], 1
    y = conv2d_cuda.forward("emulated", x, w, g, None, 0.5, rung=rung, elu=True)
    np.testing.assert_array_equal(y[0, 0, :, 0], [-0.5, np.inf, np.nan])


@rungs
def test_what_leaky_relu_makes_of_infinity_and_nan(rung):
    """A slope of 0 gives 0 for infinity, too; a NaN stays one."""
    g = problem((1, 1, 3, 4), (4, 1, 1, 4), 1, 0)
    x, w, _ = random_inputs(PASSES["forward"], g)
    x[...], w[...] = 0, 0
    x[0, 0, :, 0], w[:, 0, 0, 0] = [-np.inf, np.inf, np.nan], 1
    w[:, 0, 0, 1:] = 0
    y = conv2d_cuda.forward("emulated", x, w, g, None, 0.0, rung=rung)
    np.testing.assert_array_equal(y[0, 0, :, 0], [0, np.inf, np.nan])


def check_nan_stays(what, g, rung, tile):
    """A NaN comes out where its pixel is read, and nowhere else: nothing is multiplied by 0 to be left out."""
    arrays = random_inputs(what, g)
    first = arrays[0]
    for at in (np.zeros(4, int), np.array(first.shape) // 2, np.array(first.shape) - 1):
        before = first[tuple(at)]
        first[tuple(at)] = np.nan
        result, exact = run(what, g, arrays, **forced(rung, tile)), what.reference(g, *arrays)
        np.testing.assert_array_equal(np.isnan(result), np.isnan(exact))
        first[tuple(at)] = before
    # One of the other operand may meet the padding's zeros, but stays in its own filter or channel.
    second = arrays[1]
    for at in (np.zeros(4, int), np.array(second.shape) // 2):
        before = second[tuple(at)]
        second[tuple(at)] = np.nan
        result, exact = run(what, g, arrays, **forced(rung, tile)), what.reference(g, *arrays)
        others = (1, 2, 3) if result.shape == g.w_shape else (0, 1, 2)
        assert not np.any(np.isnan(result).any(others) & ~np.isnan(exact).any(others))
        second[tuple(at)] = before


@passes
@tiles
def test_a_nan_stays_where_it_belongs(rung, tile, name):
    for g in SIZES[1:]:
        if fits(name, g, rung, tile):
            check_nan_stays(PASSES[name], g, rung, tile)


@pytest.mark.parametrize("name", ["forward", "input_grad"])
@pytest.mark.parametrize("rung", [5, 6, 7, 8])
def test_taps_that_only_read_padding_are_left_out(rung, name):
    """A NaN in such a tap shows whether it is multiplied. 64 images: a tile of 64 rows is one pixel of each of them."""
    for height, width, stride in ((2, 2, 1), (2, 3, 1), (4, 4, 2)):
        g = problem((64, height, width, 8), (8, 3, 3, 8), stride, ((1, 1), (1, 1)))
        arrays = random_inputs(PASSES[name], g, bias=False)
        for r, s in np.ndindex(3, 3):
            w = arrays[1].copy()
            w[:, r, s] = np.nan
            result = run(PASSES[name], g, [arrays[0], w], rung=rung, tile=0)
            reads = np.zeros((1, height + 2, width + 2, 1), bool)  # the padded input: is this tap inside for an output?
            reads[:, 1:-1, 1:-1] = True
            (pixels,) = [p for i, j, p in taps(g, reads) if (i, j) == (r, s)]
            if name == "input_grad":
                reads[...] = False
                (pixels,) = [p for i, j, p in taps(g, reads) if (i, j) == (r, s)]
                pixels[...] = True
                pixels = reads[:, 1:-1, 1:-1]
            np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(pixels, result.shape))


@passes
@rungs
def test_nothing_is_read_beside_the_operands(rung, name):
    """There, the process would die."""
    for g in (SIZES[2], SIZES[4], SIZES[7]):
        arrays = random_inputs(PASSES[name], g, bias=False)
        for at_end in (True, False):
            result = run(PASSES[name], g, [fenced(a, at_end) for a in arrays], rung=rung)
            assert_right(PASSES[name], g, arrays, result, precision=RUNGS[rung].precision)


@passes
@pytest.mark.parametrize("rung", [1, 2, 3])
def test_double(rung, name):
    for g in SIZES:
        arrays = random_inputs(PASSES[name], g, np.float64)
        assert_right(PASSES[name], g, arrays, run(PASSES[name], g, arrays, rung=rung))


@passes
@rungs
@pytest.mark.parametrize("system", SYSTEMS)
def test_layers_of_the_five_systems(system, rung, name):
    for h, c, k, kernel, stride, padding in SYSTEMS[system]:
        g = problem((1, h, h, c), (k, kernel, kernel, c), stride, padding)
        arrays = random_inputs(PASSES[name], g)
        result = run(PASSES[name], g, arrays, rung=rung)
        assert_right(PASSES[name], g, arrays, result, precision=RUNGS[rung].precision)


@passes
def test_what_is_chosen_by_default(name):
    for precision in ROUNDED:
        for g in SIZES[:5]:
            arrays = random_inputs(PASSES[name], g)
            result = run(PASSES[name], g, arrays, precision=precision)
            assert_right(PASSES[name], g, arrays, result, "float32" if suits_three_columns(name, g) else precision)
            arrays = random_inputs(PASSES[name], g, np.float64)
            assert_right(PASSES[name], g, arrays, run(PASSES[name], g, arrays, precision=precision))


@passes
@pytest.mark.parametrize("rung", [6, 7, 8, 9, 10, 11])
def test_against_unrounded_inputs(rung, name):
    what, g, unit = PASSES[name], SIZES[4], UNIT[RUNGS[rung].precision]
    arrays = random_inputs(what, g)
    wide = [a.astype(np.float64) for a in arrays]
    exact, size = what.reference(g, *wide), np.sqrt(what.reference(g, *(a**2 for a in wide)))
    error = np.abs(run(what, g, arrays, rung=rung) - exact) / size
    assert np.all(error <= 5 * unit)
    assert np.sqrt(np.mean(error**2)) > 0.1 * unit  # and it is this precision, not a better one


@pytest.mark.parametrize("tile", [0, 1])
def test_what_is_rounded_to_tf32(tile):
    """Ties, carries into the next power of two, the largest numbers, infinities, and every kind of NaN: one by one."""
    bits = [0x3F801000, 0x3F800FFF, 0x3F803000, 0x3FFFF000, 0x3FFFFFFF, 0x00801000, 0x7F7FEFFF, 0x7F7FFFFF, 0x7F800000]
    bits += [0x7F800001, 0x7FC00000, 0x7FFFE000, 0x7FFFFFFF, 0, 0x3F800001]
    given = np.array([*bits, *(b | 0x80000000 for b in bits)], np.uint32).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # signalling NaNs; the largest number becomes infinity
        expected = round_to_tf32(given).astype(np.float32)
    g = problem((1, 1, given.size, 4), (4, 1, 1, 4), 1, 0)
    x, w, _ = random_inputs(PASSES["forward"], g)
    x[...], w[...] = 0, 0
    x[0, 0, :, 0], w[:, 0, 0, 0] = given, 1
    for what, arrays in (("forward", [x, w]), ("input_grad", [x, w.transpose(3, 1, 2, 0).copy()])):
        result = run(PASSES[what], g, arrays, rung=6, tile=tile)
        np.testing.assert_array_equal(result[0, 0, :, 0], expected)
    # Filters, and both operands of a weight gradient, go through the same function, but other reads.
    w[...], x[...] = 0, 0
    w[:, 0, 0, 0], x[..., 0] = given[:4], 1
    np.testing.assert_array_equal(run(PASSES["forward"], g, [x, w], rung=6, tile=tile)[0, 0, 0], expected[:4])


@passes
@pytest.mark.parametrize("rung", [7, 8, 9, 10])
def test_operands_that_16_bits_cannot_hold(rung, name):
    """Nothing is clipped: what is too large for fp16 becomes infinite, what is too small for it 0; bf16 holds both."""
    what, g = PASSES[name], SIZES[4]
    for factor in (2.0**20, 2.0**-40):
        arrays = random_inputs(what, g, bias=False)
        arrays[0] *= np.float32(factor)
        result = run(what, g, arrays, rung=rung)
        if RUNGS[rung].precision == "bf16":
            assert_right(what, g, arrays, result, "bf16")
        elif factor > 1:
            assert not np.isfinite(result).any()
        else:
            assert not result.any()


@passes
@rungs
def test_random_problems(rung, name):
    rng = np.random.default_rng(rung)
    what = PASSES[name]
    for _ in range(12):
        r, s, stride_h, stride_w = rng.integers(1, [6, 6, 4, 4])
        n, c, k = rng.integers(1, [4, 24, 24])
        h, w = rng.integers(1, 12, 2)
        pads = rng.integers(0, 4, (2, 2)).tolist()
        h, w = max(h, r - sum(pads[0])), max(w, s - sum(pads[1]))
        x, filters = (int(n), int(h), int(w), int(c)), (int(k), int(r), int(s), int(c))
        g = problem(x, filters, (int(stride_h), int(stride_w)), pads)
        arrays = random_inputs(what, g)
        result = run(what, g, arrays, rung=rung)
        assert_right(what, g, arrays, result, precision=RUNGS[rung].precision)


# ---- three columns ---------------------------------------------------------------------------------------------------

# The ends of the five systems, their channels divided by 8, batch 1; then sizes that straddle its tiles of 16 x 32
# pixels and 8 channels, and classes without taps or pixels.
IMAGES = [
    *[
        problem((1, h, h, c), (k, r, r, c), stride, padding)
        for layers in SYSTEMS.values()
        for h, c, k, r, stride, padding in layers
        if 3 in (c, k)
    ],
    problem((1, 128, 128, 3), (8, 5, 5, 3), 1, "same"),
    problem((1, 32, 32, 16), (3, 5, 5, 16), 1, "same"),
    problem((2, 64, 64, 3), (8, 4, 4, 3), 2, "same"),
    problem((1, 1, 1, 1), (1, 1, 1, 1), 1, 0),
    problem((3, 15, 31, 9), (3, 3, 3, 9), 1, "same"),
    problem((2, 17, 33, 7), (2, 5, 4, 7), 1, "valid"),
    problem((2, 33, 65, 2), (19, 5, 5, 2), 2, "same"),
    problem((1, 6, 7, 33), (1, 1, 5, 33), 1, ((0, 3), (2, 0))),
    problem((2, 9, 7, 3), (4, 2, 1, 3), (3, 2), (1, 0)),  # kernel smaller than the stride
    problem((1, 2, 2, 3), (4, 5, 5, 3), 3, "same"),  # image smaller than the stride
    problem((1, 40, 9, 3), (12, 10, 9, 3), 2, 4),  # ten taps, five a class
]


def of_three_columns(name):
    return [g for g in IMAGES if suits_three_columns(name, g)]


@pytest.mark.parametrize("name", ["forward", "input_grad"])
@pytest.mark.parametrize("slope", [1.0, 0.2])
def test_three_columns(slope, name):
    what, found = PASSES[name], of_three_columns(name)
    for number, g in enumerate(found):
        arrays = random_inputs(what, g, bias=number % 2 == 0)
        given = arrays if slope == 1 else [*arrays, *[None] * (3 - len(arrays)), slope]
        assert_right(what, g, arrays, run(what, g, given, rung=THREE_COLUMNS), slope=slope)
    assert len(found) >= 7


@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_three_columns_keep_a_nan_where_it_belongs(name):
    for g in of_three_columns(name)[-3:]:
        check_nan_stays(PASSES[name], g, THREE_COLUMNS, None)


@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_three_columns_in_every_order_of_warps_and_from_any_address(name):
    for g in (IMAGES[-8], IMAGES[-5], IMAGES[0]):
        if not suits_three_columns(name, g):
            continue
        arrays, results = random_inputs(PASSES[name], g), []
        for seed in (0, 1, 2, 3):
            with options(seed=seed):
                results.append(run(PASSES[name], g, arrays, rung=THREE_COLUMNS))
        moved = np.empty(arrays[0].size + 1, np.float32)[1:].reshape(arrays[0].shape)
        moved[...] = arrays[0]
        results.append(run(PASSES[name], g, [moved, *arrays[1:]], rung=THREE_COLUMNS))
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


def test_which_passes_have_three_columns():
    colours, grey = problem((1, 8, 8, 16), (3, 5, 5, 16), 1, "same"), problem((2, 8, 8, 1), (16, 5, 5, 1), 2, "same")
    assert [suits_three_columns(name, colours) for name in PASSES] == [True, False, False]
    assert [suits_three_columns(name, grey) for name in PASSES] == [False, True, False]
    assert not suits_three_columns("forward", problem((1, 8, 8, 16), (3, 5, 5, 16), 2, "same"))
    assert not suits_three_columns("forward", problem((1, 8, 8, 16), (3, 7, 5, 16), 1, "same"))
    assert not suits_three_columns("forward", problem((1, 8, 8, 16), (4, 5, 5, 16), 1, "same"))
    arrays = random_inputs(PASSES["forward"], grey)
    with pytest.raises(ValueError, match=r"three_columns\.cu does not compute such a forward pass in float32"):
        run(PASSES["forward"], grey, arrays, rung=THREE_COLUMNS)
    for precision in ROUNDED:
        by_default = run(PASSES["input_grad"], grey, random_inputs(PASSES["input_grad"], grey), precision=precision)
        forced_to = run(PASSES["input_grad"], grey, random_inputs(PASSES["input_grad"], grey), rung=THREE_COLUMNS)
        np.testing.assert_array_equal(by_default, forced_to)


# ---- the same bits ---------------------------------------------------------------------------------------------------


@passes
@tiles
def test_every_order_of_warps_gives_the_same_bits(rung, tile, name):
    """Races change something between orders; and with an odd seed, copies land at once."""
    for g in (SIZES[4], SIZES[6], SIZES[-1]):
        if g is not SIZES[4] and not fits(name, g, rung, tile):
            continue
        arrays = random_inputs(PASSES[name], g)
        results = []
        for seed in (0, 1, 2, 3):
            with options(seed=seed):
                results.append(run(PASSES[name], g, arrays, **forced(rung, tile)))
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


@rungs
def test_split_k_is_deterministic(rung, allocated):
    g = SIZES[6]
    what = PASSES["weight_grad"]
    arrays = random_inputs(what, g)
    results = []
    for seed in (0, 0, 5):
        with options(seed=seed):
            results.append(run(what, g, arrays, rung=rung))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    if rung == 1:
        return
    inner = conv2d_ladder.padded(g) if RUNGS[rung].half else g
    (rows, columns), depth = RUNGS[rung].weight_grad_sizes(inner), g.n * g.p * g.q
    tile, _ = choose_tile(rung, rows, columns, (4, 4) if RUNGS[rung].half else (1, 1), depth=depth)
    tiles_ = -(-rows // tile.bm) * -(-columns // tile.bn)
    size = rows * columns if rung == 2 else tiles_ * tile.bm * tile.bn
    slices, _ = choose_slices(tiles_, depth, tile.bk, size, 4)
    assert slices > 1
    assert [a.shape for a in allocated if a.shape[1:] == (size,)] == [(slices, size)] * 3


# With channels that 16-bit operands pad, and more tiles than one.
DEEP = [
    problem((1, 12, 45, 3), (5, 3, 2, 3), 1, "same"),
    problem((1, 21, 21, 5), (19, 3, 3, 5), 1, "same"),
    problem((1, 40, 27, 8), (66, 3, 3, 8), 1, "same"),
]


def deep(g, rung, tile):
    """With as many images as 33 slices of this tile need."""
    return replace(g, n=-(-33 * RUNGS[rung].tiles[tile or 0].bk // (g.p * g.q)))


@pytest.mark.parametrize("g", DEEP, ids=["narrow", "odd", "wide"])
@pytest.mark.parametrize(("rung", "tile"), [one for one in EVERY_TILE if one[0] > 2])
def test_slices_are_added_up_in_order(rung, tile, g, allocated):
    """Groups of 16, and then their sums, whichever block comes last; and the counters are 0 again."""
    what = PASSES["weight_grad"]
    g = deep(g, rung, tile)
    if not fits("weight_grad", g, rung, tile):
        return
    arrays, counts = random_inputs(what, g), []
    for wanted in (1, 2, 5, 16, 17, 33):
        results = []
        for seed in (0, 1):  # two orders of the blocks
            allocated.clear()
            with options(seed=seed):
                results.append(run(what, g, arrays, **forced(rung, tile), slices=wanted))
            check_counters()
        assert_right(what, g, arrays, results[0], precision=RUNGS[rung].precision)
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)
        partial = [a for a in allocated if a.ndim == 2]
        if wanted == 1 and not RUNGS[rung].half:
            assert not partial
            continue
        counts.append(len(partial[-1]))
        sums = in_place(partial[-1][::16] if counts[-1] > 16 else partial[-1], g, rung, tile)
        expected = sums[0]
        for one in sums[1:]:
            expected = expected + one
        np.testing.assert_array_equal(results[0], expected)
    assert min(counts) <= 16 < max(counts)


def in_place(partial, g, rung, tile):
    """(slices, tiles BM BN) -> (slices, K, R, S, C), without padding."""
    inner = conv2d_ladder.padded(g) if RUNGS[rung].half else g
    spec = RUNGS[rung].tiles[tile or 0]
    rows, columns = inner.k, inner.r * inner.s * inner.c
    if RUNGS[rung].transposed:
        across, down, height, width = -(-columns // spec.bm), -(-rows // spec.bn), spec.bn, spec.bm
        whole = partial.reshape(-1, down, across, height, width).transpose(0, 1, 3, 2, 4)
    else:
        across, down, height, width = -(-columns // spec.bn), -(-rows // spec.bm), spec.bm, spec.bn
        whole = partial.reshape(-1, across, down, height, width).transpose(0, 2, 3, 1, 4)
    matrix = whole.reshape(len(partial), down * height, across * width)[:, : g.k, :columns]
    return matrix.reshape(len(partial), g.k, g.r, g.s, inner.c)[..., : g.c]


def test_so_many_counters():
    assert [conv2d_ladder.counters_of(3, slices) for slices in (1, 2, 16, 17, 256, 257)] == [1, 4, 4, 10, 52, 61]
    for tiles_, wanted in ((1, None), (300, 40), (5000, 65535), (2**16, 2), (2**17, 2)):
        slices, _ = choose_slices(tiles_, 10**8, 16, 1, 4, wanted)
        assert conv2d_ladder.counters_of(tiles_, slices) <= LIMIT


def test_slices_cover_the_depth_and_fit_the_workspace():
    for tiles_, depth, bk, outputs in ((1, 1, 16, 1), (1, 1254, 16, 375), (40, 10**6, 8, 10**6), (1, 10**9, 16, 10**8)):
        slices, slice_depth = choose_slices(tiles_, depth, bk, outputs, 4)
        assert slice_depth % bk == 0
        assert (slices - 1) * slice_depth < depth <= slices * slice_depth
        assert slices == 1 or slices * outputs * 4 <= conv2d_ladder.WORKSPACE_BYTES


# ---- a bias's gradient, in the weight gradient's launch --------------------------------------------------------------


def summed(g, arrays, of, **settings):
    x, gy = arrays
    return conv2d_cuda.weight_and_bias_grad("emulated", x, gy, g, of, **settings)


def assert_sums(gb, array):
    """As assert_right, for sums of n numbers and not of products."""
    wide, n = array.astype(np.float64), array.size // array.shape[-1]
    unit = np.finfo(array.dtype).eps / 2
    allowed = (5.2 * np.sqrt(n) + 2) * unit * np.sqrt((wide**2).sum((0, 1, 2)))
    assert gb.shape == array.shape[-1:]
    assert gb.dtype == array.dtype
    wrong = ~(np.abs(gb - wide.sum((0, 1, 2))) <= allowed)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} sums are wrong, e.g. {np.argwhere(wrong)[0]}"


SUMMING = [one for one in EVERY_TILE if RUNGS[one[0]].sums and not RUNGS[one[0]].half]  # test_half_convolutions.py


def biases(rung, tile):
    """The layers whose bias's gradient is checked."""
    problems = [*SIZES, *(deep(g, rung, tile) for g in DEEP), problem((3, 9, 8, 70), (18, 4, 4, 70), (3, 2), "same")]
    return [g for g in problems if fits("weight_grad", g, rung, tile)]


def check_bias(g, rung, tile, seeds=(0, 1, 2)):
    """How often it was summed along; and the weight gradient has the bits that it has without."""
    count = 0
    arrays = random_inputs(PASSES["weight_grad"], g)
    for of, array in (("x", arrays[0]), ("gy", arrays[1])):
        for slices in (None, 33):
            results = []
            for seed in seeds:
                with options(seed=seed):
                    results.append(summed(g, arrays, of, **forced(rung, tile), slices=slices))
            if results[0] is None:
                assert of == "x"
                continue
            alone = run(PASSES["weight_grad"], g, arrays, **forced(rung, tile), slices=slices)
            np.testing.assert_array_equal(results[0][0], alone)
            assert_sums(results[0][1], array)
            for other in results[1:]:
                np.testing.assert_array_equal(results[0][1], other[1])
            count += 1
    return count


@pytest.mark.parametrize(("rung", "tile"), SUMMING)
def test_the_bias_gradient_is_summed_along(rung, tile):
    found = [check_bias(g, rung, tile) for g in biases(rung, tile)]
    assert set(found) == {2, 4}  # of some layers x cannot be


def test_the_bias_gradient_in_double():
    for g in biases(3, 0):
        arrays = random_inputs(PASSES["weight_grad"], g, np.float64)
        for of, array in (("x", arrays[0]), ("gy", arrays[1])):
            found = summed(g, arrays, of)
            assert of == "x" or found is not None
            if found is not None:
                assert_sums(found[1], array)


@pytest.mark.parametrize(("rung", "tile"), SUMMING)
def test_a_nan_stays_in_its_channel_of_the_bias_gradient(rung, tile):
    g = SIZES[4]
    arrays = random_inputs(PASSES["weight_grad"], g)
    for of, array in (("x", arrays[0]), ("gy", arrays[1])):
        array[1, 2, 3, 17] = np.nan
        _, gb = summed(g, arrays, of, **forced(rung, tile))
        assert np.flatnonzero(np.isnan(gb)).tolist() == [17]
        array[1, 2, 3, 17] = 1


def test_where_the_bias_gradient_is_not_summed_along(allocated):
    """By other rungs, where it is rounded, by taps that miss pixels of x; nothing is computed then."""
    g = problem((2, 7, 8, 20), (68, 3, 3, 20), 1, 1)
    arrays = random_inputs(PASSES["weight_grad"], g)
    for rung in (1, 2, 7, 8, 9, 10, 11):
        assert summed(g, arrays, "gy", rung=rung) is None
    for precision in ("bf16", "fp16"):
        assert summed(g, arrays, "gy", precision=precision) is None
    for shape, stride, padding in (
        ((1, 1), 2, 0),  # fewer taps than the stride
        ((3, 3), 1, "valid"),  # the last pixels are met by other taps alone
        ((3, 3), 1, ((3, 0), (0, 0))),  # as are the first ones
    ):
        g = problem((2, 8, 8, 4), (4, *shape, 4), stride, padding)
        assert summed(g, random_inputs(PASSES["weight_grad"], g), "x", rung=5) is None
    assert not allocated


def test_the_bias_gradient_of_an_empty_batch():
    g = problem((0, 5, 5, 4), (3, 3, 3, 4), 1, "same")
    for of, channels in (("x", 4), ("gy", 3)):
        gw, gb = summed(g, random_inputs(PASSES["weight_grad"], g), of, rung=5)
        assert gw.shape == g.w_shape
        assert not gw.any()
        np.testing.assert_array_equal(gb, np.zeros(channels))


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("function", [placed_conv2d, placed_conv_transpose2d])
def test_weight_and_bias_learn_the_same_with_and_without_a_graph_of_gradients(function, precision, monkeypatch):
    monkeypatch.setattr(backend, "_precision", precision)
    rng = np.random.default_rng(4)
    shapes = (2, 7, 6, 8), (8, 3, 3, 8), (8,)
    x, w, b = (mg.tensor(rng.standard_normal(s).astype(np.float32), device="emulated") for s in shapes)
    for t in (x, w, b):
        t.requires_grad = True
    y = function(Place(0.3), x, w, b, stride=2, padding="same")
    gy = mg.tensor(rng.standard_normal(y.shape).astype(np.float32), device="emulated")
    together = mg.grad(y, [x, w, b], gy, retain_graph=True)
    apart = mg.grad(y, [x, w, b], gy, create_graph=True)
    for one, other in zip(together[:2], apart[:2], strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    # Each of the two sums of n is off by n roundings at the very most.
    allowed = 2 * (y.size // 8) * 2.0**-24 * np.abs(gy.numpy()).sum((0, 1, 2))
    assert np.all(np.abs(together[2].numpy() - apart[2].numpy()) <= allowed)
    for frozen in (w, b):  # only one of the two is asked for
        frozen.requires_grad = False
        other = b if frozen is w else w
        y = function(Place(0.3), x, w, b, stride=2, padding="same")
        np.testing.assert_array_equal(mg.grad(y, [other], gy)[0].numpy(), apart[1 + (other is b)].numpy())
        frozen.requires_grad = True


# ---- memory ----------------------------------------------------------------------------------------------------------


@passes
@rungs
def test_inputs_that_are_not_contiguous(rung, name):
    g = SIZES[2]
    arrays = random_inputs(PASSES[name], g)
    strided = [np.asfortranarray(arrays[0]), arrays[1][:, ::-1, :, :].copy()[:, ::-1], *arrays[2:]]
    strided[2:] = [np.repeat(b, 2)[::2] for b in strided[2:]]
    assert not any(a.flags.c_contiguous for a in strided)
    result = run(PASSES[name], g, strided, rung=rung)
    np.testing.assert_array_equal(result, run(PASSES[name], g, arrays, rung=rung))


@passes
@pytest.mark.parametrize("rung", [4, 5, 6, 7, 8, 9, 10, 11])
@pytest.mark.parametrize("moved", [(0,), (1,), (0, 1)])
def test_arrays_that_begin_4_bytes_beside_a_vector(moved, rung, name):
    """They are loaded float by float, in the same order."""
    g = SIZES[2]
    arrays = random_inputs(PASSES[name], g)
    beside = list(arrays)
    for i in moved:
        beside[i] = np.full(arrays[i].size + 4, np.nan, np.float32)[1:-3].reshape(arrays[i].shape)
        beside[i][...] = arrays[i]
        assert beside[i].ctypes.data % 16
        assert conv2d_launch.vector(beside[i], 4) == 1
    assert all(conv2d_launch.vector(a, 4) == 4 for a in arrays[:2])
    result = run(PASSES[name], g, beside, rung=rung, tile=0)
    np.testing.assert_array_equal(result, run(PASSES[name], g, arrays, rung=rung, tile=0))


@passes
@rungs
def test_an_empty_batch(rung, name):
    g = problem((0, 5, 5, 4), (3, 3, 3, 4), 1, "same")
    result = run(PASSES[name], g, random_inputs(PASSES[name], g), rung=rung)
    assert result.shape == PASSES[name].reference(g, *random_inputs(PASSES[name], g)).shape
    assert not result.any()


@pytest.mark.parametrize(
    "g",
    [
        Geometry(1 << 15, 256, 256, 1, 1, 1, 1, 256, 256, 1, 1, 0, 0),
        Geometry(1, 1, 1, 1 << 16, 1 << 15, 1, 1, 1, 1, 1, 1, 0, 0),
        Geometry(1, 1, 1 << 29, 1, 1, 1, 1, 1, 1 << 29, 1, 1, 0, 0),
        Geometry(1, 4, 4, 1, 1, 1, 1, 4, 4, 1, 1, 1 << 29, 0),
    ],
    ids=["activations", "filters", "width", "padding"],
)
def test_sizes_beyond_int_are_refused(g):
    fake = [SimpleNamespace(shape=shape, dtype=np.dtype(np.float32)) for shape in (g.x_shape, g.w_shape, g.y_shape)]
    for rung in RUNGS:
        for function, operands in (
            (conv2d_cuda.forward, fake[:2]),
            (conv2d_cuda.input_grad, [fake[2], fake[1]]),
            (conv2d_cuda.weight_grad, [fake[0], fake[2]]),
        ):
            with pytest.raises(ValueError, match=r"split the batch|padded input"):
                function("emulated", *operands, g, rung=rung)


def test_a_patch_matrix_beyond_int_is_refused_by_rung_2():
    g = problem((1, 64, 64, 1024), (1, 33, 33, 1024), 1, "same")
    x, w, gy = np.empty(g.x_shape, np.float32), np.empty(g.w_shape, np.float32), np.empty(g.y_shape, np.float32)
    for function, operands in (
        (conv2d_cuda.forward, (x, w)),
        (conv2d_cuda.input_grad, (gy, w)),
        (conv2d_cuda.weight_grad, (x, gy)),
    ):
        with pytest.raises(ValueError, match="im2col's matrix has 4567597056 elements"):
            function("emulated", *operands, g, rung=2)


# ---- refusals and choices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({0: np.zeros((1, 9, 7, 4), np.float32)}, {}, r"input: expected \(1, 9, 7, 8\) float32, got \(1, 9, 7, 4\)"),
        ({1: np.zeros((20, 4, 4, 8))}, {}, r"weight: expected \(20, 4, 4, 8\) float32, got .* float64"),
        ({2: np.zeros(19, np.float32)}, {}, r"bias: expected \(20,\) float32, got \(19,\)"),
        ({}, {"rung": max(conv2d_ladder.RUNGS) + 1}, r"there is no rung \d+; there are 1, 2, 3"),
        ({}, {"precision": "int8"}, "expected a precision of float32, tf32, bf16, fp16, got 'int8'"),
        ({0: np.zeros((1, 9, 7, 8))}, {"rung": 7}, "rung 7 is for float32 from sm_80 on, got float64"),
        ({0: np.zeros((1, 9, 7, 8), np.int32)}, {}, "expected float32 or float64, got int32"),
        ({1: np.zeros((20, 4, 4, 8), np.float16)}, {"rung": 8}, r"weight: expected .* float32, got .* float16"),
        ({0: np.zeros((1, 9, 7, 8))}, {"rung": 4}, "rung 4 is for float32 from sm_75 on, got float64"),
    ],
)
def test_refused(change, settings, message):
    arrays = random_inputs(PASSES["forward"], SIZES[2])
    for i, array in change.items():
        arrays[i] = array
    with pytest.raises(ValueError, match=message):
        run(PASSES["forward"], SIZES[2], arrays, **settings)


def test_padding_beyond_int_is_refused():
    """What fits as it is, but not with three channels of zeros for each one."""
    g = Geometry(1 << 14, 256, 256, 1, 1, 1, 1, 256, 256, 1, 1, 0, 0)
    x, w = (SimpleNamespace(shape=shape, dtype=np.dtype(np.float32)) for shape in (g.x_shape, g.w_shape))
    with pytest.raises(ValueError, match="split the batch"):
        conv2d_cuda.forward("emulated", x, w, g, precision="bf16", rung=7)


def test_a_tile_without_narrow_loads_is_refused():
    arrays = random_inputs(PASSES["forward"], SIZES[1])
    with pytest.raises(ValueError, match=r"rung 4, tile 1: loads of"):
        run(PASSES["forward"], SIZES[1], arrays, rung=4, tile=1)


def test_old_cards_have_no_asynchronous_copies(monkeypatch):
    monkeypatch.setattr(conv2d_launch, "architecture", lambda device: 75)
    arrays = random_inputs(PASSES["forward"], SIZES[2])
    with pytest.raises(ValueError, match="rung 5 is for float32 from sm_80 on, got float32 on sm_75"):
        run(PASSES["forward"], SIZES[2], arrays, rung=5)
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"precision '{precision}' needs a GPU from sm_80 on, this is an sm_75"):
            run(PASSES["forward"], SIZES[2], arrays, precision=precision)
    assert_right(PASSES["forward"], SIZES[2], arrays, run(PASSES["forward"], SIZES[2], arrays, precision="tf32"))


def test_warpgroup_products_are_for_sm_90_and_by_name_only(monkeypatch):
    arrays = random_inputs(PASSES["forward"], SIZES[2])
    for arch in (75, 80, 89, 100, 120):
        monkeypatch.setattr(conv2d_launch, "architecture", lambda device, arch=arch: arch)
        for rung in (9, 10, 11):
            message = f"rung {rung} is for float32 on sm_90 only, got float32 on sm_{arch}"
            with pytest.raises(ValueError, match=message):
                run(PASSES["forward"], SIZES[2], arrays, rung=rung)
    large = problem((64, 32, 32, 128), (256, 5, 5, 128), 2, "same")
    for arch in (80, 90, 100):
        for precision in ROUNDED:
            assert choose_rung(large, "float32", arch, precision) < 9


def test_which_rung_and_tile():
    large, image = (
        problem((64, 32, 32, 128), (256, 5, 5, 128), 2, "same"),
        problem((64, 64, 64, 3), (64, 5, 5, 3), 2, "same"),
    )
    assert choose_rung(large, "float64", 90, "tf32") == 3
    assert choose_rung(large, "float32", 90, "tf32") == 6
    assert choose_rung(large, "float32", 90) == 5
    assert [choose_rung(large, "float32", 90, precision) for precision in ("bf16", "fp16")] == [7, 8]
    assert choose_rung(large, "float64", 90, "bf16") == 3
    assert choose_rung(large, "float32", 75, "tf32") == 4
    assert choose_rung(image, "float32", 90) == 4
    for rung in (4, 5, 6):
        assert choose_tile(rung, 64 * 16 * 16, 256, (4, 4))[0].bm == 128
        assert choose_tile(rung, 64 * 16 * 16, 256, (4, 1))[0].bm == 64  # its 128 has no narrow loads
        assert choose_tile(rung, 64, 256, (4, 4))[0].bm == 64  # too few blocks
    for rung in (7, 8, 9, 10):
        assert choose_tile(rung, 64 * 16 * 16, 256, (8, 8))[0].bm == 128
        assert choose_tile(rung, 64 * 16 * 16, 256, (8, 4)) == (RUNGS[rung].tiles[0], (8, 4))
        assert choose_tile(rung, 64, 256, (8, 8))[0].bm == 64
    for rung, vectors in ((9, (8, 8)), (10, (8, 8)), (11, (4, 1))):
        wide, square = RUNGS[rung].tiles[1:]
        assert choose_tile(rung, 64 * 32 * 32, 256, vectors)[0] == wide
        assert choose_tile(rung, 64 * 32 * 32, 128, vectors)[0] == square  # half of a wide one were in vain
        assert choose_tile(rung, 64 * 16 * 16, 256, vectors)[0] == square
        # 26 tiles of a weight gradient, and slices of 4 tiles of the depth: enough blocks if there are 10 slices
        assert choose_tile(rung, 26 * 128, 256, vectors, depth=10 * 4 * wide.bk)[0] == wide
        assert choose_tile(rung, 26 * 128, 128, vectors, depth=10 * 4 * wide.bk)[0] == square
        assert choose_tile(rung, 26 * 128, 256, vectors)[0] == RUNGS[rung].tiles[0]
    assert choose_tile(4, 64 * 64 * 64, 3, (4, 1)) == (RUNGS[4].tiles[2], (4, 1))


def test_every_variant_is_used():
    """What --check compiles is what can be chosen, and the other way round."""
    used = {}
    for rung, spec in RUNGS.items():
        chosen = [{"REAL": conv2d_ladder.C_TYPES[dtype]} for dtype in spec.dtypes]
        if rung >= 4:
            chosen = [{**t.macros, "VECTOR_A": a, "VECTOR_B": b} for t in spec.tiles for a, b in t.vectors]
        used.setdefault(spec.source, set()).update(" ".join(f"{n}={c[n]}" for n in sorted(c)) for c in chosen)
    for source, variants in used.items():
        assert {str(v) for v in load(f"conv2d/{source}").variants} == variants
        (elu,) = {spec.elu for spec in RUNGS.values() if spec.source == source}
        assert load(f"conv2d/{source}").options == ((("ELU", "1"),) if elu else ())


def test_launches_ask_for_the_shared_memory_that_the_sources_declare():
    along_depth = {"conv2d_forward": (True, True), "conv2d_input_grad": (True, False)}
    along_depth |= {f"{kernel}_moments": both for kernel, both in along_depth.items()}
    for rung in range(5, max(RUNGS) + 1):
        source = load(f"conv2d/{RUNGS[rung].source}")
        for tile in RUNGS[rung].tiles:
            variant = source.variant({**tile.macros, "VECTOR_A": tile.vectors[0][0], "VECTOR_B": tile.vectors[0][1]})
            kernels = [name for name in source.kernels if name.startswith("conv2d_")]
            assert len(kernels) == (5 if tile.part_rows else 3)
            for kernel in kernels:
                asked = conv2d_ladder.shared_bytes(tile, *along_depth.get(kernel, (False, False)))
                assert asked == source.dynamic_shared[kernel].of(variant) > 0


def test_tiles_say_what_the_kernels_have():
    """A block of another size than the kernel's own is refused."""
    g = SIZES[2]
    x, w = random_inputs(PASSES["forward"], g, bias=False)
    y = guarded(g.y_shape, np.float32)
    tile = RUNGS[6].tiles[0]
    macros = {**tile.macros, "VECTOR_A": 4, "VECTOR_B": 4}
    with pytest.raises(KernelError, match=r"512 threads|__launch_bounds__"):
        launch(
            "conv2d/6_tensor_cores_tf32.cu",
            "conv2d_forward",
            (1, 1),
            tile.threads * 2,
            [x, w, None, y, vars(g) | {"slope": 1.0}],
            device="emulated",
            macros=macros,
            shared_bytes=conv2d_ladder.shared_bytes(tile, True, True),
        )


def test_division_by_multiplication(tmp_path):
    source = tmp_path / "divide.cu"
    source.write_text(
        '#include "common.cuh"\n#include "conv2d/geometry.cuh"\n'
        'extern "C" __global__ void divide(const int* n, const int* d, int* quotient, int count) {\n'
        "  const long long i = grid_thread();\n  if (i < count) quotient[i] = Divider(d[i]).quotient(n[i]);\n}\n"
    )
    rng = np.random.default_rng(0)
    divisors = [
        *range(1, 130),
        2**30 - 1,
        2**30,
        2**30 + 1,
        2**31 - 1,
        *(2 ** rng.uniform(0, 31, 200)).astype(int).tolist(),
    ]
    n, d = [], []
    for divisor in divisors:
        near = [k * divisor + e for k in (0, 1, 2, 3, 1000, (2**31 - 1) // divisor) for e in (-1, 0, 1)]
        near += [2**31 - 1, 2**31 - 2, *rng.integers(0, 2**31, 20).tolist()]
        near = [value for value in near if 0 <= value < 2**31]
        n += near
        d += [divisor] * len(near)
    n, d = np.array(n, np.int32), np.array(d, np.int32)
    quotient = np.full(n.size, -1, np.int32)
    launch(source, "divide", -(-n.size // 256), 256, [n, d, quotient, n.size], device="emulated")
    np.testing.assert_array_equal(quotient, n // d)


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(backend.cuda_problem() is not None, reason=str(backend.cuda_problem()))
@passes
@tiles
def test_on_cuda(rung, tile, name, monkeypatch):
    """Tensor cores add with less care than float additions, so all their sums may be off as rounded products are."""
    monkeypatch.undo()  # no NumPy workspaces
    if not RUNGS[rung].supports(conv2d_launch.architecture("cuda")):
        pytest.skip(f"rung {rung} is for GPUs {RUNGS[rung].architectures}")
    what = PASSES[name]
    for g in SIZES:
        if fits(name, g, rung, tile):
            arrays = random_inputs(what, g)
            there = [backend.to_device(a, "cuda") for a in arrays]
            results = [
                backend.to_numpy(what.run("cuda", *there[:2], g, *there[2:], **forced(rung, tile))) for _ in range(2)
            ]
            np.testing.assert_array_equal(*results)
            if RUNGS[rung].precision == "float32":
                assert_right(what, g, arrays, results[0])
            else:
                wide = [a.astype(np.float64) for a in arrays]
                size = np.sqrt(what.reference(g, *(a**2 for a in wide)))
                assert np.all(np.abs(results[0] - what.reference(g, *wide)) <= 5 * UNIT[RUNGS[rung].precision] * size)
