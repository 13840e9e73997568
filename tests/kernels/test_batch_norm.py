"""batch_norm.cu against float64: odd sizes, chunks, means far from 0, and the LeakyReLU that may be fused to it."""

import numpy as np
import pytest
from leaf_checks import DTYPES, assert_within, check_counters, eps, fenced, run, strided, transposed

import minigan as mg
import minigan.functional as F
from minigan import nn
from minigan.ops import batch_norm as leaves
from minigan.ops import batch_norm_cuda
from minigan.ops.batch_norm import batch_norm_gradients, normalize, normalize_given, placed_batch_norm
from minigan.ops.moments import Parts
from minigan.ops.place import Place

# Around the 32 channels of a block, its 8 rows of threads (32, where a thread has four channels), and its chunks of 32
# rows (128).
SHAPES = [(2, 1), (7, 19), (9, 31), (63, 33), (65, 32), (2, 3, 11, 65), (257, 3), (1025, 1), (3, 4), (129, 36)]
SHAPES += [(300, 68)]
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
    average, variance, *_ = leaves.statistics(device, x, np.ones(x.shape[-1], x.dtype), 1e-5)
    return average[0], variance[0]


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


def test_moments_of_more_rows_than_512_chunks_of_32():
    check_moments(inputs((16_387, 2), "float32")[0])


# A group's rows of a class, rows of a part, classes, groups, and whether parts of the groups alternate.
PARTS = [
    (2, 1, 1, 2, False),
    (33, 32, 1, 1, False),  # the last part has one row
    (70, 32, 4, 1, False),  # in each class
    (64, 32, 4, 2, False),
    (192, 64, 1, 3, True),
    (512, 64, 4, 2, True),
    (1000, 2, 4, 1, False),  # 2000 parts
    (17_000, 1, 1, 1, False),  # chunks of more than 32
]


@pytest.mark.parametrize(("class_rows", "part_rows", "classes", "groups", "alternating"), PARTS)
@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 2.0), (1e3, 1e-2), (-3e6, 5.0)])
@pytest.mark.parametrize("channels", [1, 33, 36])
def test_moments_of_parts(channels, mean, deviation, class_rows, part_rows, classes, groups, alternating):
    """What a convolution has left, put together: groups, running statistics, inverse and scale. All of it is double."""
    shape = groups, classes, class_rows, channels
    x, gamma, running_mean, _ = inputs(shape, "float32", mean, deviation)
    running_var = np.abs(running_mean)
    x = x * np.arange(1, groups + 1, dtype=np.float32).reshape(-1, 1, 1, 1)
    class_parts = -(-class_rows // part_rows)
    run_length = 1 if alternating else class_parts
    parts = Parts(part_rows, class_rows, class_parts, classes, groups, run_length)
    pieces = []  # as they lie in memory: by class, then the groups' runs in turns
    for number in range(classes):
        for first in range(0, class_parts, run_length):
            for group in range(groups):
                for part in range(first, first + run_length):
                    pieces.append(x[group, number, part * part_rows : (part + 1) * part_rows].astype(np.float64))
    means = np.stack([p.mean(0) for p in pieces])
    means += np.stack([(p - m).mean(0) for p, m in zip(pieces, means, strict=True)])
    squares = np.stack([((p - m) ** 2).sum(0) for p, m in zip(pieces, means, strict=True)]).astype(np.float32)
    whole = np.empty((groups, classes * class_rows, channels), np.float32)
    known = parts, fenced(means), fenced(squares)

    def work():
        running = running_mean.copy(), running_var.copy()
        return *batch_norm_cuda.combined(known, "emulated", whole, gamma, 1e-5, groups, *running, 0.9), *running

    average, variance, inverse, scale, *running = run(work)
    check_counters()
    for group in range(groups):
        expected, expected_variance, _ = statistics(x[group])
        double = 64 * eps("float64") * np.abs(x[group]).max((0, 1))  # of as many additions in a row, at most
        spread = np.ptp(x[group].reshape(-1, channels).astype(np.float64), axis=0)
        assert_within(average[group], expected, double)
        # The squares came as float.
        assert_within(variance[group], expected_variance, eps("float32") * expected_variance + double * spread)
        assert_within(inverse[group], (variance[group] + 1e-5) ** -0.5, 4 * eps("float64") * inverse[group])
        assert_within(scale[group], gamma * inverse[group], 4 * eps("float64") * np.abs(scale[group]))
        count = classes * class_rows
        running_mean = (0.9 * running_mean + 0.1 * average[group]).astype(np.float32)
        running_var = (0.9 * running_var + 0.1 * variance[group] * count / (count - 1)).astype(np.float32)
    for found, wanted, terms in zip(running, (running_mean, running_var), (average, variance), strict=True):
        # Rounded once a group, where terms of both signs may have cancelled.
        size = np.abs(wanted) + np.abs(terms).max(0)
        assert_within(found, wanted.astype(np.float64), 2 * eps("float32") * (1 + size))


def far(shape, dtype):
    return inputs(shape, dtype, 1e4, 0.1)


@pytest.mark.parametrize("negative", [1.0, 0.2])
@pytest.mark.parametrize("make", [inputs, far])
@every
def test_normalize(shape, dtype, make, negative):
    x, gamma, beta, _ = make(shape, dtype)
    average, _, inverse = statistics(x)
    y = run(lambda: normalize("emulated", x, average[None], (gamma * inverse)[None], beta, negative))
    value = gamma * ((x.astype(np.float64) - average) * inverse) + beta
    expected = np.where(value > 0, value, negative * value)
    # A few roundings of the largest terms. x - centre is exact for means far from 0, and rounds like x elsewhere.
    assert_within(y, expected, 8 * eps(dtype) * (np.abs(gamma) * 5 + np.abs(beta)))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("negative", [None, 0.2])
@pytest.mark.parametrize("make", [inputs, far])
@every
def test_gradients(shape, dtype, make, negative, given):
    """given: the mean and the variance do not depend on x, so gx has one term only."""
    x, gamma, beta, gy = make(shape, dtype)
    average, _, inverse = statistics(x)
    slope = 1.0 if negative is None else negative
    known = average[None], inverse[None]
    gx, ggamma, gbeta, totals = run(lambda: batch_norm_gradients("emulated", x, gamma, *known, gy, beta, slope, given))
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
    assert_within(totals[:, 0], np.stack([product, total]), 8 * eps(dtype) * np.abs([g * normal, g]).sum(1))
    scale = np.abs(exact_gamma * inverse)[0]
    through = 0 if given else total / len(g) + normal * product / len(g)
    expected = exact_gamma * inverse * (g - through)
    terms = np.abs(g).max(0) + np.abs(normal).max(0) * np.abs(product) / len(g)
    assert_within(gx.reshape(expected.shape), expected, 16 * eps(dtype) * scale * terms)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
@every
def test_what_normalises(shape, dtype, epsilon):
    """All in double, from the moments that were found."""
    x, gamma, _, _ = inputs(shape, dtype)
    _, variance, inverse, scale = (a[0] for a in run(lambda: leaves.statistics("emulated", x, gamma, epsilon)))
    expected = 1 / np.sqrt(variance + epsilon)
    assert_within(inverse, expected, 4 * eps("float64") * expected)
    assert_within(scale, gamma * expected, 4 * eps("float64") * np.abs(gamma * expected))


@pytest.mark.parametrize("absent", [None, 0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@every
def test_running_statistics(shape, dtype, momentum, absent):
    """One rounding of the result."""
    x, gamma, beta, _ = inputs(shape, dtype)
    count = x.size // shape[-1]

    def update():
        running = [np.empty(a.shape, dtype) for a in (beta, gamma)]
        for a, values in zip(running, (beta, gamma), strict=True):
            a[...] = values
        given = [None if i == absent else a for i, a in enumerate(running)]
        return *leaves.statistics("emulated", x, gamma, 1e-5, 1, *given, momentum)[:2], *running

    average, variance, *updated = run(update)
    batch = average[0], variance[0] * count / (count - 1)
    for i, (found, before, new) in enumerate(zip(updated, (beta, gamma), batch, strict=True)):
        if i == absent:
            np.testing.assert_array_equal(found, before)
        else:
            expected = momentum * before.astype(np.float64) + (1 - momentum) * new
            assert_within(found, expected, 2 * eps(dtype) * (np.abs(expected) + np.abs(before)))


@pytest.mark.parametrize("negative", [1.0, 0.2])
@pytest.mark.parametrize("make", [inputs, far])
@every
def test_normalize_given(shape, dtype, make, negative):
    """By any mean and variance; a few roundings of the largest terms, as in test_normalize."""
    x, gamma, beta, _ = make(shape, dtype)
    average, variance, _ = statistics(x)
    mean, variance = (fenced(a.astype(dtype)) for a in (average * 1.01, variance * 2 + 0.1))
    y = run(lambda: normalize_given("emulated", x, gamma, beta, mean, variance, 0.25, negative))
    exact_x, exact_mean, exact_variance = exact(x, mean, variance)
    normal = (exact_x - exact_mean) / np.sqrt(exact_variance + 0.25)
    value = gamma * normal + beta
    expected = np.where(value > 0, value, negative * value)
    assert_within(y, expected, 8 * eps(dtype) * (np.abs(gamma) * (1 + np.abs(normal).max()) + np.abs(beta)))


# ---- several batches one after another -------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [1.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 19), (6, 5, 11, 36), (9, 33, 1), (3, 257, 3)], ids=str)
@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_groups_are_batches_of_their_own(device, shape, dtype, slope):
    """Values, gx and running statistics have the bits of one call a group; ggamma and gbeta are those calls' sums."""
    x, gamma, beta, gy = inputs(shape, dtype)
    moved = x.copy()
    moved.reshape(3, -1)[...] *= np.array([[1], [2], [3]], dtype)  # statistics that differ

    def results(parts, groups):
        running = [mg.tensor(np.full_like(gamma, value), device=device) for value in (0.5, 2.0)]
        found = []
        for one, cotangent in parts:
            tensors = [mg.tensor(a, requires_grad=True, device=device) for a in (one, gamma, beta)]
            y = placed_batch_norm(Place(slope), *tensors, *running, momentum=0.7, groups=groups)
            y.backward(mg.tensor(cotangent, device=device))
            found.append([t.numpy() for t in (y, *(t.grad for t in tensors))])
        return found, [t.numpy() for t in running]

    separate, expected_running = results(list(zip(np.split(moved, 3), np.split(gy, 3), strict=True)), 1)
    ((y, gx, *sums),), running = results([(moved, gy)], 3)
    np.testing.assert_array_equal(y, np.concatenate([found[0] for found in separate]))
    np.testing.assert_array_equal(gx, np.concatenate([found[1] for found in separate]))
    np.testing.assert_array_equal(running, expected_running)
    for i, total in enumerate(sums, 2):
        # Each of the four is rounded once, and so are the sums of three.
        parts = np.stack([found[i] for found in separate]).astype(np.float64)
        assert_within(total, parts.sum(0), 2 * eps(dtype) * np.abs(parts).sum(0))


@pytest.mark.parametrize("beta_of_group", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_normalize_groups(device, dtype, beta_of_group):
    """Each group by its own statistics, and also by its own shift; the bits are those of one group by itself."""
    x, _, beta, _ = inputs((6, 5, 36), dtype)
    average, scale = np.random.default_rng(1).uniform(0.5, 2, (2, 3, 36))
    betas = np.stack([beta, 2 * beta, -beta]) if beta_of_group else np.stack([beta] * 3)

    def whole():
        return normalize(device, x, average, scale, betas if beta_of_group else beta, 0.2)

    def parts():
        each = zip(np.split(x, 3), np.split(average, 3), np.split(scale, 3), betas, strict=True)
        return np.concatenate([normalize(device, *one, 0.2) for one in each])

    np.testing.assert_array_equal(run(whole), run(parts))


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_groups_of_unequal_size_are_refused(device):
    x, gamma, beta, _ = inputs((7, 3), "float32")
    tensors = [mg.tensor(a, device=device) for a in (x, gamma, beta)]
    with pytest.raises(ValueError, match=r"as many images in each of 2 groups, got an input of \(7, 3\)"):
        F.batch_norm(*tensors, groups=2)
    with pytest.raises(ValueError, match="at least 2 values for each channel"):
        F.batch_norm(*tensors, groups=7)


# ---- the launches ----------------------------------------------------------------------------------------------------


def launched(monkeypatch, work):
    """The kernels that `work` launches."""
    kernels = []
    launch = batch_norm_cuda.launch

    def noted(source, kernel, *given, **options):
        kernels.append((kernel, options["macros"]["VECTOR"]))
        launch(source, kernel, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(batch_norm_cuda, "launch", noted)
        work()
    return kernels


@pytest.mark.parametrize(("channels", "dtype", "vector"), [(8, "float32", 4), (6, "float32", 1), (8, "float64", 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_two_launches_each_way(monkeypatch, channels, dtype, vector, groups):
    x, gamma, beta, gy = inputs((4, 3, channels), dtype)
    tensors = [mg.tensor(a, requires_grad=True, device="emulated") for a in (x, gamma, beta)]
    running = [mg.tensor(a, device="emulated") for a in (beta.copy(), np.abs(gamma))]

    def step(training):
        F.batch_norm(*tensors, *running, training=training, groups=groups).backward(mg.tensor(gy, device="emulated"))

    backward = ["gradient_sums", "input_gradient"]
    assert launched(monkeypatch, lambda: step(True)) == [(k, vector) for k in ("moments", "normalize", *backward)]
    assert launched(monkeypatch, lambda: step(False)) == [(k, vector) for k in ("normalize_given", *backward)]


def test_memory_that_is_not_aligned(monkeypatch):
    """Four channels a load need multiples of 16 bytes; elsewhere each is loaded by itself, with the same values."""
    x, gamma, beta, gy = inputs((5, 7, 8), "float32")
    found, vectors = [], []
    for shift in (0, 1):
        moved = [np.empty(a.size + shift, np.float32)[shift:].reshape(a.shape) for a in (x, gy)]
        for a, values in zip(moved, (x, gy), strict=True):
            a[...] = values
        there = {"device": "emulated", "copy": False}
        tensors = [mg.tensor(a, requires_grad=True, **there) for a in (moved[0], gamma, beta)]
        y = F.batch_norm(*tensors)
        vectors.append(launched(monkeypatch, lambda y=y, gy=moved[1], there=there: y.backward(mg.tensor(gy, **there))))
        found.append([t.numpy() for t in (y, *(t.grad for t in tensors))])
    assert {vector for _, vector in vectors[0]} == {4}
    assert {vector for _, vector in vectors[1]} == {1}
    for one, two in zip(*found, strict=True):
        assert_within(one, two, 32 * eps("float32") * np.abs(two).max())


@pytest.mark.parametrize("rows", [64, 1024, 16_384, 262_144, 1_048_576])
@pytest.mark.parametrize("channels", [3, 64, 128, 512, 1024])
def test_grids(rows, channels):
    """Of the published networks' layers: enough blocks, or no more rows for each thread than the least."""
    x = np.broadcast_to(np.zeros((), np.float32), (rows, channels))
    run = batch_norm_cuda._Kernels("emulated", x, 1)
    blocks = run.tiles * run.chunks
    assert (run.chunks - 1) * run.chunk_rows < rows <= run.chunks * run.chunk_rows
    assert 256 < blocks <= 512 or run.chunk_rows == 4 * 8 * run.vector
    assert run.vector == (4 if channels % 4 == 0 else 1)


def test_counters_are_zero_after_each_launch():
    for shape in ((9, 31), (300, 68), (65, 32)):
        x, gamma, *_ = inputs(shape, "float32")
        leaves.statistics("emulated", x, gamma, 1e-5)
        check_counters()


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_an_empty_batch_in_evaluation(device):
    """No values, and gradients of 0."""

    def gradients():
        norm = nn.BatchNorm2d(3).to(device).eval()
        y = norm(mg.tensor(np.zeros((0, 2, 2, 3), np.float32), requires_grad=True, device=device))
        assert y.shape == (0, 2, 2, 3)
        y.backward(np.zeros(y.shape, np.float32))
        return norm.gamma.grad.numpy(), norm.beta.grad.numpy()

    for gradient in run(gradients):
        np.testing.assert_array_equal(gradient, np.zeros(3))


# ---- the whole op ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.2, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_with_a_leaky_relu_behind_it(device, dtype, slope):
    """As one op and as two: the values, the gradients, and the gradients' gradients. No sample is near the kink."""
    x, gamma, beta, gy = inputs((2, 5, 7, 33), dtype)
    found = []
    for fused in (True, False):
        xs = [mg.tensor(a, requires_grad=True, device=device) for a in (x, gamma, beta)]
        y = placed_batch_norm(Place(slope), *xs) if fused else F.leaky_relu(F.batch_norm(*xs), slope)
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
        tensors = [mg.tensor(change(a), requires_grad=True, device=device, copy=False) for a in (x, gamma, beta)]
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
    y = run(lambda: normalize("emulated", x, average[None], scale[None], beta))
    assert np.isfinite(y).any(0).tolist() == [False, False, True]
