"""max_pool.cu and upsample.cu against plain loops."""

import numpy as np
import pytest
from leaf_checks import DTYPES, assert_within, eps, fenced, run, strided, transposed

import minigan as mg
import minigan.functional as F
from minigan.ops.max_pool2d import gather, max_pool_forward, scatter
from minigan.ops.upsample_nearest2d import sum_blocks, upsample

# x (N, H, W, C), (kernel, stride, padding): plain, odd, overlapping, in the padding, with gaps, one pixel, large.
WINDOWS = [
    ((2, 4, 6, 3), ((2, 2), (2, 2), (0, 0))),
    ((1, 7, 9, 19), ((2, 2), (2, 2), (0, 0))),
    ((2, 7, 6, 5), ((3, 3), (1, 2), (1, 1))),
    ((1, 5, 8, 3), ((4, 2), (3, 1), (2, 0))),
    ((3, 11, 33, 1), ((2, 3), (3, 4), (0, 1))),
    ((1, 1, 1, 1), ((1, 1), (1, 1), (0, 0))),
    ((1, 19, 111, 1), ((5, 19), (2, 3), (2, 9))),
]
EVERY = [pytest.mark.parametrize("dtype", DTYPES), pytest.mark.parametrize(("shape", "windows"), WINDOWS)]


def every(test):
    for mark in EVERY:
        test = mark(test)
    return test


def places(shape, windows):
    """(output position, rows, columns) of each window, cut to the image."""
    (kh, kw), (sh, sw), (ph, pw) = windows
    _, h, w, _ = shape
    for p in range((h + 2 * ph - kh) // sh + 1):
        for q in range((w + 2 * pw - kw) // sw + 1):
            top, left = p * sh - ph, q * sw - pw
            yield p, q, range(max(top, 0), min(top + kh, h)), range(max(left, 0), min(left + kw, w))


def reference(x, windows):
    """The maxima and where they stand: the first of equals."""
    n, _, w, c = x.shape
    *_, (p, q, _, _) = places(x.shape, windows)
    y, index = np.zeros((n, p + 1, q + 1, c), x.dtype), np.zeros((n, p + 1, q + 1, c), np.int32)
    for p, q, rows, columns in places(x.shape, windows):
        inside = [(h, v) for h in rows for v in columns]
        values = np.stack([x[:, h, v] for h, v in inside])
        best = values.argmax(0)  # a NaN is the maximum for NumPy too
        y[:, p, q] = values.max(0)
        index[:, p, q] = np.array([h * w + v for h, v in inside])[best]
    return y, index


@pytest.mark.parametrize("at_end", [True, False])
@every
def test_max_pool(shape, windows, dtype, at_end):
    x = fenced(np.random.default_rng(0).standard_normal(shape).astype(dtype), at_end)
    y, index = run(lambda: max_pool_forward("emulated", x, windows))
    expected_y, expected_index = reference(x, windows)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(index, expected_index)


@every
def test_the_first_of_equals_wins(shape, windows, dtype):
    x = np.random.default_rng(0).integers(-3, 0, shape).astype(dtype)  # negative: padding is not 0
    x[0, 0, 0, 0] = -np.inf
    y, index = run(lambda: max_pool_forward("emulated", x, windows))
    expected_y, expected_index = reference(x, windows)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(index, expected_index)


def test_nan_wins():
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 5)).astype(np.float32)
    x.reshape(-1)[::17] = np.nan
    windows = WINDOWS[2][1]
    y, index = run(lambda: max_pool_forward("emulated", x, windows))
    np.testing.assert_array_equal(y, reference(x, windows)[0])
    cpu_y, cpu_index = max_pool_forward("cpu", x, windows)
    np.testing.assert_array_equal(y, cpu_y)
    np.testing.assert_array_equal(index, cpu_index)


@every
def test_put_and_take_maxima(shape, windows, dtype):
    """Each value goes where its index says, and is added to others there; and the other way around."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(dtype)
    index = fenced(reference(x, windows)[1])
    gy = fenced(rng.standard_normal(index.shape).astype(dtype))
    gx = run(lambda: scatter("emulated", gy, index, shape[1:3], windows))
    expected = np.zeros((shape[0], shape[1] * shape[2], shape[3]))
    for at in np.ndindex(index.shape):
        expected[at[0], index[at], at[3]] += gy[at]
    assert_within(gx, expected.reshape(shape), 8 * eps(dtype) * 3)  # some ten numbers about 1
    y = run(lambda: gather("emulated", x, index, windows))
    for at in np.ndindex(index.shape):
        assert y[at] == x.reshape(expected.shape)[at[0], index[at], at[3]]


SCALES = [((1, 1, 1, 1), 2), ((2, 3, 5, 7), 2), ((1, 4, 1, 33), 3), ((3, 1, 19, 1), 1), ((2, 2, 3, 19), 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "scale"), SCALES)
def test_upsample_and_sum_blocks(shape, scale, dtype):
    rng = np.random.default_rng(2)
    x = fenced(rng.standard_normal(shape).astype(dtype))
    y = run(lambda: upsample("emulated", x, scale))
    np.testing.assert_array_equal(y, np.kron(x, np.ones((1, scale, scale, 1), dtype)))
    gy = fenced(rng.standard_normal(y.shape).astype(dtype))
    gx = run(lambda: sum_blocks("emulated", gy, scale))
    n, h, w, c = shape
    expected = gy.astype(np.float64).reshape(n, h, scale, w, scale, c).sum((2, 4))
    assert_within(gx, expected, scale**2 * 3 * eps(dtype))


@pytest.mark.parametrize("layout", [strided, transposed])
def test_ops_take_any_layout(layout):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 7, 6, 5))
    for function in (lambda t: F.max_pool2d(t, 3, 2, 1), F.upsample_nearest2d):
        found = []
        for device, change in (("cpu", np.asarray), ("emulated", layout)):
            t = mg.tensor(change(x), requires_grad=True, device=device)
            y = function(t)
            y.backward(change(np.random.default_rng(4).standard_normal(y.shape)))
            found.append((y.numpy(), t.grad.numpy()))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        assert_within(found[1][1], found[0][1], 1e-14)
