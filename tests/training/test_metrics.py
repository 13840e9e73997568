"""The sliced Wasserstein distance: zero for the same, growing with what differs, and at the scale where it does."""

import numpy as np
import pytest

from minigan.data import toys
from minigan.metrics import sliced_wasserstein


@pytest.fixture(scope="module")
def cats() -> np.ndarray:
    return toys.draw("cats", 96, 32, seed=0)


def test_zero_for_equal_sets_and_small_for_two_draws_of_one_kind(cats: np.ndarray) -> None:
    assert sliced_wasserstein(cats, cats) == [0, 0]
    near = sliced_wasserstein(cats[:48], cats[48:])
    far = sliced_wasserstein(cats[:48], np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8))
    assert 0 < max(near) < 0.3 * min(far)


def test_grows_with_noise_and_mostly_at_the_finest_level(cats: np.ndarray) -> None:
    noise = np.random.default_rng(0).standard_normal(cats.shape)
    distances = np.array([sliced_wasserstein(cats, cats + s * noise) for s in (5, 20, 80)])
    assert (np.diff(distances, axis=0) > 0).all()
    assert distances[0, 0] > 3 * distances[0, 1]


def test_sees_a_change_of_colour_at_the_coarsest_level(cats: np.ndarray) -> None:
    tinted = cats.astype(float) + np.array([40, 0, -40])
    fine, coarse = sliced_wasserstein(cats, tinted)
    assert coarse > 100
    assert fine < 0.1 * coarse


def test_the_same_numbers_each_time_and_any_common_scale(cats: np.ndarray) -> None:
    a, b = cats[:40], cats[50:90]
    first = sliced_wasserstein(a, b)
    assert first == sliced_wasserstein(a, b)
    np.testing.assert_allclose(first, sliced_wasserstein(a / 127.5 - 1, b / 127.5 - 1), rtol=1e-3)


def test_levels_follow_the_size() -> None:
    for size, levels in (((16, 16), 1), ((64, 48), 2), ((64, 64), 3)):
        images = np.random.default_rng(0).integers(0, 256, (4, *size, 3), np.uint8)
        assert len(sliced_wasserstein(images, images[::-1])) == levels


def test_shapes_that_do_not_agree() -> None:
    images = np.zeros((4, 32, 32, 3), np.uint8)
    for other in (images[:2], images[..., :1], images[:, :16]):
        with pytest.raises(ValueError, match=r"expected two sets \(N, H, W, 3\) of one shape"):
            sliced_wasserstein(images, other)
