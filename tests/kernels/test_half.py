"""Tensors that are kept in 16 bits: every kernel besides convolution that reads or writes such.

A kernel that reads 16 bits has to give what it gives for the same values in float32, and one that writes them that
result, rounded to nearest even: to the last bit, as nothing else differs.
"""

from typing import Any

import numpy as np
import pytest
from leaf_checks import assert_within, eps, fenced, narrow, random_half, run, same, wide
from test_pooling import WINDOWS, reference

from minigan import half
from minigan.ops import batch_norm as norm
from minigan.ops import elu, leaky_relu, max_pool2d, upsample_nearest2d
from minigan.ops.column_sums import column_sums

precisions = pytest.mark.parametrize("precision", ["bf16", "fp16"])
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # half of the last place of 1, the most that a rounding is off relatively


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
    condition, x = random_half((count,), precision, 0), random_half((count,), precision, 1)
    condition[:4] = narrow(np.array([0.0, -0.0, np.inf, -1.0]), precision)
    x[1] = narrow(np.array([-np.inf]), precision)[0]
    y = run(lambda: leaky_relu.scale_negative("emulated", condition, x, slope))
    same([y], [narrow(leaky_relu.scale_negative("emulated", wide(condition), wide(x), slope), precision)])
    x[2] = x[3] = narrow(np.array([np.inf]), precision)[0] + 1  # a NaN: the next bit pattern, or inf + 1
    x.view(np.uint16)[2:4] |= 1
    y = leaky_relu.scale_negative("emulated", condition, x, slope)
    assert np.isnan(wide(y)[2:4]).all()
    assert np.isfinite(wide(y)[4:]).all()


@precisions
@pytest.mark.parametrize("count", [8, 2056, 2048])
def test_elu(precision: str, count: int) -> None:
    """As float32, rounded; so within half a unit of the last place, and what float32 does, of the exact values."""
    x, gy = random_half((count,), precision, 0), random_half((count,), precision, 1)
    x[:6] = narrow(np.array([0.0, -0.0, np.inf, -np.inf, 1e-4, -1e-4]), precision)
    y = run(lambda: elu.elu_forward("emulated", x, 0.7))
    same([y], [narrow(elu.elu_forward("emulated", wide(x), 0.7), precision)])
    gx = run(lambda: elu.elu_grad("emulated", y, gy, 0.7))
    same([gx], [narrow(elu.elu_grad("emulated", wide(y), wide(gy), 0.7), precision)])
    finite = np.isfinite(wide(x))
    exact = wide(x).astype(np.float64)[finite]
    exact = np.where(exact > 0, exact, float(np.float32(0.7)) * np.expm1(exact))
    smallest = {"bf16": 2.0**-134, "fp16": 2.0**-25}[precision]  # half of what denormal numbers are a multiple of
    allowed = (UNIT[precision] + 4 * eps("float32")) * np.abs(exact) + smallest
    assert_within(wide(y)[finite], exact, allowed)
    assert wide(y)[2] == np.inf
    assert abs(wide(y)[3] + 0.7) <= UNIT[precision]


@precisions
def test_elu_of_nan(precision: str) -> None:
    x, one = random_half((16,), precision, 0), random_half((16,), precision, 1)
    x.view(np.uint16)[3::5] = 0x7FFF  # in either format
    for result in (elu.elu_forward("emulated", x, 1.0), elu.elu_grad("emulated", x, one, 1.0)):
        assert np.isnan(wide(result)).nonzero()[0].tolist() == [3, 8, 13]
    assert np.isnan(wide(elu.elu_grad("emulated", one, x, 1.0))).nonzero()[0].tolist() == [3, 8, 13]


@precisions
def test_a_gradient_in_float32_of_a_result_in_16_bits(precision: str) -> None:
    """And the other way around: it is computed with the same values, in float32."""
    y, gy = random_half((3, 8), precision, 0), random_half((3, 8), precision, 1)
    expected = elu.elu_grad("emulated", wide(y), wide(gy), 1.0)
    same([elu.elu_grad("emulated", y, wide(gy), 1.0), elu.elu_grad("emulated", wide(y), gy, 1.0)], [expected] * 2)


@precisions
@pytest.mark.parametrize(
    ("shape", "scale"), [((1, 1, 1, 8), 2), ((2, 3, 5, 24), 2), ((1, 4, 1, 40), 3), ((3, 1, 19, 8), 1)]
)
def test_upsampling(shape: tuple[int, ...], scale: int, precision: str) -> None:
    x = random_half(shape, precision, 0)
    x.reshape(-1).view(np.uint16)[3] = 0x7FFF  # a NaN stays, and stays where it is
    y = run(lambda: upsample_nearest2d.upsample("emulated", x, scale))
    same([y], [x.repeat(scale, 1).repeat(scale, 2)])
    gy = random_half(y.shape, precision, 1)
    gx = run(lambda: upsample_nearest2d.sum_blocks("emulated", gy, scale))
    same([gx], [narrow(upsample_nearest2d.sum_blocks("emulated", wide(gy), scale), precision)])
    moved = np.empty(x.size + 1, x.dtype)[1:].reshape(shape)  # beside a vector
    moved[...] = x
    same([upsample_nearest2d.upsample("emulated", moved, scale)], [y])


@precisions
@pytest.mark.parametrize(
    ("shape", "windows"), [((*x[:3], c), w) for (x, w), c in zip(WINDOWS, [8, 24, 40, 8, 16, 8, 8], strict=True)]
)
def test_pooling(shape: tuple[int, ...], windows: Any, precision: str) -> None:
    """In 16 bits more numbers are equal: of them the first one wins."""
    x = random_half(shape, precision, 0)
    x.reshape(-1).view(np.uint16)[5::97] = 0x7FFF
    y, index = run(lambda: max_pool2d.max_pool_forward("emulated", x, windows))
    expected, places = reference(wide(x), windows)
    np.testing.assert_array_equal(wide(y), expected)
    same([y[~np.isnan(expected)]], [narrow(expected, precision)[~np.isnan(expected)]])
    single = ~np.isnan(expected)  # of several NaN the last one wins, as in float32
    np.testing.assert_array_equal(index[single], places[single])
    np.testing.assert_array_equal(index, max_pool2d.max_pool_forward("emulated", wide(x), windows)[1])
    gy = random_half(y.shape, precision, 1)
    index = fenced(index)
    gx = run(lambda: max_pool2d.scatter("emulated", gy, index, shape[1:3], windows))
    same([gx], [narrow(max_pool2d.scatter("emulated", wide(gy), index, shape[1:3], windows), precision)])


@precisions
@pytest.mark.parametrize("shape", [(5, 8), (1025, 8), (300, 72), (70, 2056), (33, 1032)])
def test_column_sums(precision: str, shape: tuple[int, int]) -> None:
    x = random_half(shape, precision, 0)
    same([run(lambda: column_sums("emulated", x, 3.0))], [column_sums("emulated", wide(x), 3.0)])


@precisions
@pytest.mark.parametrize("gy_too", [True, False])
@pytest.mark.parametrize("slope", [1.0, 0.2])
@pytest.mark.parametrize(("shape", "groups"), [((2, 3, 11, 8), 1), ((300, 72), 2), ((63, 40), 3), ((1025, 8), 1)])
def test_batch_norm(shape: tuple[int, ...], groups: int, slope: float, gy_too: bool, precision: str) -> None:
    rng = np.random.default_rng(len(shape))
    x, gy = random_half(shape, precision, 0), random_half(shape, precision, 1)
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
    x, gamma = random_half((37, 24), precision, 0), np.linspace(-2, 2, 24, dtype=np.float32)
    average, _, inverse, _ = norm.statistics("emulated", x, gamma, 1e-5)

    def gradients(x: np.ndarray, gy: np.ndarray) -> Any:
        return norm.batch_norm_gradients("emulated", x, gamma, average, inverse, gy, gamma, 0.2, False)

    other = random_half((37, 24), {"bf16": "fp16", "fp16": "bf16"}[precision], 1)
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
