"""batch.cu: a batch gathered on the device is minigan.data.Batches', bit for bit."""

import numpy as np
import pytest
from leaf_checks import fenced, run

from minigan.data.batches import Batches
from minigan.training import feed


def gather(images, indices, flips, table):
    """The batch, (batch, H, W, C), as float32."""
    return feed.gather(images, table, indices, flips, "emulated")


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (7, 5, 6, 3), (5, 19, 33, 1), (4, 2, 111, 3), (9, 16, 16, 3)])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.3, 0.7)])
def test_as_batches(shape, low, high):
    images = fenced(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    settings = {"seed": 3, "flip": True, "low": low, "high": high}
    theirs, drawn = Batches(images, 3, **settings), Batches(images, 3, **settings)
    table = np.linspace(low, high, 256, dtype=np.float32)
    mirrored = 0
    for _ in range(4):
        indices, flips = drawn.draw()
        mirrored += int(flips.sum())
        y = run(lambda indices=indices, flips=flips: gather(images, indices, flips, table))
        np.testing.assert_array_equal(y, next(theirs))
    assert 0 < mirrored < 12


def test_every_byte():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    y = run(lambda: gather(images, np.zeros(1, np.int64), np.zeros(1, np.bool_), table))
    np.testing.assert_array_equal(y.reshape(-1), table)


def test_index_outside_the_data_set_is_nan():
    images = np.zeros((3, 2, 5, 3), np.uint8)
    indices, flips = np.array([0, 2**31 - 1, 3, 3, 2]), np.array([0, 0, 0, 1, 1], np.bool_)
    y = run(lambda: gather(images, indices, flips, np.zeros(256, np.float32)))
    assert np.isnan(y).all((1, 2, 3)).tolist() == [False, True, True, True, False]


def test_a_batch_of_more_images_than_the_arguments_hold(monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (600, 2, 3, 1), np.uint8)
    theirs, drawn = Batches(images, 600, 5, flip=True), Batches(images, 600, 5, flip=True)
    launched = []
    launch = feed.launch
    monkeypatch.setattr(feed, "launch", lambda *given, **settings: launched.append(1) or launch(*given, **settings))
    y = gather(images, *drawn.draw(), theirs.table)
    np.testing.assert_array_equal(y, next(theirs))
    assert len(launched) == 2


def test_more_than_two_to_the_31_bytes():
    """Of memory that is reserved, but hardly touched."""
    images = np.zeros((2100, 1024, 1024, 1), np.uint8)
    images[-1, -1] = 200
    images[-1, -1, 0] = 100
    y = gather(images[:, :, :, :], np.array([2099]), np.array([False]), np.arange(256, dtype=np.float32))
    assert (y[0, -1, 0, 0], y[0, -1, 1, 0], y.sum()) == (100, 200, 100 + 1023 * 200)
