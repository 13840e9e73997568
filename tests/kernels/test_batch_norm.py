"""batch_norm.cu against float64: odd sizes, chunks, means far from 0, and the LeakyReLU that may be fused to it."""

import numpy as np
import pytest
from leaf_checks import DTYPES, assert_within, eps, fenced, run, strided, transposed

import minigan as mg
import minigan.functional as F
from minigan.ops import batch_norm as leaves
from minigan.ops.batch_norm import batch_norm_gradients, normalize, update_running

# Around the 8 rows and 32 channels of a block, and around its chunks of 64 rows.
SHAPES = [(2, 1), (7, 19), (9, 31), (63, 33), (65, 32), (2, 3, 11, 65), (257, 3), (1025, 1)]
EVERY = [pytest.mark.parametrize("dtype", DTYPES), pytest.mark.parametrize("shape", SHAPES, ids=str)]


def every(test):
    for mark in EVERY:
        test = mark(test)
    return test


def inputs(shape, dtype, mean=1.0, deviation=2.0):
    """x, gamma, beta, gy; gammas of both signs."""
    rng = np.random.default_rng(sum(shape))
    c = shape[-1]
    arrays = (
        rng.standard_normal(shape) * deviation + mean,
        rng.uniform(0.5, 2, c) * rng.choice([-1, 1], c),
        rng.standard_normal(c),
        rng.standard_normal(shape),
    )
    return tuple(fenced(a.astype(dtype)) for a in arrays)


def exact(*arrays):
    return tuple(a.astype(np.float64) for a in arrays)


def statistics(x, epsilon=1e-5):
    """In float64, the mean of what is left when it is subtracted once, so that it is exact for means far from 0."""
    x = x.astype(np.float64).reshape(-1, x.shape[-1])
    average = x.mean(0)
    average = average + (x - average).mean(0)
    variance = ((x - average) ** 2).mean(0)
    return average, variance, (variance + epsilon) ** -0.5


def moments(device, x):
    """The mean and the biased variance."""
    return leaves.statistics(device, x, np.ones(x.shape[-1], x.dtype), 1e-5)[:2]


def check_moments(x):
    """A thread adds some ten differences, from values of the data, whose rounding is that of the data's range.

    All else is in double. So the mean is off by a few roundings of the range, and the variance by as many of itself;
    and the chunks' means by a double's rounding of the mean, which the variance has times the range.
    """
    average, variance = run(lambda: moments("emulated", x))
    expected_average, expected_variance, _ = statistics(x)
    spread = np.ptp(x.astype(np.float64).reshape(-1, x.shape[-1]), axis=0)
    assert average.dtype == variance.dtype == np.float64
    double = 4 * eps("float64") * np.abs(expected_average)
    assert_within(average, expected_average, 16 * eps(x.dtype) * spread + double)
    assert_within(variance, expected_variance, 32 * eps(x.dtype) * expected_variance + double * spread)


@every
def test_moments(shape, dtype):
    check_moments(inputs(shape, dtype)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mean", "deviation"), [(1e4, 0.1), (-3e6, 5.0), (1e-3, 1e-6)])
def test_moments_far_from_zero(mean, deviation, dtype):
    """|mean| >> deviation: a plain sum of squares would have no correct digit."""
    check_moments(inputs((257, 5), dtype, mean, deviation)[0])


def test_moments_of_a_constant_are_exact():
    x = np.full((257, 33), 1234.567, np.float32)
    average, variance = run(lambda: moments("emulated", x))
    np.testing.assert_array_equal(average, x[0].astype(np.float64))
    np.testing.assert_array_equal(variance, 0)


@pytest.mark.parametrize("first", [0, 1, 8])
def test_moments_with_one_outlier(first):
    """Also where it is the value that a thread subtracts from all others: n roundings, as the head comment says."""
    x = inputs((64, 3), "float32")[0]
    x[first] = 1e4
    check_moments(x)


def test_moments_of_more_rows_than_256_chunks_of_64():
    check_moments(inputs((16_387, 2), "float32")[0])


def far(shape, dtype):
    return inputs(shape, dtype, 1e4, 0.1)


@pytest.mark.parametrize("negative", [1.0, 0.2])
@pytest.mark.parametrize("make", [inputs, far])
@every
def test_normalize(shape, dtype, make, negative):
    x, gamma, beta, _ = make(shape, dtype)
    average, _, inverse = statistics(x)
    y = run(lambda: normalize("emulated", x, average, gamma * inverse, beta, negative))
    value = gamma * ((x.astype(np.float64) - average) * inverse) + beta
    expected = np.where(value > 0, value, negative * value)
    # A few roundings of the largest terms. x - centre is exact for means far from 0, and rounds like x elsewhere.
    assert_within(y, expected, 8 * eps(dtype) * (np.abs(gamma) * 5 + np.abs(beta)))


@pytest.mark.parametrize("negative", [None, 0.2])
@pytest.mark.parametrize("make", [inputs, far])
@every
def test_gradients(shape, dtype, make, negative):
    x, gamma, beta, gy = make(shape, dtype)
    average, _, inverse = statistics(x)
    slope = 1.0 if negative is None else negative
    gx, ggamma, gbeta = run(lambda: batch_norm_gradients("emulated", x, gamma, average, inverse, gy, beta, slope))
    assert gx.dtype == ggamma.dtype == gbeta.dtype == x.dtype
    exact_x, exact_gamma, exact_beta, g = (a.reshape(-1, a.shape[-1]) for a in exact(x, gamma, beta, gy))
    normal = (exact_x - average) * inverse
    value = exact_gamma * normal + exact_beta
    assert np.abs(value).min() > 30 * eps(dtype)  # no sample is so near to the kink that rounding decides
    if negative is not None:
        g = np.where(value > 0, g, negative * g)
    total, product = g.sum(0), (g * normal).sum(0)
    # A thread adds some ten terms, then all is double.
    assert_within(gbeta, total, 8 * eps(dtype) * np.abs(g).sum(0))
    assert_within(ggamma, product, 8 * eps(dtype) * np.abs(g * normal).sum(0))
    scale = np.abs(exact_gamma * inverse)[0]
    expected = exact_gamma * inverse * (g - total / len(g) - normal * product / len(g))
    terms = np.abs(g).max(0) + np.abs(normal).max(0) * np.abs(product) / len(g)
    assert_within(gx.reshape(expected.shape), expected, 16 * eps(dtype) * scale * terms)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
@every
def test_what_normalises(shape, dtype, epsilon):
    """All in double, from the moments that were found."""
    x, gamma, _, _ = inputs(shape, dtype)
    _, variance, inverse, scale = run(lambda: leaves.statistics("emulated", x, gamma, epsilon))
    expected = 1 / np.sqrt(variance + epsilon)
    assert_within(inverse, expected, 4 * eps("float64") * expected)
    assert_within(scale, gamma * expected, 4 * eps("float64") * np.abs(gamma * expected))


@pytest.mark.parametrize("absent", [None, 0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@every
def test_running_statistics(shape, dtype, momentum, absent):
    """One rounding of the result."""
    x, gamma, beta, _ = inputs(shape, dtype)
    average, variance, _ = statistics(x)
    count = x.size // shape[-1]

    def update():
        running = [np.empty(a.shape, dtype) for a in (beta, gamma)]
        for a, values in zip(running, (beta, gamma), strict=True):
            a[...] = values
        given = [None if i == absent else a for i, a in enumerate(running)]
        update_running("emulated", *given, average, variance, momentum, count)
        return tuple(running)

    batch = average, variance * count / (count - 1)
    for i, (found, before, new) in enumerate(zip(run(update), (beta, gamma), batch, strict=True)):
        if i == absent:
            np.testing.assert_array_equal(found, before)
        else:
            expected = momentum * before.astype(np.float64) + (1 - momentum) * new
            assert_within(found, expected, 2 * eps(dtype) * (np.abs(expected) + np.abs(before)))


@pytest.mark.parametrize("slope", [0.2, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_with_a_leaky_relu_behind_it(device, dtype, slope):
    """As one op and as two: the values, the gradients, and the gradients' gradients. No sample is near the kink."""
    x, gamma, beta, gy = inputs((2, 5, 7, 33), dtype)
    found = []
    for fused in (True, False):
        xs = [mg.tensor(a, requires_grad=True, device=device) for a in (x, gamma, beta)]
        y = F.batch_norm(*xs, slope=slope) if fused else F.leaky_relu(F.batch_norm(*xs), slope)
        first = mg.grad(y, xs, mg.tensor(gy, device=device), retain_graph=True)
        recorded = mg.grad(y, xs, mg.tensor(gy, device=device), create_graph=True)
        second = mg.grad(sum((g * g).sum() for g in recorded), xs[:2])  # none for beta
        found.append([t.numpy() for t in (y, *first, *recorded, *second)])
    for one, two in zip(*found, strict=True):
        assert_within(one, two.astype(np.float64), 500 * eps(dtype) * np.abs(two).max())


@pytest.mark.parametrize("layout", [strided, transposed])
def test_op_takes_any_layout(layout):
    """The whole op, running statistics too, against the one on the CPU."""
    x, gamma, beta, gy = inputs((2, 5, 7, 33), "float64")
    found = []
    for device, change in (("cpu", np.asarray), ("emulated", layout)):
        tensors = [mg.tensor(change(a), requires_grad=True, device=device) for a in (x, gamma, beta)]
        running = [mg.tensor(a.copy(), device=device) for a in (gamma, np.abs(beta))]
        y = F.batch_norm(*tensors, *running, momentum=0.9)
        y.backward(change(gy))
        found.append([t.numpy() for t in (y, *running, *(t.grad for t in tensors))])
    for ours, theirs in zip(*found, strict=True):
        assert_within(ours, theirs, 1e-12)
        assert not np.array_equal(theirs, gamma)


def test_nan_and_infinity_stay_in_their_channel():
    x, gamma, beta, _ = inputs((33, 3), "float32")
    x[5, 0], x[6, 1] = np.nan, np.inf
    average, variance = run(lambda: moments("emulated", x))
    assert np.isfinite(average).tolist() == np.isfinite(variance).tolist() == [False, False, True]
    scale = gamma * (variance + 1e-5) ** -0.5
    assert np.isfinite(run(lambda: normalize("emulated", x, average, scale, beta))).any(0).tolist() == [
        False,
        False,
        True,
    ]
