"""Winograd's filtering on the CPU: its matrices, the three primitives, which layers take it, and its errors."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_compare import assert_close, assert_same, rounding

import minigan as mg
import minigan.functional as F
from minigan import cpu
from minigan.ops import conv2d_cpu, conv2d_im2col, conv2d_winograd, geometry, winograd
from minigan.ops.conv2d import Conv2d, Conv2dInputGrad, Conv2dWeightGrad
from minigan.ops.geometry import Geometry

# The layers of the five systems and the derivation of the error are the benchmarks', the presets are the examples'.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import began_faces
import convolutions as conv
import dcgan_anime
import dcgan_cats
import dcgan_simpsons
import gan_maxpool
import layers

PRESETS = {
    "cats": dcgan_cats.PRESETS,
    "simpsons": dcgan_simpsons.PRESETS,
    "anime": dcgan_anime.PRESETS,
    "maxpool": gan_maxpool.PRESETS,
    "began": began_faces.PRESETS,
}
TAPS = sorted(winograd.POINTS)
UNIT = 2.0**-24  # float32's rounding, at most


def draw(g: Geometry, dtype: str = "float64", seed: int = 0) -> dict[str, np.ndarray]:
    """x, w, gy, and biases for the outputs (bk) and for the inputs (bc)."""
    rng = np.random.default_rng(seed)
    shapes = {"x": g.x_shape, "w": g.w_shape, "gy": g.y_shape, "bk": (g.k,), "bc": (g.c,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def all_three(g: Geometry, a: dict[str, np.ndarray], leaf: Any = conv2d_winograd) -> list[np.ndarray]:
    forward, input_grad = leaf.forward(a["x"], a["w"], g, a["bk"]), leaf.input_grad(a["gy"], a["w"], g, a["bc"])
    return [forward, input_grad, leaf.weight_grad(a["x"], a["gy"], g)]


def references(g: Geometry, a: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [
        Conv2d.reference(a["x"], a["w"], a["bk"], geometry=g),
        Conv2dInputGrad.reference(a["gy"], a["w"], a["bc"], geometry=g),
        Conv2dWeightGrad.reference(a["x"], a["gy"], geometry=g),
    ]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the number of threads: threads(3)."""

    def use(count: int) -> None:
        monkeypatch.setenv("MINIGAN_NUM_THREADS", str(count))
        cpu._team_of.cache_clear()

    yield use
    cpu._team_of.cache_clear()


# ---- the matrices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", TAPS)
def test_as_many_multiplications_as_points(taps: int) -> None:
    """The module's arithmetic: n = 4 + r - 1 points, so 36 multiplications instead of 144 for 4 x 4 outputs, r = 3."""
    t = winograd.transform(taps, np.dtype(np.float64))
    assert t.points == winograd.TILE + taps - 1 == len(set(winograd.POINTS[taps])) + 1
    if taps == 3:
        assert (t.points**2, winograd.TILE**2 * taps**2) == (36, 144)


@pytest.mark.parametrize("taps", TAPS)
def test_the_matrices_of_the_data_are_exact_in_float32(taps: int) -> None:
    single, double = (winograd.transform(taps, np.dtype(dtype)) for dtype in (np.float32, np.float64))
    for name in ("input", "gradient", "output"):
        assert np.array_equal(getattr(single, name).coefficients, getattr(double, name).coefficients), name
    # G is not, which the derivation of the error counts.
    assert np.abs(single.filter.coefficients - double.filter.coefficients).max() > 0
    for name in ("input", "filter", "gradient", "output"):
        assert getattr(single, name).coefficients.dtype == np.float32
        assert getattr(single, name).coefficients.shape[1] in (4, 6)  # what _combine takes


@pytest.mark.parametrize("taps", TAPS)
def test_the_products_of_the_values_are_correlations(taps: int) -> None:
    b, g, a = conv.winograd_matrices(taps)
    t = winograd.transform(taps, np.dtype(np.float64))
    rng = np.random.default_rng(taps)
    for _ in range(20):
        d, w, y = rng.standard_normal(t.points), rng.standard_normal(taps), rng.standard_normal(winograd.TILE)
        windows = np.lib.stride_tricks.sliding_window_view(d, taps)  # (4, taps)
        assert_close(a.T @ ((g @ w) * (b @ d)), windows @ w, 1e-14)  # forward
        assert_close(g.T @ ((a @ y) * (b @ d)), windows.T @ y, 1e-14)  # weight gradient
    for matrix, expected in ((t.filter_gradient, g.T), (t.output, a.T)):
        dense = np.zeros(expected.shape)
        for row, columns, values in zip(dense, matrix.columns, matrix.coefficients, strict=True):
            np.add.at(row, columns, values)
        assert_same(dense, expected)


@pytest.mark.parametrize(
    ("r", "stride", "size"),
    [(2, 1, 2), (3, 1, 3), (4, 1, 2), (5, 1, 3), (6, 1, 3), (2, 2, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (6, 2, 3)],
)
def test_taps_are_cut_into_groups(r: int, stride: int, size: int) -> None:
    """Into those that take fewer multiplications; each tap is in one group, at the pixel that it reads."""
    assert winograd.group_size(r, stride) == size
    for pad in range(4):
        groups = winograd.read_groups(size, r, stride, pad)
        placed = [(t, offset + stride * i) for offset, taps in zip(groups.offsets, groups.taps, strict=True)
                  for i, t in enumerate(taps) if t >= 0]  # fmt: skip
        assert sorted(placed) == [(t, t - pad) for t in range(r)]


# ---- the three primitives against their references, by every way ---------------------------------------------------

PADDINGS: list[Any] = ["same", "valid", 1, ((0, 2), (3, 1)), ((5, 4), (7, 6))]
# Odd sizes, which leave part of a tile; one image, one channel; channels that are no multiple of anything.
SIZES = [(1, 9, 7, 1, 1), (2, 6, 11, 3, 5), (1, 13, 8, 37, 19), (3, 7, 6, 5, 45)]


def geometries(r: int, stride: int) -> list[Geometry]:
    return [
        geometry.convolution("test", (n, h, w, c), (k, r, r, c), stride, padding)
        for n, h, w, c, k in SIZES
        for padding in PADDINGS
    ]


SMALL_PARTS = {"PART_BYTES": 0, "PART_CHANNELS": 1, "LEAST_CHANNELS": 7}
# The module's constants that lead each way.
WAYS: dict[str, dict[str, int]] = {
    "one block": {"FEW_TILES": 0, "FILTER_BYTES": 1 << 60, "BLOCK_TILES": 1 << 30, "INPUT_BYTES": 1 << 60},
    "a block for each row of tiles": {"FEW_TILES": 0, "FILTER_BYTES": 1 << 60, "BLOCK_TILES": 1, "BLOCK_BYTES": 0},
    "blocks of a few rows of tiles, and a rest": {
        "FEW_TILES": 0, "FILTER_BYTES": 1 << 60, "BLOCK_TILES": 5, "BLOCK_BYTES": 0, "INPUT_BYTES": 2880
    },
    "parts of channels, for few tiles": {"FEW_TILES": 1 << 30, **SMALL_PARTS},
    "parts of channels, for large filters": {"FEW_TILES": 0, "FILTER_BYTES": 0, **SMALL_PARTS},
    "as the constants are": {},
    "parts of the weight gradient": {"WIDE_CHANNELS": 7, "PART_BYTES": 0},
    "parts of its input": {"INPUT_BYTES": 0},
    "parts of both, all cut for the threads": {
        "INPUT_BYTES": 0, "WIDE_CHANNELS": 7, "VALUES_PER_THREAD": 1, **SMALL_PARTS
    },
}  # fmt: skip


class Spy:
    """What the leaf hands out: the items of each kind of work, and the most shares that `parallel` may make."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items: dict[str, list[int]] = {}
        self.shares = 0
        each, parallel = conv2d_winograd.parallel_each, conv2d_winograd.parallel

        def seen_each(work: Any, items: Any, *more: Any) -> None:
            self.items.setdefault(work.__name__, []).append(len(items))
            each(work, items, *more)

        def seen(kernel: Any, count: int, grain: int) -> None:
            self.shares = max(self.shares, count // grain)
            parallel(kernel, count, grain=grain)

        monkeypatch.setattr(conv2d_winograd, "parallel_each", seen_each)
        monkeypatch.setattr(conv2d_winograd, "parallel", seen)


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WAYS[way].items():
        monkeypatch.setattr(conv2d_winograd, name, value)


def test_each_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of tiles or parts of channels of y and gx, and products of the weight gradient; 2 x 2 rows of tiles."""
    g = geometry.convolution("test", (2, 8, 6, 37), (45, 3, 3, 37), 1, "same")
    found, shares = {}, {}
    for way in WAYS:
        with monkeypatch.context() as patch:
            take(way, patch)
            spy = Spy(patch)
            all_three(g, draw(g))
            [work] = set(spy.items) - {"multiply"}
            found[way] = work, spy.items[work], len(spy.items["multiply"])
            shares[way] = spy.shares
    assert found == {
        "one block": ("block", [1, 1], 1),
        "a block for each row of tiles": ("block", [4, 4], 1),
        "blocks of a few rows of tiles, and a rest": ("block", [2, 2], 4),
        "parts of channels, for few tiles": ("part", [7, 6], 1),
        "parts of channels, for large filters": ("part", [7, 6], 1),
        "as the constants are": ("part", [2, 2], 1),
        "parts of the weight gradient": ("part", [2, 2], 7),
        "parts of its input": ("part", [2, 2], 4),
        "parts of both, all cut for the threads": ("part", [7, 6], 28),
    }
    assert shares["as the constants are"] < 3 <= shares["parts of both, all cut for the threads"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("r", [2, 3, 4, 5, 6])
def test_primitives(r: int, stride: int, way: str, monkeypatch: pytest.MonkeyPatch, threads: Any) -> None:
    threads(3)
    take(way, monkeypatch)
    for g in geometries(r, stride):
        arrays = draw(g)
        before = {name: a.copy() for name, a in arrays.items()}
        for actual, expected in zip(all_three(g, arrays), references(g, arrays), strict=True):
            assert_close(actual, expected, rounding("float64"))
        for name, a in arrays.items():
            assert_same(a, before[name])


def test_rows_of_tiles_are_cut_without_a_rest() -> None:
    """Of 3 images of 17 x 9: 5 x 3 tiles each, 15 rows of them. In one part, or in an even number of like ones."""
    tiles = conv2d_winograd._Tiles(3, 17, 9)
    assert (tiles.h, tiles.w, len(tiles)) == (5, 3, 45)
    for count, expected in ((0, 15), (3, 15), (8, 8), (12, 4), (21, 4), (30, 2), (44, 2), (45, 1), (1000, 1)):
        parts = tiles.cut(count)
        assert [i for part in parts for i in part] == list(range(15))
        assert len(parts) == expected
        assert {len(part) for part in parts} <= {15 // expected, -(-15 // expected)}
    assert not conv2d_winograd._Tiles(0, 17, 9).cut(8)


def test_without_biases() -> None:
    g = geometry.convolution("test", (2, 7, 9, 3), (5, 5, 5, 3), 2, "same")
    a = draw(g)
    zero = references(g, a | {"bk": np.zeros(g.k), "bc": np.zeros(g.c)})
    assert_close(conv2d_winograd.forward(a["x"], a["w"], g), zero[0], rounding("float64"))
    assert_close(conv2d_winograd.input_grad(a["gy"], a["w"], g), zero[1], rounding("float64"))


@pytest.mark.parametrize("leaf", [conv2d_im2col, conv2d_winograd])
@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_leaky_relu_at_infinity(leaf: Any, slope: float) -> None:
    """A slope of 0 gives 0 for -infinity too, another -infinity; a NaN stays one. For three channels and for many."""
    for c in (3, 9):
        g = geometry.convolution("test", (1, 6, 6, c), (4, 2, 2, c), 1, "same")
        a = draw(g)
        for bias, expected in ((-np.inf, 0 if slope == 0 else -np.inf), (np.inf, np.inf)):
            assert (leaf.forward(a["x"], a["w"], g, np.full(g.k, bias), slope) == expected).all()
            assert (leaf.input_grad(a["gy"], a["w"], g, np.full(g.c, bias), slope) == expected).all()
        assert np.isnan(leaf.forward(a["x"], a["w"], g, np.full(g.k, np.nan), slope)).all()
        assert np.isnan(leaf.input_grad(a["gy"], a["w"], g, np.full(g.c, np.nan), slope)).all()


def test_the_geometries_lead_to_all_kinds_of_windows() -> None:
    """Strided input gradients read one window for all remainders, or one for each; groups may lack taps."""
    shared, missing = set(), set()
    for r in range(2, 7):
        for g in geometries(r, 2):
            offsets = [
                axis.offsets for axis in conv2d_winograd._cut(g, winograd.turned_groups, np.dtype(np.float32))[1:]
            ]
            shared.add(all(len(set(axis)) == 1 for axis in offsets))
            missing |= {
                -1 in taps
                for axis in conv2d_winograd._cut(g, winograd.turned_groups, np.dtype(np.float32))[1:]
                for taps in axis.taps
            }
    assert shared == missing == {True, False}


def test_larger_strides() -> None:
    """suits() takes any stride with up to three taps for each remainder."""
    for r, stride in ((2, 3), (4, 3), (7, 3), (9, 3), (5, 4)):
        for padding in ("same", "valid", 2):
            g = geometry.convolution("test", (2, 17, 14, 3), (4, r, r, 3), stride, padding)
            arrays = draw(g)
            for actual, expected in zip(all_three(g, arrays), references(g, arrays), strict=True):
                assert_close(actual, expected, rounding("float64"))


# ---- which layers take it ------------------------------------------------------------------------------------------

# One that suits, by blocks and by parts of channels, strides 1 and 2, in float32 and as the module's constants are.
SUITING = {
    "blocks, stride 1": geometry.convolution("test", (4, 33, 31, 40), (48, 3, 3, 40), 1, "same"),
    "blocks, stride 2": geometry.convolution("test", (5, 63, 62, 40), (48, 5, 5, 40), 2, "same"),
    "parts, stride 1": geometry.convolution("test", (7, 14, 15, 64), (100, 5, 5, 64), 1, "same"),
    "parts, stride 2": geometry.convolution("test", (5, 31, 29, 64), (90, 4, 4, 64), 2, "same"),
}
EACH_SUITING = pytest.mark.parametrize("name", SUITING)


@EACH_SUITING
def test_those_that_suit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do, and go the way that their name says."""
    g = SUITING[name]
    assert conv2d_winograd.suits(g)
    spy = Spy(monkeypatch)
    a = draw(g, "float32")
    conv2d_cpu.forward(a["x"], a["w"], g)
    assert list(spy.items) == ["block" if name.startswith("blocks") else "part"]
    assert spy.items.popitem()[1][0] > 1


@pytest.mark.parametrize(
    ("weight", "stride", "padding"),
    [
        ((64, 3, 2, 64), 1, 1),  # not square
        ((64, 3, 3, 64), (1, 2), 1),
        ((64, 1, 1, 64), 1, 0),
        ((64, 1, 1, 64), 2, 0),
        ((256, 9, 9, 64), 2, 4),  # more than three taps for a remainder
        ((64, 3, 3, 64), 40, 1),  # hardly any outputs
        ((8, 3, 3, 64), 1, 1),  # too little work to be worth the transforms
    ],
)
def test_what_does_not_suit_never_comes_to_the_leaf(
    weight: Any, stride: Any, padding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = geometry.convolution("test", (4, 32, 32, 64), weight, stride, padding)
    refuse_the_leaf(monkeypatch)
    assert not conv2d_winograd.suits(g)
    a = draw(g, "float32")
    for actual, expected in zip(all_three(g, a, conv2d_cpu), all_three(g, a, conv2d_im2col), strict=True):
        assert_same(actual, expected)


def refuse_the_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> None:
        raise AssertionError("Winograd's leaf was called")

    for name in conv.PASSES:
        monkeypatch.setattr(conv2d_winograd, name, wrong)


def test_empty_batches_do_not_suit() -> None:
    assert not conv2d_winograd.suits(replace(SUITING["blocks, stride 1"], n=0))


def test_float64_takes_im2col(monkeypatch: pytest.MonkeyPatch) -> None:
    g = SUITING["blocks, stride 1"]
    refuse_the_leaf(monkeypatch)
    for dtype in ("float64", "float32"):
        a = draw(g, dtype)
        x, w, b = (mg.tensor(a[name], requires_grad=True) for name in ("x", "w", "bk"))
        if dtype == "float64":
            y = F.conv2d(x, w, b, padding="same")
            y.backward(a["gy"])
            F.conv_transpose2d(mg.tensor(a["gy"]), w, padding="same")
            assert_same(w.grad, conv2d_im2col.weight_grad(a["x"], a["gy"], g))
        else:  # so that the above can fail
            with pytest.raises(AssertionError, match="was called"):
                F.conv2d(x, w, b, padding="same")


def ways(system: str, preset: str, batch: int | None = None) -> str:
    """The layers of a system that take Winograd's filtering: G1 G2 ... D1 ..."""
    settings = PRESETS[system][preset]
    sizes = {name: getattr(settings, name) for name in ("image_size", "base_channels")}
    found = layers.layers(system, batch or settings.batch_size, **sizes)
    return " ".join(f"{one.network}{one.number}" for one in found if conv2d_winograd.suits(one.geometry))


# Where the constants of `suits` are changed, this shows for which layers it matters.
TABLE: dict[tuple[str, str, int | None], str] = {
    ("cats", "paper", None): "G1 G2 G3 G4 D2 D3 D4 D5",
    ("cats", "paper", 2): "G2 G3 G4 D2 D3 D4",
    ("cats", "small", None): "G2 G3 G4 D2 D3 D4",
    ("simpsons", "paper", None): "G1 G2 G3 G4 D2 D3 D4 D5",
    ("simpsons", "paper", 2): "G2 G3 G4 D2 D3 D4",
    ("simpsons", "small", None): "G2 G3 G4 D2 D3 D4",
    ("anime", "paper", None): "G2 G3 G4 G5 D2 D3 D4",
    ("anime", "paper", 2): "G4 G5 D2",
    ("anime", "small", None): "G3 G4 G5 D2 D3",
    ("maxpool", "paper", None): "G2 G3 D2 D3",
    ("maxpool", "paper", 2): "G3 D2",
    ("maxpool", "small", None): "G2 G3 D2 D3",
    ("began", "paper", None): "G1 G2 G3 G4 G5 G6 G7 G8 D3 D5 D7 D8 D9 D10 D11 D12 D13 D14 D15 D16",
    ("began", "paper", 2): "G3 G4 G5 G6 G7 G8 D3 D5 D11 D12 D13 D14 D15 D16",
    ("began", "small", None): "G5 G6 G7 G8 D3 D5 D7 D8 D13 D14 D15 D16",
}


@pytest.mark.parametrize(("system", "preset", "batch"), TABLE)
def test_the_way_of_each_layer(system: str, preset: str, batch: int | None, threads: Any) -> None:
    for count in (1, 7):  # the rule does not depend on it
        threads(count)
        assert ways(system, preset, batch) == TABLE[system, preset, batch]


# ---- float32: errors -----------------------------------------------------------------------------------------------


@cache
def reduced_layers() -> dict[str, Geometry]:
    """Each geometry that takes it at the published batch size; one image."""
    found: dict[Geometry, str] = {}
    for system in layers.PUBLISHED_BATCH:
        for one in layers.layers(system):
            if conv2d_winograd.suits(one.geometry):
                found.setdefault(replace(one.geometry, n=1), one.name)
    return {name: g for g, name in found.items()}


CHANNELS = 16  # of the result: the sums of one do not depend on another


@pytest.mark.parametrize("name", conv.PASSES)
@pytest.mark.parametrize("layer", reduced_layers())
def test_errors_in_float32(layer: str, name: str) -> None:
    """The root of the mean square and the largest error are what the transforms' matrices say, and not far below.

    `winograd_error` derives them for outputs that read no padding, relative to their size s; the largest of so many
    errors is up to 24 times the standard deviation at a tile's worst place (see convolutions.py). They are compared
    with those of im2col, whose sums of n products err by sqrt(n / 6 + 1).
    """
    g = reduced_layers()[layer]
    drawn = conv.draw(g, seed=1)
    first, second = (drawn[one] for one in conv.READS[name])
    if name == "forward":
        g, second = replace(g, k=CHANNELS), second[:CHANNELS]
    else:
        second = np.ascontiguousarray(second[..., :CHANNELS])
        g = replace(g, c=CHANNELS) if name == "input_grad" else replace(g, k=CHANNELS)
    exact = conv.reference(g, name, first.astype(float), second.astype(float))
    size = np.sqrt(conv.reference(g, name, first.astype(float) ** 2, second.astype(float) ** 2)).max()
    errors = getattr(conv2d_winograd, name)(first, second, g) - exact
    plain = getattr(conv2d_im2col, name)(first, second, g) - exact

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt((values**2).mean())) / (size * UNIT)

    typical, worst = conv.winograd_error(g, name)
    assert typical / 16 < rms(errors) <= typical  # far below it only where most of what is read is padding
    assert np.abs(errors).max() <= 24 * worst * size * UNIT
    n = conv.longest_sum(g, name)
    assert rms(plain) <= (n / 6 + 1) ** 0.5
    assert rms(plain) < rms(errors)  # if not, the benchmarks need no tolerance of its own


@pytest.mark.parametrize("taps", TAPS)
def test_the_points_are_a_good_choice(taps: int) -> None:
    """No other half or whole number in the place of one of them makes the errors smaller by 15 %, as derived."""
    g = geometry.convolution("test", (1, 32, 32, 64), (64, taps, taps, 64), 1, "same")
    chosen = winograd.POINTS[taps]
    assert chosen[0] == 0
    errors = {}
    with pytest.MonkeyPatch.context() as patch:
        for i in range(1, len(chosen)):
            for point in (chosen[i], *(sign * n / 2 for n in range(1, 7) for sign in (1, -1))):
                points = (*chosen[:i], point, *chosen[i + 1 :])
                if len(set(points)) == len(points):
                    winograd.transform.cache_clear()
                    patch.setitem(winograd.POINTS, taps, points)
                    errors[points] = conv.winograd_error(g, "forward")[0]
    winograd.transform.cache_clear()
    assert len(errors) > 30
    assert errors[chosen] <= 1.15 * min(errors.values())


# ---- threads, layouts, memory, values that are not finite ----------------------------------------------------------


@EACH_SUITING
def test_results_do_not_depend_on_the_number_of_threads(name: str, threads: Any) -> None:
    g = SUITING[name]
    a = draw(g, "float32")
    threads(1)
    expected = all_three(g, a)
    for count in (1, 2, 3):
        threads(count)
        for _ in range(2):  # from run to run: which thread computes what is chance
            for actual, first in zip(all_three(g, a), expected, strict=True):
                assert_same(actual, first)


def in_layouts(a: np.ndarray) -> Iterator[np.ndarray]:
    """The same values as a Fortran array, as every second element among NaN, and backwards in memory."""
    yield np.asfortranarray(a)
    wide = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    every_second = wide[(slice(None, None, 2),) * a.ndim]
    every_second[...] = a
    yield every_second
    back = (slice(None, None, -1),) * a.ndim
    yield a[back].copy()[back]


@EACH_SUITING
def test_layouts(name: str) -> None:
    g = replace(SUITING[name], n=1)
    a = draw(g, "float32")
    expected = all_three(g, a)
    for key in a:
        for values in in_layouts(a[key]):
            for actual, first in zip(all_three(g, a | {key: values}), expected, strict=True):
                assert_same(actual, first)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_in_memory_is_not_read(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(way, monkeypatch)
    g = geometry.convolution("test", (2, 9, 7, 37), (45, 5, 5, 37), 2, "same")
    a = draw(g)
    expected = all_three(g, a)
    scratch = cpu.scratch

    def full_of_nan(*arguments: Any) -> np.ndarray:
        array = scratch(*arguments)
        array.fill(np.nan)
        return array

    monkeypatch.setattr(conv2d_winograd, "scratch", full_of_nan)
    with conv.poisoned("cpu"):  # results and all
        for actual, first in zip(all_three(g, a), expected, strict=True):
            assert_same(actual, first)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@EACH_SUITING
def test_a_value_that_is_not_finite_stays_in_the_tiles_that_read_it(name: str, value: float) -> None:
    """So in its image, and with other images every bit is as it was. Within those tiles inf may become NaN, and spread.

    The outputs that read it, as their definition says, are never finite.
    """
    g = replace(SUITING[name], n=3)
    a = draw(g, "float32")
    at = 1, g.h // 2, g.w // 3
    spoilt = a["x"].copy()
    spoilt[(*at, 5)] = value
    before, after = conv2d_winograd.forward(a["x"], a["w"], g), conv2d_winograd.forward(spoilt, a["w"], g)
    size = winograd.group_size(g.r, g.stride_h)
    reading = []  # for each axis: which outputs lie in tiles whose windows have the pixel
    for axis, position, outputs in zip(
        conv2d_winograd._cut(g, winograd.read_groups, np.dtype(np.float32))[1:], at[1:], (g.p, g.q), strict=True
    ):
        windows = {
            (position - offset) // g.stride_h - i
            for offset in axis.offsets
            for i in range(winograd.TILE + size - 1)
            if (position - offset) % g.stride_h == 0
        }
        firsts = {first for first in windows if first % winograd.TILE == 0}
        reading.append(np.array([p // winograd.TILE * winograd.TILE in firsts for p in range(outputs)]))
    tiles = np.outer(*reading)
    assert 0 < tiles.sum() < tiles.size / 3
    others = np.ones(g.y_shape, bool)
    others[1, tiles] = False
    assert_same(after[others], before[others])
    assert np.isfinite(before).all()
    indicator = np.zeros((1, g.h, g.w, 1))
    indicator[0, at[1], at[2]] = 1
    one = replace(g, n=1, c=1, k=1)
    reads = Conv2d.reference(indicator, np.ones(one.w_shape), geometry=one)[0, :, :, 0] > 0
    assert reads.sum() >= 4
    assert not np.isfinite(after[1, reads]).any()
    # The gradients: of its image alone, and of the weights of its channel alone.
    spoilt_gy = a["gy"].copy()
    spoilt_gy[1, 2, 3, 5] = value
    gx, gx_before = conv2d_winograd.input_grad(spoilt_gy, a["w"], g), conv2d_winograd.input_grad(a["gy"], a["w"], g)
    assert_same(gx[[0, 2]], gx_before[[0, 2]])
    assert not np.isfinite(gx[1]).all()
    gw, gw_before = conv2d_winograd.weight_grad(spoilt, a["gy"], g), conv2d_winograd.weight_grad(a["x"], a["gy"], g)
    kept = np.arange(g.c) != 5
    assert_same(gw[..., kept], gw_before[..., kept])
    for r in range(g.r):
        if (at[1] + g.top - r) % g.stride_h == 0 == (at[2] + g.left - r) % g.stride_w:  # that read it
            assert not np.isfinite(gw[:, r, r, 5]).any()
    gw = conv2d_winograd.weight_grad(a["x"], spoilt_gy, g)
    kept = np.arange(g.k) != 5
    assert_same(gw[kept], gw_before[kept])
    assert not np.isfinite(gw[5]).any()


# ---- derivatives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "stride", "padding"),
    [((5, 3, 3, 2), 1, "same"), ((3, 5, 5, 2), 2, "same"), ((4, 4, 4, 3), 2, 1), ((2, 5, 5, 3), 1, ((0, 3), (1, 2)))],
)
def test_gradcheck_with_this_leaf(weight: Any, stride: int, padding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d_cpu, "_way", lambda g, dtype: conv2d_winograd)
    spy = Spy(monkeypatch)
    rng = np.random.default_rng(3)
    k, _, _, c = weight
    w = mg.tensor(rng.standard_normal(weight), requires_grad=True)
    for channels, function in ((c, F.conv2d), (k, F.conv_transpose2d)):
        x = mg.tensor(rng.standard_normal((2, 7, 6, channels)), requires_grad=True)
        b = mg.tensor(rng.standard_normal(c + k - channels), requires_grad=True)
        assert mg.gradcheck(lambda *xs: function(*xs, stride, padding), [x, w, b], order=2)  # noqa: B023
    assert {"part", "multiply"} <= set(spy.items)


@EACH_SUITING
def test_second_derivatives_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of x, v and w's, and of gy's, of <v, gradient of x>: each is one primitive of given operands.

    So each may be off by what `winograd_error` says of that one, as the judge of the benchmarks allows it.
    """
    g = replace(SUITING[name], n=SUITING[name].n)
    drawn = conv.draw(g) | {"v": np.random.default_rng(9).standard_normal(g.x_shape, np.float32)}
    x, w = (mg.tensor(drawn[one], requires_grad=True) for one in ("x", "w"))
    gy = mg.tensor(drawn["gy"], requires_grad=True)
    monkeypatch.setattr(conv2d_im2col, "forward", None)  # nothing goes that way
    monkeypatch.setattr(conv2d_im2col, "input_grad", None)
    monkeypatch.setattr(conv2d_im2col, "weight_grad", None)
    padding = "same"
    gx = mg.grad(F.conv2d(x, w, None, g.stride_h, padding), [x], gy, create_graph=True)[0]
    found = mg.grad(gx, [w, gy], mg.tensor(drawn["v"]))
    given = drawn | {"x": drawn["v"]}
    for result, primitive in zip(found, ("weight_grad", "forward"), strict=True):
        judge = conv.judge(g, primitive, given)
        assert judge.worst(result.numpy(), conv.cpu_precision(g, primitive)) <= 1


def test_the_environment_can_do_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    g = geometry.convolution("test", (4, 32, 32, 32), (32, 3, 3, 32), 1, "same")
    assert conv2d_winograd.suits(g)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (g.x_shape, g.w_shape))
    faster, plain = conv2d_winograd.forward(x, w, g), conv2d_im2col.forward(x, w, g)
    assert np.any(faster != plain)
    for value, expected in (("1", faster), ("0", plain)):
        monkeypatch.setenv("MINIGAN_WINOGRAD", value)
        np.testing.assert_array_equal(conv2d_cpu.forward(x, w, g), expected)
    monkeypatch.setenv("MINIGAN_WINOGRAD", "no")
    with pytest.raises(ValueError, match="MINIGAN_WINOGRAD: expected 0 or 1, got 'no'"):
        conv2d_cpu.forward(x, w, g)
