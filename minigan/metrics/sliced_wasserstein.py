"""How near generated images are to real ones: the sliced Wasserstein distance.

Karras et al., "Progressive growing of GANs", 2018, section 5: images become Laplacian pyramids (Burt and Adelson,
1983), small patches are cut from each level, and the two clouds of patches are compared along random directions, where
the Wasserstein distance is the mean difference of the sorted projections. Each level tells of one scale: the last of
the large forms and colours, the first of the finest detail.
"""

import numpy as np

PATCH = 7
PATCHES_PER_IMAGE = 64
DIRECTIONS = 256
SMALLEST_LEVEL = 16

_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def sliced_wasserstein(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> list[float]:
    """The distance at each level of the pyramid, the finest first; 0 for equal sets.

    In units of the patches' deviation, times 1000.

    real, fake: (N, H, W, 3), any range that both share (uint8 included), N the same in both, H and W at least 7.
    Patches are normalised by the mean and deviation of each colour in the *real* patches, so a set that is too dark,
    or has too little contrast, is far away. Raises ValueError for shapes that do not agree.
    """
    if real.ndim != 4 or real.shape != fake.shape or real.shape[3] != 3 or min(real.shape[1:3]) < PATCH:
        raise ValueError(
            f"sliced_wasserstein: expected two sets (N, H, W, 3) of one shape, at least {PATCH} x {PATCH}, "
            f"got {real.shape} and {fake.shape}"
        )
    rng = np.random.default_rng(seed)
    levels = zip(_pyramid(real.astype(np.float32)), _pyramid(fake.astype(np.float32)), strict=True)
    return [_distance(a, b, rng) for a, b in levels]


def _distance(real: np.ndarray, fake: np.ndarray, rng: np.random.Generator) -> float:
    cut = _random_corners(real.shape, rng)
    patches = [_patches(images, *cut) for images in (real, fake)]
    mean = patches[0].mean((0, 1), keepdims=True)
    deviation = patches[0].std((0, 1), keepdims=True) + 1e-8
    clouds = [((p - mean) / deviation).reshape(len(p), -1) for p in patches]
    directions = rng.standard_normal((clouds[0].shape[1], DIRECTIONS)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    a, b = (np.sort(cloud @ directions, axis=0) for cloud in clouds)
    return float(np.abs(a - b).mean()) * 1000


def _random_corners(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, h, w, _ = shape
    size = n * PATCHES_PER_IMAGE
    return (
        np.repeat(np.arange(n), PATCHES_PER_IMAGE),
        rng.integers(0, h - PATCH + 1, size),
        rng.integers(0, w - PATCH + 1, size),
    )


def _patches(images: np.ndarray, image: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(patches, PATCH * PATCH, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), (1, 2))
    return windows[image, top, left].transpose(0, 2, 3, 1).reshape(len(image), PATCH * PATCH, 3)


def _pyramid(images: np.ndarray) -> list[np.ndarray]:
    """Differences between an image and its blurred half, level by level; the last level is the small image itself."""
    levels = []
    while min(images.shape[1:3]) >= 2 * SMALLEST_LEVEL:
        small = _blur(images, _BINOMIAL)[:, ::2, ::2]
        large = np.zeros_like(images)
        large[:, ::2, ::2] = small
        levels.append(images - _blur(large, _BINOMIAL * 2))
        images = small
    return [*levels, images]


def _blur(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A separable filter of five taps over height and width, mirrored at the borders."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    h, w = images.shape[1:3]
    rows = sum(weight * padded[:, i : i + h] for i, weight in enumerate(weights))
    return sum(weight * rows[:, :, i : i + w] for i, weight in enumerate(weights))
