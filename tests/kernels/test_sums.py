"""sums.cu against float64."""

from unittest import mock

import numpy as np
import pytest
from leaf_checks import DTYPES, assert_within, check_counters, eps, fenced, run, strided

import minigan as mg
import minigan.functional as F
from minigan.ops import column_sums as sums
from minigan.ops.column_sums import column_sums

# One column, odd numbers of them, a vector's, a block's and one more, and several tiles; few rows and many chunks.
SHAPES = [(1, 1), (1, 19), (5, 3), (111, 7), (1025, 1), (8193, 3), (4099, 6), (2100, 33), (257, 256), (33, 257)]
SHAPES += [(3001, 64), (65, 1024), (64, 1025), (40, 1030), (70, 2052), (512, 2304)]


def matrix(shape, dtype, seed=0):
    """Not of mean 0, so that a row that is lost or counted twice shows."""
    return fenced((1 + np.random.default_rng(seed).standard_normal(shape)).astype(dtype))


def tolerance(x):
    """At most 64 numbers are added in their own precision, each sum off by half a unit; the rest is double."""
    return eps(x.dtype) / 2 * 65 * np.abs(x.astype(np.float64)).sum(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_column_sums(shape, dtype):
    x = matrix(shape, dtype)
    y = run(lambda: column_sums("emulated", x, 3.0))
    assert_within(y, x.astype(np.float64).sum(0) / 3, tolerance(x) / 3)
    check_counters()


@pytest.mark.parametrize(("blocks", "least"), [(1, 1), (2, 1), (7, 1), (40, 2), (256, 1)])
@pytest.mark.parametrize("shape", [(513, 3), (300, 1028), (129, 259)])
def test_every_cut_gives_the_sums(shape, blocks, least):
    x = matrix(shape, "float32")
    with mock.patch.multiple(sums, BLOCKS=blocks, LEAST_ROWS=least):
        y = run(lambda: column_sums("emulated", x, 1.0))
    assert_within(y, x.astype(np.float64).sum(0), tolerance(x))


def test_long_columns_keep_their_digits():
    """5000 times 0.1 added up in float32 alone is off by 2e-5 of the sum, five times as much as is allowed here."""
    x = np.full((5000, 260), 0.1, np.float32)
    with mock.patch.object(sums, "BLOCKS", 1):
        y = column_sums("emulated", x, 1.0)
    assert_within(y, x.astype(np.float64).sum(0), tolerance(x))


@pytest.mark.parametrize(("shape", "vector", "fold"), [((8, 3), 4, 340), ((8, 5), 4, 204), ((64, 512), 4, 2)])
def test_vectors_are_taken_where_they_fit(shape, vector, fold):
    x = matrix(shape, "float32")
    assert sums._cut(x) == (vector, fold)
    assert sums._cut(x.astype(np.float64))[0] == 1
    memory = np.zeros(x.size + 1, np.float32)
    begin = (memory.ctypes.data % 16 == 0) * 1  # 4 bytes behind a multiple of 16
    assert sums._cut(memory[begin : begin + x.size].reshape(shape))[0] == 1


def test_a_vector_never_crosses_the_end():
    x = matrix((33, 3), "float32")  # 99 numbers
    assert sums._cut(x)[0] == 1


def test_nan_stays_in_its_column():
    x = np.ones((300, 5), np.float32)
    x[217, 3] = np.nan
    assert np.isnan(column_sums("emulated", x, 1.0)).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("axis", [None, 0, (0, 1), (0, 1, 2), (1, 2), 2])
def test_sums_and_means_on_the_emulator(axis):
    x = np.random.default_rng(1).standard_normal((7, 5, 19))
    for function, expected in ((F.sum, x.sum(axis)), (F.mean, x.mean(axis))):
        found = function(mg.tensor(strided(x), device="emulated"), axis)
        assert_within(found.numpy(), np.asarray(expected), 1e-13)
