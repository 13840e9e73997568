"""How alike generated images are: MS-SSIM, the multi-scale structural similarity.

Wang et al., "Multi-scale structural similarity for image quality assessment", 2003; as a measure of diversity: Odena
et al., "Conditional image synthesis with auxiliary classifier GANs", 2017. At each of five scales, each half as large
as the one before, contrast and structure are compared under a Gaussian window, and at the smallest the brightness too.

Five scales take 176 pixels. Smaller images have as many as leave the smallest one no smaller than the window: one from
11 pixels, two from 22, three from 44, four from 88; their weights are then scaled to the sum of all five. So the
numbers for images of different sizes do not compare.
"""

import numpy as np

WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # as published: their sum is 1.0001
WINDOW = 11
SIGMA = 1.5
# (0.01 * 255)^2 and (0.03 * 255)^2, against division by nearly zero.
C1, C2 = 6.5025, 58.5225
PAIRS_AT_ONCE = 16

_offsets = np.arange(WINDOW) - WINDOW // 2
_GAUSSIAN = np.exp(-(_offsets**2) / (2 * SIGMA**2))
_GAUSSIAN /= _GAUSSIAN.sum()


def ms_ssim_diversity(images: np.ndarray, pairs: int = 500, seed: int = 0) -> float:
    """The mean MS-SSIM of random pairs of different images, (N, H, W, 3) in uint8, N from 2.

    The lower, the more diverse; 1 where all images are the same. It says nothing without the number for real images
    beside it: noise is more diverse than either. Raises ValueError for images of another form.
    """
    _check(images)
    if len(images) < 2 or pairs < 1:
        raise ValueError(f"ms_ssim_diversity: expected at least 2 images and 1 pair, got {len(images)} and {pairs}")
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(images), pairs)
    second = (first + rng.integers(1, len(images), pairs)) % len(images)
    return float(ms_ssim(images[first], images[second]).mean())


def ms_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The similarity of each image to its partner: (N,) in [0, 1], the mean over the three colours.

    a, b: (N, H, W, 3) in uint8, H and W from 11. A mean contrast and structure below 0, as an image has with its own
    negative, counts as 0: it has no real power.
    """
    _check(a)
    _check(b)
    if a.shape != b.shape:
        raise ValueError(f"ms_ssim: expected two sets of one shape, got {a.shape} and {b.shape}")
    parts = [_of_a_few(a[i : i + PAIRS_AT_ONCE], b[i : i + PAIRS_AT_ONCE]) for i in range(0, len(a), PAIRS_AT_ONCE)]
    return np.concatenate([np.empty(0), *parts])


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < WINDOW:
        raise ValueError(
            f"ms_ssim: expected uint8 images (N, H, W, 3) of at least {WINDOW} x {WINDOW}, "
            f"got {images.dtype} {images.shape}"
        )


def _of_a_few(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = a.astype(np.float64), b.astype(np.float64)
    smallest = min(x.shape[1:3])
    scales = [i for i in range(len(WEIGHTS)) if smallest >> i >= WINDOW]
    weights = WEIGHTS[: len(scales)] * (WEIGHTS.sum() / WEIGHTS[: len(scales)].sum())
    similarity = np.ones((len(x), 3))
    for scale in scales:
        brightness, structure = _compared(x, y)
        factor = brightness * structure if scale == scales[-1] else structure
        similarity *= factor.mean((1, 2)).clip(0) ** weights[scale]
        x, y = _half(x), _half(y)
    return similarity.mean(1)


def _compared(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(brightness, contrast times structure), each (N, H - 10, W - 10, 3)."""
    mean_x, mean_y = _smooth(x), _smooth(y)
    spread = _smooth(x * x) + _smooth(y * y) - mean_x**2 - mean_y**2
    together = _smooth(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return brightness, (2 * together + C2) / (spread + C2)


def _smooth(images: np.ndarray) -> np.ndarray:
    """Under the Gaussian window, where all of it lies within the image."""
    h, w = images.shape[1] - WINDOW + 1, images.shape[2] - WINDOW + 1
    rows = sum(weight * images[:, i : i + h] for i, weight in enumerate(_GAUSSIAN))
    return sum(weight * rows[:, :, i : i + w] for i, weight in enumerate(_GAUSSIAN))


def _half(images: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    n, h, w, c = images.shape
    return images[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
