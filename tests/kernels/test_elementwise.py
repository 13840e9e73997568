"""leaky_relu.cu, elu.cu, elementwise.cu and losses.cu against float64."""

from unittest import mock

import numpy as np
import pytest
from leaf_checks import DTYPES, SIZES, assert_within, check_counters, eps, fenced, run, strided, transposed

import minigan as mg
import minigan.functional as F
from minigan.ops import losses, losses_cuda
from minigan.ops.elu import elu_forward, elu_grad
from minigan.ops.leaky_relu import scale_negative
from minigan.ops.losses import logistic_loss
from minigan.ops.matmul import add_bias
from minigan.ops.sigmoid import sigmoid_forward, tanh_grad


def numbers(size, dtype, seed=0, scale=1.0):
    return fenced((scale * np.random.default_rng(seed).standard_normal(size)).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_scale_negative(size, dtype):
    condition, x = numbers(size, dtype), numbers(size, dtype, 1)
    condition[size // 2] = 0  # not positive
    y = run(lambda: scale_negative("emulated", condition, x, 0.25))
    np.testing.assert_array_equal(y, np.where(condition > 0, x, x * x.dtype.type(0.25)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_elu(size, dtype):
    """Relative to the result, also for x near 0, where e^x - 1 cancels."""
    x = numbers(size, dtype) * 10.0 ** numbers(size, dtype, 2).astype(int)
    x = x.astype(dtype)
    y = run(lambda: elu_forward("emulated", x, 0.7))
    exact = x.astype(np.float64)
    expected = np.where(exact > 0, exact, float(x.dtype.type(0.7)) * np.expm1(exact))
    assert_within(y, expected, 4 * eps(dtype) * np.abs(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_elu_gradient(size, dtype):
    y, gy = np.maximum(numbers(size, dtype), -0.7), numbers(size, dtype, 1)
    y[0] = 0  # alpha's side: both one-sided derivatives are equal for alpha = 1 alone
    gx = run(lambda: elu_grad("emulated", y, gy, 0.7))
    expected = np.where(y > 0, gy, gy.astype(np.float64) * (y.astype(np.float64) + 0.7))
    assert_within(gx, expected, 4 * eps(dtype) * np.abs(gy))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sigmoid(size, dtype):
    """Relative to the result, also where it is tiny: e^x is off by as many roundings as x has in itself."""
    x = numbers(size, dtype, scale=9)
    y = run(lambda: sigmoid_forward("emulated", x))
    exact = x.astype(np.float64)
    expected = np.exp(-np.logaddexp(0, -exact))
    assert_within(y, expected, (4 + np.abs(exact)) * eps(dtype) * expected)


def test_sigmoid_of_extreme_numbers():
    y = sigmoid_forward("emulated", np.array([1e30, -1e30, np.inf, -np.inf, np.nan, 0], np.float32))
    np.testing.assert_array_equal(y, np.array([1, 0, 1, 0, np.nan, 0.5], np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_tanh_gradient(size, dtype):
    y, gy = np.tanh(numbers(size, dtype)), numbers(size, dtype, 1)
    gx = run(lambda: tanh_grad("emulated", y, gy))
    assert_within(gx, gy * (1 - y.astype(np.float64) ** 2), 3 * eps(dtype) * np.abs(gy))


@pytest.mark.parametrize("slope", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (33, 1), (7, 19), (5, 257), (64, 64)])
def test_add_bias(shape, dtype, slope):
    product, bias = numbers(shape, dtype), numbers(shape[1], dtype, 1)
    bias[0] = -product[0, 0]  # 0 is not positive
    y = run(lambda: add_bias("emulated", fenced(product), bias, slope))
    total = product + bias
    np.testing.assert_array_equal(y, np.where(total > 0, total, total * total.dtype.type(slope)))


def test_add_bias_of_infinities_and_nan():
    y = np.array([[np.inf, -np.inf, np.nan]], np.float32)
    bias = np.ones(3, np.float32)
    for slope, expected in ((1.0, [np.inf, -np.inf, np.nan]), (0.0, [np.inf, 0, np.nan])):
        np.testing.assert_array_equal(add_bias("emulated", y.copy(), bias, slope), np.array([expected], np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_logistic_loss(size, dtype):
    z, t = numbers(size, dtype, scale=8), np.abs(numbers(size, dtype, 1)) % 1
    y = run(lambda: logistic_loss("emulated", z, t))
    exact, target = z.astype(np.float64), t.astype(np.float64)
    expected = np.logaddexp(0, exact) - exact * target
    assert_within(y, expected, 4 * eps(dtype) * (1 + np.abs(exact)))


def test_logistic_loss_of_extreme_logits():
    z, t = np.array([1e30, -1e30, 1e30, -200, np.nan, 0], np.float32), np.array([1, 0, 0, 0, 0, 0.5], np.float32)
    y = run(lambda: logistic_loss("emulated", z, t))
    np.testing.assert_allclose(y, np.array([0, 0, 1e30, 0, np.nan, np.log(2)], np.float32), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "blocks"), [(1, 1), (19, 1), (33, 2), (257, 1), (1025, 3), (4097, 19), (70001, 257)])
def test_mean_losses(size, blocks, dtype):
    """The sums are double, so a float mean is off by the rounding of its terms and its own."""
    a, b = numbers(size, dtype, scale=3), np.abs(numbers(size, dtype, 1)) % 1
    exact, target = a.astype(np.float64), b.astype(np.float64)
    with mock.patch.object(losses_cuda, "BLOCKS", blocks):
        logistic = run(lambda: losses.mean_logistic("emulated", a, b))
        l1 = run(lambda: losses.mean_l1("emulated", a, b))
    terms = np.logaddexp(0, exact) - exact * target
    assert_within(logistic, np.array(terms.mean()), 4 * eps(dtype) * (1 + np.abs(exact).mean()))
    assert_within(l1, np.array(np.abs(exact - target).mean()), 2 * eps(dtype) * (1 + np.abs(exact).mean()))
    check_counters()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_is_the_target_of_all(dtype):
    z, gy = numbers(111, dtype, scale=8), np.array([-1.5], dtype)
    number = np.dtype(dtype).type(0.3)
    for function, arguments in (
        (losses.logistic_loss, ()),
        (losses.mean_logistic, ()),
        (losses.mean_logistic_gradient, (gy,)),
    ):
        one = run(lambda f=function, more=arguments: f("emulated", z, number, *more))
        full = np.full(z.shape, number)
        np.testing.assert_array_equal(one, function("emulated", z, full, *arguments))
        assert_within(one, function("cpu", z, number, *arguments), 4 * eps(dtype) * (1 + np.abs(z).max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_mean_losses(size, dtype):
    a, b, gy = numbers(size, dtype, scale=8), np.abs(numbers(size, dtype, 1)) % 1, np.array([-1.5], dtype)
    a[0] = b[0]
    exact, target = a.astype(np.float64), b.astype(np.float64)
    gz = run(lambda: losses.mean_logistic_gradient("emulated", a, b, gy))
    assert_within(gz, -1.5 / size * (1 / (1 + np.exp(-exact)) - target), 8 * eps(dtype) / size)
    ga = run(lambda: losses.mean_l1_gradient("emulated", a, b, gy))
    assert_within(ga, -1.5 / size * np.sign(exact - target), 2 * eps(dtype) / size)


def test_nan_stays():
    x = np.array([np.nan, 1, -1], np.float32)
    one = np.ones(3, np.float32)
    for result in (
        sigmoid_forward("emulated", x),
        tanh_grad("emulated", x, one),
        tanh_grad("emulated", one / 2, x),
        add_bias("emulated", x.copy()[None], one, 0.0)[0],
        scale_negative("emulated", x, x, 0.2),
        elu_forward("emulated", x, 1.0),
        logistic_loss("emulated", x, one),
        losses.mean_logistic_gradient("emulated", x, one, one[:1]),
        losses.mean_l1_gradient("emulated", x, one, one[:1]),
    ):
        assert np.isnan(result).tolist() == [True, False, False]


def test_infinities():
    x = np.array([np.inf, -np.inf], np.float32)
    assert scale_negative("emulated", x, x, 0.2).tolist() == [np.inf, -np.inf]
    assert scale_negative("emulated", x, x, 0.0).tolist() == [np.inf, 0]
    assert elu_forward("emulated", x, 0.5).tolist() == [np.inf, -0.5]


@pytest.mark.parametrize("layout", [strided, transposed, lambda a: a[::-1].copy()[::-1]])
def test_ops_take_any_layout(layout):
    """Inputs and cotangents that are not contiguous, and arrays without dimensions or elements."""
    rng = np.random.default_rng(3)
    for shape in ((7, 19), (), (0, 3)):
        a = np.asarray(rng.standard_normal(shape))
        t, gy = np.abs(np.asarray(rng.standard_normal(shape))) % 1, np.asarray(rng.standard_normal(shape))
        for function in (F.leaky_relu, F.elu, F.tanh, F.sigmoid):
            found = []
            for device, change in (("cpu", np.asarray), ("emulated", layout if shape else np.asarray)):
                x = mg.tensor(change(a), requires_grad=True, device=device)
                y = function(x)
                y.backward(change(gy))
                found.append((y.numpy(), x.grad.numpy()))
            for ours, theirs in zip(*found, strict=True):
                assert_within(ours, theirs, 1e-15)
        if a.size:
            z = mg.tensor(layout(a) if shape else a, requires_grad=True, device="emulated")
            target = mg.tensor(layout(t) if shape else t, device="emulated")
            loss = F.binary_cross_entropy_with_logits(z, target)
            assert_within(loss.numpy(), (np.logaddexp(0, a) - a * t).mean(), 1e-14)
