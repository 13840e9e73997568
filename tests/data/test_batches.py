"""Batches: their order, their scale, and the same again after a resume."""

import itertools
import json

import numpy as np
import pytest

from minigan.data import Batches, DataError


def numbered(count: int, height: int = 2, width: int = 3) -> np.ndarray:
    """Images that are 255 in the first column, and else say their number: (N, H, W, 3), uint8."""
    images = np.empty((count, height, width, 3), np.uint8)
    images[:] = np.arange(count)[:, None, None, None]
    images[:, :, 0] = 255
    return images


def numbers(batch: np.ndarray) -> list[int]:
    """Which of the `numbered` images a batch with low 0, high 255 holds."""
    return batch[:, 0, 1, 0].astype(int).tolist()


def make(count: int = 10, batch_size: int = 3, seed: int = 0, **settings: object) -> Batches:
    return Batches(numbered(count), batch_size, seed, **{"low": 0.0, "high": 255.0} | settings)


SETTINGS = [
    {},
    {"flip": True},
    {"shuffle": False, "flip": True},
    {"replacement": True, "flip": True},
]


def test_a_batch_is_float32_of_the_right_shape() -> None:
    batch = next(make())
    assert batch.shape == (3, 2, 3, 3)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous


def test_an_epoch_passes_over_each_image_once_and_epochs_differ() -> None:
    batches = make(count=12)
    epochs = []
    for epoch in range(3):
        assert batches.epoch == epoch
        epochs.append([n for batch in itertools.islice(batches, batches.batches_per_epoch) for n in numbers(batch)])
        assert sorted(epochs[-1]) == list(range(12))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert list(range(12)) not in epochs


def test_the_last_short_batch_is_dropped() -> None:
    batches = make(count=11)
    assert batches.batches_per_epoch == 3
    drawn = [n for batch in itertools.islice(batches, 3) for n in numbers(batch)]
    assert batches.epoch == 1
    assert len(drawn) == len(set(drawn)) == 9


def test_without_shuffling_the_images_keep_their_order() -> None:
    batches = make(shuffle=False)
    assert [numbers(next(batches)) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]


def test_with_replacement_images_come_again_and_all_as_often() -> None:
    batches = make(batch_size=8, replacement=True)
    drawn = [numbers(next(batches)) for _ in range(1000)]
    assert any(len(set(batch)) < 8 for batch in drawn)
    assert drawn[0] != drawn[1]
    # 8,000 draws of 10: each 800, and 27 the standard deviation; 5 of them allowed.
    assert np.abs(np.bincount(np.concatenate(drawn)) - 800).max() < 135


@pytest.mark.parametrize("settings", [{}, {"replacement": True}])
def test_the_seed_decides(settings: dict[str, bool]) -> None:
    def draw(seed: int) -> list[list[int]]:
        batches = make(count=100, seed=seed, **settings)
        return [numbers(next(batches)) for _ in range(5)]

    assert draw(1) == draw(1)
    assert len({tuple(batch) for batch in draw(1)}) == 5
    assert draw(1) != draw(2)
    assert draw(2**64 + 1) != draw(1)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7, 9])
def test_a_resumed_run_sees_the_same_batches(settings: dict[str, bool], steps: int) -> None:
    whole = make(count=11, seed=5, **settings)
    for _ in range(steps):
        next(whole)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = make(count=11, seed=5, **settings)
    next(resumed)  # where it stood before does not matter
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for _ in range(8):
        np.testing.assert_array_equal(next(resumed), next(whole))


def test_the_state_says_where_the_batches_stand() -> None:
    batches = make(count=11)
    for _ in range(7):
        next(batches)
    assert batches.state_dict() == {"epoch": 2, "position": 1, "step": 7, "images": 11}


def test_a_state_of_other_data_is_refused() -> None:
    batches = make(count=11)
    with pytest.raises(
        ValueError, match="step 7 was epoch 1, batch 3; with these 11 images in batches of 3 it is epoch 2"
    ):
        batches.load_state_dict({"epoch": 1, "position": 3, "step": 7, "images": 11})
    with pytest.raises(ValueError, match="there were 12 images, and now there are 11"):  # in the first epoch, too
        batches.load_state_dict({"epoch": 0, "position": 2, "step": 2, "images": 12})


@pytest.mark.parametrize("settings", [{"flip": True}, {"flip": True, "replacement": True}])
def test_half_of_the_images_are_mirrored_whole(settings: dict[str, bool]) -> None:
    batches = make(count=100, batch_size=50, **settings)
    mirrored = 0
    for batch in itertools.islice(batches, 40):
        flipped = batch[:, 0, -1, 0] == 255
        mirrored += flipped.sum()
        assert (batch[flipped, :, -1] == 255).all()
        assert (batch[~flipped, :, 0] == 255).all()
        assert (batch[flipped, :, 0] == batch[flipped, :, 1]).all()
    # 2,000 coins: 1,000, and 22 the standard deviation; 5 of them allowed.
    assert abs(mirrored - 1000) < 112


def test_mirroring_does_not_change_the_images_nor_their_order() -> None:
    images = numbered(10)
    before = images.copy()
    flipped = Batches(images, 3, 0, flip=True, low=0, high=255)
    for batch, other in zip(itertools.islice(flipped, 9), make(), strict=False):
        assert numbers(batch) == numbers(other)
    np.testing.assert_array_equal(images, before)


def test_draw_is_all_that_is_random() -> None:
    batches, twin = make(flip=True), make(flip=True)
    for _ in range(5):
        indices, flips = twin.draw()
        images = numbered(10)[indices]
        images[flips] = images[flips, :, ::-1]
        np.testing.assert_array_equal(next(batches), images)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.3, 0.7)])
def test_the_ends_of_the_scale_are_exact(low: float, high: float) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    batch = next(Batches(images, 1, 0, low=low, high=high)).ravel()
    assert batch[0] == np.float32(low)
    assert batch[255] == np.float32(high)
    np.testing.assert_allclose(batch, low + np.arange(256) * ((high - low) / 255), atol=1e-7, rtol=0)


def test_the_default_scale_is_minus_one_to_one() -> None:
    batch = next(Batches(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1), 1, 0))
    assert batch.ravel().tolist() == [-1.0, 1.0]


def test_fewer_images_than_a_batch() -> None:
    with pytest.raises(
        DataError, match="2 images do not fill a batch of 3: add images, or choose a smaller batch size"
    ):
        make(count=2)
    assert len(next(make(count=3))) == 3


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (np.zeros((4, 2, 2, 3), np.float32), {}, r"not \(4, 2, 2, 3\) of float32"),
        (np.zeros((4, 2, 2), np.uint8), {}, r"not \(4, 2, 2\) of uint8"),
        (numbered(4), {"batch_size": 0}, "batch_size must be at least 1 .* not 0 and 0"),
        (numbered(4), {"seed": -1}, "seed at least 0, not 1 and -1"),
        (numbered(4), {"replacement": True, "shuffle": False}, "leave shuffle on"),
    ],
)
def test_wrong_arguments(images: np.ndarray, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(images, **{"batch_size": 1, "seed": 0} | settings)
