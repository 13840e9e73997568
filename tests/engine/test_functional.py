"""The functions of the contract by their names, with the meaning that design.md gives them; gradient penalties."""

import re
from typing import Any

import numpy as np
import pytest
from engine_compare import assert_close, assert_one_line, assert_same, rounding

import minigan as mg
import minigan.functional as F

EXACT = rounding(np.float64)
SINGLE = rounding(np.float32)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch (the bench extra) is not installed")


def constant(values: Any, dtype: Any = np.float64) -> mg.Tensor:
    return mg.tensor(np.array(values, dtype))


def leaf(values: Any, dtype: Any = np.float64) -> mg.Tensor:
    return mg.tensor(np.array(values, dtype), requires_grad=True)


def test_every_name_of_the_contract_is_there() -> None:
    names = "conv2d conv_transpose2d conv2d_weight_grad linear batch_norm leaky_relu relu elu tanh sigmoid abs exp log"
    names += " sqrt sum mean reshape transpose concatenate pad max_pool2d upsample_nearest2d l1_loss matmul"
    names += " binary_cross_entropy_with_logits add subtract multiply divide power negate getitem broadcast_to"
    assert set(names.split()) <= set(F.__all__)
    for name in F.__all__:
        assert getattr(F, name).__doc__, name


# ---- batch norm ----------------------------------------------------------------------------------------------------


def batch(shape: tuple[int, ...], dtype: Any = np.float64, mean: float = 0.5, std: float = 2.0) -> np.ndarray:
    return (mean + std * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (3, 5, 4, 7), (2, 19, 33, 1), (64, 33, 33, 5)])
def test_batch_norm_is_pytorchs(shape: tuple[int, ...], training: bool, dtype: str, torch: Any) -> None:
    """Momentum is Keras's, one minus PyTorch's; both keep the unbiased variance."""
    c = shape[-1]
    rng = np.random.default_rng(1)
    x, gamma, beta = batch(shape, dtype), *(rng.uniform(0.5, 2, c).astype(dtype) for _ in range(2))
    mean, var = rng.standard_normal(c).astype(dtype), rng.uniform(0.5, 2, c).astype(dtype)
    ours = [mg.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    running, kept = [mg.tensor(a.copy()) for a in (mean, var)], [torch.tensor(a) for a in (mean, var)]
    y = F.batch_norm(*ours, *running, training=training, momentum=0.9, epsilon=1e-3)
    t = torch.nn.functional.batch_norm(
        theirs[0].movedim(-1, 1), *kept, *theirs[1:], training, momentum=0.1, eps=1e-3
    ).movedim(1, -1)
    # In float32 a channel's mean of up to 70,000 numbers about 2 adds to the rounding of each result.
    tolerance = 4 * rounding(dtype)
    assert_close(y, t, tolerance)
    for a, b, before in zip(running, kept, (mean, var), strict=True):
        assert_close(a, b, tolerance)
        assert np.array_equal(a.numpy(), before) != training
    gy = rng.standard_normal(shape).astype(dtype)
    y.backward(gy)
    t.backward(torch.tensor(gy))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.grad, b.grad, tolerance)


def test_batch_norm_by_hand() -> None:
    x = constant([[1.0, 10.0], [3.0, 30.0]])
    mean, var = constant([0.0, 100.0]), constant([1.0, 4.0])
    y = F.batch_norm(x, constant([1.0, 2.0]), constant([0.0, 5.0]), mean, var, momentum=0.75, epsilon=0.5)
    assert_close(y, [[-1 / 1.5**0.5, 5 - 20 / 100.5**0.5], [1 / 1.5**0.5, 5 + 20 / 100.5**0.5]], EXACT)
    # momentum * running + (1 - momentum) * batch; the unbiased variances are 2 and 200
    assert_close(mean, [0.5, 80.0], EXACT)
    assert_close(var, [0.75 + 0.5, 3 + 50.0], EXACT)
    y = F.batch_norm(x, constant([1.0, 2.0]), constant([0.0, 5.0]), mean, var, training=False, epsilon=0.5)
    assert_close(y.numpy()[0], [0.5 / 1.75**0.5, 5 - 140 / 53.5**0.5], EXACT)
    assert_close(mean, [0.5, 80.0], EXACT)


def test_batch_norm_defaults() -> None:
    x, one, zero = constant(batch((7, 3))), constant(np.ones(3)), constant(np.zeros(3))
    mean, var = constant(np.zeros(3)), constant(np.ones(3))
    y = F.batch_norm(x, one, zero, mean, var)
    a = x.numpy()
    assert_close(y, (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5), EXACT)
    assert_close(mean, 0.01 * a.mean(0), EXACT)
    assert_close(var, 0.99 + 0.01 * a.var(0, ddof=1), EXACT)


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("std", [1.0, 0.1])
def test_batch_norm_of_a_large_mean(channels: int, std: float) -> None:
    """float32, mean 1000: no more may be lost than by rounding the mean and the result.

    The mean has to be right to its last digit, 6e-5 (eps / 2 of 1000): 6e-5 / std in the result.
    """
    x = batch((32, 32, 32, channels), np.float32, mean=1000.0, std=std)
    y = F.batch_norm(mg.tensor(x), constant(np.ones(channels), np.float32), constant(np.zeros(channels), np.float32))
    exact = x.astype(np.float64)
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    difference = np.abs(y.numpy() - expected).max()
    assert difference <= 6e-5 / std + 1e-5, difference


def test_batch_norm_of_a_constant_channel() -> None:
    x = leaf(np.full((7, 3), 5.0), np.float32)
    y = F.batch_norm(x, constant(np.ones(3), np.float32), constant([1.0, 2.0, 3.0], np.float32))
    assert_close(y, np.tile(np.array([1.0, 2.0, 3.0]), (7, 1)), SINGLE)
    y.backward(np.ones((7, 3), np.float32))
    assert_close(x.grad, np.zeros((7, 3)), SINGLE)


def test_batch_norm_under_no_grad_updates_the_statistics_too() -> None:
    mean, var = constant(np.zeros(3)), constant(np.ones(3))
    with mg.no_grad():
        F.batch_norm(constant(batch((7, 3))), constant(np.ones(3)), constant(np.zeros(3)), mean, var)
    assert not np.array_equal(mean.numpy(), np.zeros(3))
    assert not np.array_equal(var.numpy(), np.ones(3))


def test_batch_norm_errors() -> None:
    x, one, zero = constant(batch((7, 3))), constant(np.ones(3)), constant(np.zeros(3))
    for call, words in (
        (lambda: F.batch_norm(x, constant(np.ones(2)), zero), (r"gamma of shape \(3,\)", r"got \(2,\)")),
        (lambda: F.batch_norm(x, one, constant(np.ones((1, 3)))), (r"beta of shape \(3,\)", r"got \(1, 3\)")),
        (lambda: F.batch_norm(x, one, zero, constant([0.0])), (r"running_mean of shape \(3,\)", r"got \(1,\)")),
        (lambda: F.batch_norm(x, one, zero, zero, constant([0.0])), (r"running_var of shape \(3,\)", r"got \(1,\)")),
        (lambda: F.batch_norm(x, one, zero, training=False), ("running_mean and running_var", "got None")),
        (lambda: F.batch_norm(x, one, zero, zero, training=False), ("running_mean and running_var", "got None")),
        (lambda: F.batch_norm(constant(np.ones((1, 3))), one, zero), ("at least 2 values", r"\(1, 3\)")),
        (lambda: F.batch_norm(constant(np.ones((0, 3))), one, zero), ("at least 2 values", r"\(0, 3\)")),
        (lambda: F.batch_norm(constant(1.0), one, zero), (r"shape \(\)",)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_one_line(error, "batch_norm", *words)
    with pytest.raises(TypeError, match=r"float64.*float32"):
        F.batch_norm(x, constant(np.ones(3), np.float32), zero)


# ---- activations ---------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_by_hand(dtype: str) -> None:
    x = constant([-2.0, -0.5, 0.0, 0.5, 2.0], dtype)
    for y, expected in (
        (F.leaky_relu(x), [-0.4, -0.1, 0, 0.5, 2]),
        (F.leaky_relu(x, 0.3), [-0.6, -0.15, 0, 0.5, 2]),
        (F.leaky_relu(x, slope=0), [0, 0, 0, 0.5, 2]),
        (F.relu(x), [0, 0, 0, 0.5, 2]),
        (F.elu(x), [np.exp(-2) - 1, np.exp(-0.5) - 1, 0, 0.5, 2]),
        (F.elu(x, 0.5), [0.5 * (np.exp(-2) - 1), 0.5 * (np.exp(-0.5) - 1), 0, 0.5, 2]),
        (F.tanh(x), np.tanh([-2, -0.5, 0, 0.5, 2])),
        (F.sigmoid(x), 1 / (1 + np.exp([2, 0.5, 0, -0.5, -2]))),
    ):
        assert y.dtype == np.dtype(dtype)
        assert_close(y, expected, rounding(dtype))


ACTIVATIONS = [F.leaky_relu, F.relu, F.elu, F.tanh, F.sigmoid]


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activations_let_nan_through(function: Any) -> None:
    """In forward and in backward: a diverged network must not look healthy."""
    for dtype in (np.float32, np.float64):
        for size in (3, 70_001):
            values = np.ones(size)
            values[1] = NAN
            x = leaf(values, dtype)
            y = function(x)
            assert np.isnan(y.numpy()[1])
            assert np.isfinite(y.numpy()[[0, 2]]).all()
            gy = np.ones(size, dtype)
            gy[2] = NAN
            y.backward(gy)
            assert x.grad is not None
            assert np.isnan(x.grad.numpy()[2])
            assert np.isfinite(x.grad.numpy()[0])


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activations_at_infinity(function: Any) -> None:
    low, high = {F.leaky_relu: (-INF, INF), F.relu: (0, INF), F.elu: (-1, INF), F.tanh: (-1, 1)}.get(function, (0, 1))
    for dtype in (np.float32, np.float64):
        assert np.array_equal(function(constant([-INF, INF], dtype)).numpy(), np.array([low, high], dtype))


@pytest.mark.parametrize("function", [*ACTIVATIONS, F.exp, F.abs])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3)])
def test_activations_of_few_elements(function: Any, shape: tuple[int, ...]) -> None:
    """No dimensions, one element, none."""
    x = leaf(np.full(shape, -0.7))
    y = function(x)
    assert y.shape == shape
    expected = function(constant(np.full(7, -0.7))).numpy()[0]
    assert_close(y, np.full(shape, expected), EXACT)
    y.backward(np.ones(shape), create_graph=True)
    assert x.grad is not None
    assert x.grad.shape == shape
    if x.size == 1:
        assert mg.gradcheck(function, x, order=2)


def test_gradients_at_zero() -> None:
    for function, expected in ((F.leaky_relu, 0.2), (F.relu, 0.0), (F.elu, 1.0), (F.abs, 0.0)):
        x = leaf([0.0, -0.0])
        function(x).backward(np.ones(2))
        assert_close(x.grad, [expected] * 2, EXACT)


def test_activation_errors() -> None:
    x = constant([1.0])
    for call, word in (
        (lambda: F.leaky_relu(x, -0.1), "got -0.1"),
        (lambda: F.leaky_relu(x, NAN), "got nan"),
        (lambda: F.elu(x, 0.0), "got 0.0"),
        (lambda: F.elu(x, -1.0), "got -1.0"),
        (lambda: F.elu(x, NAN), "got nan"),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_one_line(error, word)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_keeps_its_digits_at_both_ends(dtype: str) -> None:
    """sigmoid(-30) is 1e-13, not 0: the gradient of the logistic loss on a well rejected fake."""
    x = np.array([-80.0, -30.0, -12.0, -5.0, 5.0, 30.0])
    expected = 1 / (1 + np.exp(-x))
    actual = F.sigmoid(constant(x, dtype)).numpy()
    assert np.all(np.abs(actual - expected) <= rounding(dtype) * expected), actual
    assert_close(F.sigmoid(constant([-1e4, 1e4], dtype)), [0.0, 1.0], 0)


# ---- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bce_with_large_logits(dtype: str) -> None:
    z = leaf([1e4, -1e4, 1e4, -1e4, 0.0], dtype)
    loss = F.binary_cross_entropy_with_logits(z, constant([1.0, 0.0, 0.0, 1.0, 0.3], dtype))
    assert_close(loss, (0 + 0 + 1e4 + 1e4 + np.log(2)) / 5, rounding(dtype))
    loss.backward()
    assert_close(z.grad, np.array([0, 0, 1, -1, 0.2]) / 5, rounding(dtype))


@pytest.mark.parametrize("shape", [(), (1, 1), (19, 1), (3, 4, 5, 7)])
def test_bce_is_pytorchs(shape: tuple[int, ...], torch: Any) -> None:
    rng = np.random.default_rng(2)
    z, t = np.asarray(rng.uniform(-8, 8, shape)), np.asarray(rng.uniform(0, 1, shape))
    ours, theirs = [leaf(z), leaf(t)], [torch.tensor(a, requires_grad=True) for a in (z, t)]
    loss = F.binary_cross_entropy_with_logits(*ours)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(*theirs)
    assert_close(loss, expected, EXACT)
    loss.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.grad, b.grad, EXACT)


def test_bce_takes_a_number_for_all() -> None:
    z = leaf([[0.5], [-2.0]], np.float32)
    for number in (0, 1, 0.9, np.float64(0.9), constant(0.9, np.float32)):
        value = float(number)
        loss = F.binary_cross_entropy_with_logits(z, number)
        assert loss.dtype == np.float32
        assert_close(loss, F.binary_cross_entropy_with_logits(z, np.full((2, 1), value, np.float32)), 0)
    target = leaf(0.3, np.float32)
    F.binary_cross_entropy_with_logits(z, target).backward()
    assert_close(target.grad, -(0.5 - 2.0) / 2, SINGLE)  # it is not cut off from the graph


def test_l1_loss() -> None:
    a, b = leaf([[1.0, -2.0], [3.0, 4.0]]), leaf([[2.0, -2.0], [1.0, 8.0]])
    loss = F.l1_loss(a, b)
    assert_close(loss, (1 + 0 + 2 + 4) / 4, EXACT)
    loss.backward()
    assert_close(a.grad, [[-0.25, 0], [0.25, -0.25]], EXACT)
    assert_close(b.grad, [[0.25, 0], [-0.25, 0.25]], EXACT)


def test_loss_errors() -> None:
    z = constant(np.ones((4, 1)))
    for function in (F.binary_cross_entropy_with_logits, F.l1_loss):
        for wrong in (np.ones(4), np.ones((1, 4)), np.ones((4, 4))):
            with pytest.raises(ValueError) as error:
                function(z, wrong)
            assert_one_line(error, r"\(4, 1\)", str(wrong.shape).replace("(", r"\(").replace(")", r"\)"))
        with pytest.raises(TypeError, match="float32"):
            function(z, np.ones((4, 1), np.float32))
        with pytest.raises(ValueError, match="at least one element"):
            function(constant(np.ones((0, 1))), np.ones((0, 1)))


# ---- pooling and upsampling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((2, 8, 8, 3), 2, None, 0),
        ((2, 7, 9, 3), 2, None, 0),
        ((1, 7, 9, 19), 3, 2, 1),
        ((2, 9, 7, 2), (3, 2), (1, 3), (1, 0)),
        ((1, 5, 5, 1), 5, 1, 2),
        ((1, 4, 4, 1), 1, 2, 0),
        ((2, 33, 19, 7), (2, 4), 2, (1, 2)),
    ],
)
def test_max_pool2d_is_pytorchs(shape: Any, kernel: Any, stride: Any, padding: Any, dtype: str, torch: Any) -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal(shape) - 3).astype(dtype)  # negative: the padding must not be a zero
    ours, theirs = mg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = F.max_pool2d(ours, kernel, stride, padding)
    t = torch.nn.functional.max_pool2d(theirs.permute(0, 3, 1, 2), kernel, stride, padding).permute(0, 2, 3, 1)
    assert_close(y, t, 0)
    assert y.dtype == np.dtype(dtype)
    gy = rng.standard_normal(y.shape).astype(dtype)
    y.backward(gy)
    t.backward(torch.tensor(gy))
    assert_close(ours.grad, theirs.grad, rounding(dtype))


def test_max_pool2d_takes_the_first_of_equals_and_any_nan() -> None:
    x = leaf(np.ones((1, 2, 2, 1)))
    F.max_pool2d(x, 2).backward(np.full((1, 1, 1, 1), 3.0))
    assert_close(x.grad, np.array([[3.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1), EXACT)
    for at in range(4):
        values = np.arange(4.0)
        values[at] = NAN
        assert np.isnan(F.max_pool2d(constant(values.reshape(1, 2, 2, 1)), 2).item())
    assert F.max_pool2d(constant(np.full((1, 2, 2, 1), -INF)), 2).item() == -INF


def test_upsample_nearest2d() -> None:
    x = leaf(np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1))
    y = F.upsample_nearest2d(x)
    assert_close(y.numpy()[0, :, :, 0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]], 0)
    y.backward(np.arange(16.0).reshape(1, 4, 4, 1))
    assert x.grad is not None
    assert_close(x.grad.numpy()[0, :, :, 0], [[0 + 1 + 4 + 5, 2 + 3 + 6 + 7], [8 + 9 + 12 + 13, 10 + 11 + 14 + 15]], 0)
    assert F.upsample_nearest2d(constant(np.ones((2, 3, 5, 7))), 3).shape == (2, 9, 15, 7)


def test_pooling_and_upsampling_errors() -> None:
    x = constant(np.ones((1, 4, 4, 1)))
    for call, words in (
        (lambda: F.max_pool2d(constant(np.ones((4, 4, 1))), 2), (r"\(4, 4, 1\)",)),
        (lambda: F.max_pool2d(x, 5), ("kernel",)),
        (lambda: F.max_pool2d(x, 2, padding=2), ("padding",)),
        (lambda: F.max_pool2d(x, 0), ("kernel_size", "got 0")),
        (lambda: F.max_pool2d(x, 2, 0), ("stride", "got 0")),
        (lambda: F.max_pool2d(x, 2, 1, -1), ("padding", "got -1")),
        (lambda: F.max_pool2d(x, 2.5), ("kernel_size", "got 2.5")),
        (lambda: F.upsample_nearest2d(constant(np.ones((4, 4, 1)))), (r"\(4, 4, 1\)",)),
        (lambda: F.upsample_nearest2d(x, 0), ("0",)),
        (lambda: F.upsample_nearest2d(x, 1.5), ("1.5",)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_one_line(error, "pool|upsample", *words)


# ---- products, sums and shapes -------------------------------------------------------------------------------------


def test_linear(torch: Any) -> None:
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal(shape) for shape in ((7, 19), (33, 19), (33,))]
    for count in (2, 3):
        ours, theirs = [leaf(a) for a in arrays[:count]], [torch.tensor(a, requires_grad=True) for a in arrays[:count]]
        y, t = F.linear(*ours), torch.nn.functional.linear(*theirs)
        assert_close(y, t, EXACT)
        gy = rng.standard_normal(y.shape)
        y.backward(gy)
        t.backward(torch.tensor(gy))
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a.grad, b.grad, EXACT)


def test_linear_errors() -> None:
    def ones(*shape: int) -> mg.Tensor:
        return constant(np.ones(shape))

    for call, words in (
        (lambda: F.linear(ones(7, 3), ones(4, 2)), (r"\(7, 3\)", r"\(4, 2\)")),
        (lambda: F.linear(ones(3), ones(4, 3)), (r"\(3,\)",)),
        (lambda: F.linear(ones(2, 7, 3), ones(4, 3)), (r"\(2, 7, 3\)",)),
        (lambda: F.linear(ones(7, 3), ones(3)), (r"\(3,\)",)),
        (lambda: F.linear(ones(7, 3), ones(4, 3), ones(3)), (r"\(4,\)", r"got \(3,\)")),
        (lambda: F.linear(ones(7, 3), ones(4, 3), ones(1)), (r"\(4,\)", r"got \(1,\)")),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert_one_line(error, "linear", *words)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((7,), (7,)),
        ((7,), (7, 3)),
        ((3, 7), (7,)),
        ((3, 7), (7, 19)),
        ((2, 3, 7), (7,)),
        ((7,), (2, 7, 3)),
        ((2, 3, 7), (2, 7, 5)),
        ((2, 1, 3, 7), (5, 7, 1)),
        ((0, 7), (7, 3)),
        ((3, 0), (0, 2)),
    ],
)
def test_matmul_is_numpys(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    x, y = leaf(rng.standard_normal(a)), leaf(rng.standard_normal(b))
    product = x @ y
    assert_close(product, x.numpy() @ y.numpy(), EXACT)
    gy = np.asarray(rng.standard_normal(product.shape))
    product.backward(gy)
    assert x.grad is not None
    assert y.grad is not None
    assert (x.grad.shape, y.grad.shape) == (a, b)
    # <gy, d(xy)> along each of the two factors, which are linear
    total = np.sum(gy * product.numpy())
    assert_close(np.sum(x.grad.numpy() * x.numpy()), total, EXACT)
    assert_close(np.sum(y.grad.numpy() * y.numpy()), total, EXACT)


def test_matmul_errors() -> None:
    for a, b in (((3, 7), (3, 7)), ((7,), (3, 7)), ((), (3,)), ((3,), ())):
        with pytest.raises(ValueError) as error:
            F.matmul(constant(np.ones(a)), constant(np.ones(b)))
        assert_one_line(error, "matmul", re.escape(f"got {a} and {b}"))
    with pytest.raises(ValueError, match=r"2,\s?3,\s?4.*3,\s?4,\s?5"):  # NumPy's own words
        F.matmul(constant(np.ones((2, 3, 4))), constant(np.ones((3, 4, 5))))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, -1, -3, (0,), (0, 2), (-1, 0), (0, 1, 2), np.int64(1), ()])
def test_sum_and_mean_axes(axis: Any, keepdims: bool) -> None:
    rng = np.random.default_rng(6)
    for ours, numpys in ((F.sum, np.sum), (F.mean, np.mean)):
        x = leaf(rng.standard_normal((3, 7, 5)))
        y = ours(x, axis, keepdims)
        assert_close(y, numpys(x.numpy(), axis=axis, keepdims=keepdims), EXACT)
        gy = np.asarray(rng.standard_normal(y.shape))
        y.backward(gy)
        kept = gy.reshape(np.sum(x.numpy(), axis=axis, keepdims=True).shape)
        assert_close(x.grad, np.broadcast_to(kept, x.shape) * (y.size / x.size if ours is F.mean else 1), EXACT)
    assert_close(x.sum(axis, keepdims), x.numpy().sum(axis, keepdims=keepdims), EXACT)
    assert_close(x.mean(axis, keepdims), x.numpy().mean(axis, keepdims=keepdims), EXACT)


def test_sums_of_nothing() -> None:
    assert_close(F.sum(constant(np.ones((0, 3))), 0), np.zeros(3), 0)
    for axis in (None, 0, 1):
        with pytest.raises(ValueError, match="at least one element"):
            F.mean(constant(np.ones((0, 3))), axis)
    with pytest.raises(IndexError, match="axis 2 is out of bounds"):
        F.sum(constant(np.ones((2, 3))), 2)


def test_reshape_and_transpose() -> None:
    x = leaf(np.arange(24.0).reshape(2, 3, 4))
    a = x.numpy()
    for y, expected in (
        (x.reshape(6, 4), a.reshape(6, 4)),
        (x.reshape((6, -1)), a.reshape(6, 4)),
        (x.reshape([24]), a.reshape(24)),
        (F.reshape(x, (4, 6)), a.reshape(4, 6)),
        (x[:1, :1, :1].reshape(()), a[:1, :1, :1].reshape(())),
        (x.transpose(), a.T),
        (x.transpose(2, 0, 1), a.transpose(2, 0, 1)),
        (x.transpose((0, -1, 1)), a.transpose(0, 2, 1)),
        (F.transpose(x, (1, 0, 2)), a.transpose(1, 0, 2)),
        (x.transpose(2, 0, 1).reshape(4, 6), a.transpose(2, 0, 1).reshape(4, 6)),
    ):
        assert_same(y, expected)
    with pytest.raises(ValueError, match=r"cannot reshape array of size 24 into shape \(5,\s?5\)|expected"):
        x.reshape(5, 5)
    for axes in ((0, 1), (0, 0, 1), (0, 1, 3)):
        with pytest.raises((ValueError, IndexError)):
            x.transpose(axes)


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        slice(1, 3),
        slice(None, None, -1),
        slice(5, 5),
        (0, 1, 2),
        (..., 0),
        (slice(None), None, 1),
        np.int64(2),
        [0, 2, 2],
        np.array([2, 0]),
        (slice(None), [1, 1]),
        ([0, 1], [2, 2]),
        True,
        Ellipsis,
        (),
    ],
)
def test_indexing_is_numpys(index: Any) -> None:
    rng = np.random.default_rng(7)
    x = leaf(rng.standard_normal((4, 7, 3)))
    y = x[index]
    assert_same(y, np.asarray(x.numpy()[index]))
    gy = np.asarray(rng.standard_normal(y.shape))
    y.backward(gy)
    expected = np.zeros(x.shape)
    np.add.at(expected, index, gy)
    assert_close(x.grad, expected, EXACT)


def test_indexing_by_a_mask_and_out_of_range() -> None:
    x = leaf([[1.0, -2.0], [-3.0, 4.0]])
    y = x[x.numpy() > 0]
    y.backward(np.array([10.0, 20.0]))
    assert_close(x.grad, [[10.0, 0.0], [0.0, 20.0]], EXACT)
    with pytest.raises(IndexError, match="out of bounds"):
        x[2]
    assert [float(row.sum()) for row in x] == [-1.0, 1.0]


def test_pad() -> None:
    x = leaf([[1.0, 2.0]], np.float32)
    y = F.pad(x, ((1, 0), (0, 2)), 7.0)
    assert_same(y, np.array([[7, 7, 7, 7], [1, 2, 7, 7]], np.float32))
    y.backward(np.arange(8, dtype=np.float32).reshape(2, 4))
    assert_close(x.grad, [[4.0, 5.0]], 0)
    assert_same(F.pad(x, ((0, 0), (0, 0))), x.numpy())
    for wrong in (((1, 1),), ((1, 1), (1, 1), (1, 1)), ((1, 1), (1, -1)), ((1, 1), (1,)), 1, (1, 1)):
        with pytest.raises(ValueError) as error:
            F.pad(x, wrong)  # type: ignore[arg-type]
        assert_one_line(error, "pad", "2 pairs", "one an axis", re.escape(f"got {wrong}"))


def test_concatenate() -> None:
    a, b = leaf(np.ones((2, 3))), leaf(np.full((1, 3), 2.0))
    y = F.concatenate([a, b, a])
    assert_same(y, np.concatenate([a.numpy(), b.numpy(), a.numpy()]))
    y.backward(np.arange(15.0).reshape(5, 3))
    assert_close(a.grad, [[9.0, 11.0, 13.0], [15.0, 17.0, 19.0]], 0)
    assert_close(b.grad, [[6.0, 7.0, 8.0]], 0)
    assert F.concatenate([a, a], axis=-1).shape == (2, 6)
    with pytest.raises(ValueError, match="expected at least one tensor"):
        F.concatenate([])
    with pytest.raises(ValueError, match="match exactly"):
        F.concatenate([a, b], axis=1)


def test_divisions_by_small_numbers() -> None:
    """The derivative of a / b by b is -a / b^2: b^2 may be too small for float32 though that is not."""
    a, b = leaf([1e-25], np.float32), leaf([1e-25], np.float32)
    (a / b).backward(np.ones(1, np.float32))
    assert b.grad is not None
    assert abs(b.grad.item() / -1e25 - 1) < 1e-5


def test_sums_in_float32_keep_their_digits() -> None:
    """A bias gradient adds up 64 x 64 x 64 numbers; one by one the rounding of a sum near 2.6e5 comes to 1e-5 of it."""
    g = (np.random.default_rng(8).standard_normal((64, 64, 64, 8)) + 1).astype(np.float32)
    x = mg.tensor(np.zeros((64, 64, 64, 1), np.float32))
    w = mg.tensor(np.zeros((8, 1, 1, 1), np.float32))
    bias = mg.tensor(np.zeros(8, np.float32), requires_grad=True)
    F.conv2d(x, w, bias).backward(g)
    assert bias.grad is not None
    exact = g.astype(np.float64).sum((0, 1, 2))
    assert np.abs(bias.grad.numpy() / exact - 1).max() <= 2e-6


# ---- gradient penalties --------------------------------------------------------------------------------------------

SHAPES = {"w1": (9, 4, 4, 3), "b1": (9,), "gamma": (9,), "beta": (9,), "w2": (4, 3, 3, 9), "b2": (4,), "w3": (1, 36)}


def critic(f: Any, x: Any, p: dict[str, Any]) -> Any:
    """(N, 6, 6, 3) -> (N, 1): conv k4 s2 SAME, batch norm, leaky ReLU, conv k3 SAME, leaky ReLU, linear."""
    h = f.leaky_relu(f.batch_norm(f.conv2d(x, p["w1"], p["b1"], 2, "same"), p["gamma"], p["beta"]))
    h = f.leaky_relu(f.conv2d(h, p["w2"], p["b2"], 1, "same"))
    return f.linear(h.reshape(len(x), 36), p["w3"])


class PyTorchFunctions:
    """The same functions, by PyTorch, in our layouts."""

    def __init__(self, torch: Any) -> None:
        self.f = torch.nn.functional

    def conv2d(self, x: Any, w: Any, b: Any, stride: int, padding: str) -> Any:
        assert padding == "same"
        assert w.shape[1] in (3, 4)  # k3 s1 and k4 s2 on even inputs: one on each side
        return self.f.conv2d(x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), b, stride, 1).permute(0, 2, 3, 1)

    def batch_norm(self, x: Any, gamma: Any, beta: Any) -> Any:
        y = self.f.batch_norm(x.permute(0, 3, 1, 2), None, None, gamma, beta, training=True, eps=1e-5)
        return y.permute(0, 2, 3, 1)

    def leaky_relu(self, x: Any) -> Any:
        return self.f.leaky_relu(x, 0.2)

    def linear(self, x: Any, w: Any) -> Any:
        return self.f.linear(x, w)


def wgan_gp(g: Any) -> Any:
    """The mean of (|g| - 1)^2 over the batch.   Gulrajani et al., 2017."""
    norms = (g * g).reshape(len(g), -1).sum(1).sqrt()
    return ((norms - 1.0) ** 2).mean()


def r1(g: Any) -> Any:
    """Half the mean of |g|^2.   Mescheder et al., 2018."""
    return (g * g).sum() * (0.5 / len(g))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("penalty", [wgan_gp, r1])
def test_gradient_penalty_is_pytorchs(penalty: Any, dtype: str, torch: Any) -> None:
    rng = np.random.default_rng(9)
    image = rng.standard_normal((5, 6, 6, 3)).astype(dtype)
    arrays = {k: (rng.standard_normal(s) * 0.5).astype(dtype) for k, s in SHAPES.items()}

    x, ours = mg.tensor(image, requires_grad=True), {k: mg.tensor(a, requires_grad=True) for k, a in arrays.items()}
    (g,) = mg.grad(critic(F, x, ours).sum(), x, create_graph=True)
    assert g is not None
    loss = penalty(g)
    loss.backward()

    t, theirs = torch.tensor(image, requires_grad=True), {k: torch.tensor(a) for k, a in arrays.items()}
    for parameter in theirs.values():
        parameter.requires_grad_(True)
    (tg,) = torch.autograd.grad(critic(PyTorchFunctions(torch), t, theirs).sum(), t, create_graph=True)
    expected = penalty(tg)
    expected.backward()

    # Two passes through four layers, each of which rounds.
    tolerance = 8 * rounding(dtype)
    assert_close(g, tg, tolerance)
    assert_close(loss, expected, tolerance)
    assert_close(x.grad, t.grad, tolerance)
    for name, parameter in ours.items():
        # A bias shifts the kinks only: its gradient is zero, which may be left out.
        zero = np.zeros(parameter.shape)
        found, wanted = parameter.grad, theirs[name].grad
        assert_close(zero if found is None else found, zero if wanted is None else wanted, tolerance)
    moved = [k for k, p in ours.items() if p.grad is not None and np.abs(p.grad.numpy()).max() > 1e-4]
    assert {"w1", "gamma", "w2", "w3"} <= set(moved)


@pytest.mark.parametrize("penalty", [wgan_gp, r1])
def test_gradient_penalty_by_finite_differences(penalty: Any) -> None:
    rng = np.random.default_rng(10)
    x = leaf(rng.standard_normal((3, 6, 6, 3)))
    parameters = [leaf(rng.standard_normal(s) * 0.5) for s in SHAPES.values()]

    def function(x: mg.Tensor, *tensors: mg.Tensor) -> mg.Tensor:
        # Also where only the value of the penalty is asked for.
        with mg.set_grad_enabled(True):
            point = x if x.requires_grad else mg.tensor(x.numpy(), requires_grad=True)
            y = critic(F, point, dict(zip(SHAPES, tensors, strict=True)))
            (g,) = mg.grad(y.sum(), point, create_graph=True)
            assert g is not None
            return penalty(g)

    assert mg.gradcheck(function, [x, *parameters])
