"""random.cu: the published test vectors of Philox4x32-10, the same numbers from NumPy, and their distributions."""

import math

import numpy as np
import pytest
from leaf_checks import DTYPES, REAL, assert_within, eps, run

import minigan as mg
from minigan.kernel_launch import launch

# Random123's kat_vectors: counter, key -> words.
VECTORS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


def test_published_vectors():
    table = np.array([[int(word, 16) for word in line.split()] for line in VECTORS.strip().splitlines()], np.uint32)
    counters, keys, expected = (np.ascontiguousarray(part) for part in np.split(table, [4, 6], axis=1))

    def work():
        words = np.full((4, 4), 7, np.uint32)  # one more than there are
        launch(
            "random.cu", "philox", 1, 32, [counters, keys, words[:3], 3], device="emulated", macros={"REAL": "float"}
        )
        return words

    words = run(work)
    np.testing.assert_array_equal(words[:3], expected)
    np.testing.assert_array_equal(words[3], 7)


def philox(seed, counter, count):
    """(count, 4) words, by NumPy's 64-bit integers."""
    counters = [(counter + i) % 2**64 for i in range(count)]
    words = np.zeros((4, count), np.uint64)
    words[0] = [c % 2**32 for c in counters]
    words[1] = [c >> 32 for c in counters]
    key0, key1 = seed % 2**32, seed >> 32
    low = np.uint64(2**32 - 1)
    for _ in range(10):
        a, b = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        thirty_two = np.uint64(32)
        words = np.stack(
            [
                (b >> thirty_two) ^ words[1] ^ np.uint64(key0),
                b & low,
                (a >> thirty_two) ^ words[3] ^ np.uint64(key1),
                a & low,
            ]
        )
        key0, key1 = (key0 + 0x9E3779B9) % 2**32, (key1 + 0xBB67AE85) % 2**32
    return words.T


def fractions(dtype, seed, counter, n):
    """n numbers of [0, 1), in float64, where the kernel's are exact."""
    words = philox(seed, counter, -(-n // (4 if dtype == "float32" else 2)))
    if dtype == "float32":
        return ((words >> np.uint64(8)).astype(np.float64) * 2.0**-24).reshape(-1)[:n]
    pairs = words.reshape(-1, 2)
    return ((pairs[:, 0] << np.uint64(32) | pairs[:, 1]) >> np.uint64(11)).astype(np.float64)[:n] * 2.0**-53


def draw(kernel, dtype, n, a, b, seed, counter, key=None):
    def work():
        y = np.empty(n, dtype)
        threads = -(-n // (4 if dtype == "float32" else 2))
        last = [float(np.nextafter(np.dtype(dtype).type(b), np.dtype(dtype).type(a)))] if kernel == "uniform" else []
        args = [y, float(a), float(b), *last, key, seed, counter, n]
        launch("random.cu", kernel, -(-threads // 256), 256, args, device="emulated", macros={"REAL": REAL[dtype]})
        return y

    return run(work)


SEEDS = [(0, 0), (1, 5), (2**63 + 12345, 2**32 - 3), (2**64 - 1, 2**64 - 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 19, 33, 111, 1025])
@pytest.mark.parametrize(("seed", "counter"), SEEDS)
def test_uniform_is_numpys(seed, counter, n, dtype):
    """To the last bit: 2 u - 1 is exact."""
    y = draw("uniform", dtype, n, -1, 1, seed, counter)
    np.testing.assert_array_equal(y, 2 * fractions(dtype, seed, counter, n) - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 19, 34, 1025])
@pytest.mark.parametrize(("seed", "counter"), SEEDS)
def test_normal_is_box_and_mullers(seed, counter, n, dtype):
    y = draw("normal", dtype, n, 0.5, 2, seed, counter)
    u = fractions(dtype, seed, counter, n + n % 2)
    radius, angle = np.sqrt(-2 * np.log1p(-u[::2])), 2 * np.pi * u[1::2]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:n]
    # The radius is at most sqrt(2 * 53 ln 2) = 8.6, and a few roundings of the product are allowed.
    assert_within(y, 0.5 + 2 * expected, 8 * eps(dtype) * (1 + np.abs(2 * expected).max()))


def test_uniform_stays_below_its_end():
    """Between 1 and the number after it there is none: rounding would give the end to half of all."""
    high = np.nextafter(np.float32(1), np.float32(2))
    np.testing.assert_array_equal(draw("uniform", "float32", 111, 1, high, 3, 0), np.float32(1))


@pytest.mark.parametrize("kernel", ["uniform", "normal"])
def test_a_key_in_memory_is_the_seed(kernel):
    key = np.array([2**63 + 12345], np.uint64)
    expected = draw(kernel, "float32", 111, -1, 1, 2**63 + 12345, 7)
    np.testing.assert_array_equal(draw(kernel, "float32", 111, -1, 1, 1, 7, key), expected)


def test_counters_continue():
    whole = draw("uniform", "float32", 64, -1, 1, 3, 100)
    np.testing.assert_array_equal(whole[32:], draw("uniform", "float32", 32, -1, 1, 3, 108))
    assert not np.intersect1d(whole, draw("uniform", "float32", 64, -1, 1, 4, 100)).size
    assert np.unique(whole).size == 64


@pytest.mark.parametrize("dtype", DTYPES)
def test_distributions(dtype):
    """Five standard deviations of each estimate; the numbers are always the same, so no luck is needed."""
    n = 40_000
    uniform, normal = draw("uniform", dtype, n, -1, 1, 7, 0), draw("normal", dtype, n, 0, 1, 7, 0)
    assert uniform.min() >= -1
    assert uniform.max() < 1
    for x, variance, fourth in ((uniform, 1 / 3, 1 / 5), (normal, 1, 3)):
        x = x.astype(np.float64)
        assert abs(x.mean()) <= 5 * math.sqrt(variance / n)
        assert abs((x**2).mean() - variance) <= 5 * math.sqrt((fourth - variance**2) / n)
        for lag in (1, 2, 3, 4, 1024):
            assert abs((x[lag:] * x[:-lag]).mean()) <= 5 * variance / math.sqrt(n - lag)
    # Kolmogorov and Smirnov: sqrt(n) times the largest distance is below 1.95 with probability 0.999.
    erf = np.vectorize(math.erf)
    for x, cumulative in ((uniform, lambda x: (x + 1) / 2), (normal, lambda x: (1 + erf(x / math.sqrt(2))) / 2)):
        distance = np.abs(cumulative(np.sort(x.astype(np.float64))) - (np.arange(n) + 0.5) / n).max()
        assert math.sqrt(n) * distance <= 1.95


@pytest.mark.parametrize(("draw_tensor", "kernel"), [(mg.random.uniform, "uniform"), (mg.random.normal, "normal")])
def test_a_tensor_is_drawn_on_its_device_under_a_key_from_the_one_generator(draw_tensor, kernel):
    """The same again from the same seed or state; each draw another; what the CPU then draws follows from both."""
    mg.manual_seed(5)
    key = int(np.random.Generator(np.random.Philox(5)).integers(2**64, dtype=np.uint64))
    first = draw_tensor((3, 5, 7), -1.0, 2.0, "emulated")
    assert (first.shape, first.dtype, first.device) == ((3, 5, 7), np.float32, "emulated")
    np.testing.assert_array_equal(first.numpy().ravel(), draw(kernel, "float32", 105, -1, 2, key, 0))
    state = mg.random.get_state()
    second = [draw_tensor((1025,), -1.0, 2.0, "emulated").numpy(), draw_tensor((9,), -1.0, 2.0, "cpu").numpy()]
    assert not np.intersect1d(first.numpy(), second[0]).size
    mg.random.set_state(state)
    again = [draw_tensor((1025,), -1.0, 2.0, "emulated").numpy(), draw_tensor((9,), -1.0, 2.0, "cpu").numpy()]
    for a, b in zip(second, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert draw_tensor((0, 3), -1.0, 2.0, "emulated").shape == (0, 3)
    assert draw_tensor((), -1.0, 2.0, "emulated").shape == ()
