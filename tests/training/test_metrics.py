"""The metrics: zero, or one, for the same; growing, or falling, with what differs; and the closed forms they have."""

from collections.abc import Callable

import numpy as np
import pytest

from minigan.data import toys
from minigan.metrics import fid, frechet_distance, ms_ssim, ms_ssim_diversity, sliced_wasserstein


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


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Features (count, D) whose sample mean and covariance are these exactly."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def covariance(size: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((size, 2 * size))
    return a @ a.T / size


def test_frechet_of_gaussians_whose_distance_is_known() -> None:
    eye, far = np.eye(4), np.array([3.0, 0, 4, 0])
    # Means alone; deviations alone, where the distance is the sum of (s1 - s2)^2; both, in turned axes.
    assert frechet_distance(with_moments(0 * far, eye, 50, 0), with_moments(far, eye, 70, 1)) == pytest.approx(25)
    s1, s2 = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 1, 0.5])
    expected = ((s1 - s2) ** 2).sum()
    sets = [with_moments(0 * far, np.diag(s**2), 50, i) for i, s in enumerate((s1, s2))]
    assert frechet_distance(*sets) == pytest.approx(expected)
    turn, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((4, 4)))
    assert frechet_distance(sets[0] @ turn, (sets[1] + far) @ turn) == pytest.approx(25 + expected)
    # One dimension.
    one, other = np.array([[0.0], [2]]), np.array([[1.0], [7]])  # deviations 2**0.5 and 18**0.5
    assert frechet_distance(one, other) == pytest.approx(9 + (18**0.5 - 2**0.5) ** 2)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    c1, c2 = covariance(6, 0), covariance(6, 1)
    assert np.abs(c1 @ c2 - c2 @ c1).max() > 0.1
    # The eigenvalues of C1 C2 itself, which is not symmetric; their roots sum to the trace of its root.
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).real).sum()
    expected = np.trace(c1) + np.trace(c2) - 2 * roots
    a, b = with_moments(np.zeros(6), c1, 40, 2), with_moments(np.zeros(6), c2, 30, 3)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


@pytest.mark.parametrize("count", [20, 400])
def test_frechet_is_zero_for_equal_sets_also_where_covariances_are_singular(count: int) -> None:
    x = np.random.default_rng(0).standard_normal((count, 50)) * 10 + 5
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x.astype(np.float32), x.astype(np.float32)) == pytest.approx(0, abs=1e-9)


def test_frechet_is_too_large_for_few_images() -> None:
    rng = np.random.default_rng(0)
    distances = [frechet_distance(*rng.standard_normal((2, n, 20))) for n in (30, 300, 3000)]
    assert distances[0] > 5 * distances[1] > 25 * distances[2] > 0


def test_frechet_refuses_what_is_no_pair_of_sets_of_features() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3))
    for a, b in ((x, x[:, :2]), (x, x[:1]), (x[0], x[0]), (x[:, :0], x[:, :0])):
        with pytest.raises(
            ValueError, match=r"frechet_distance: expected two sets \(N, D\) with one D, N from 2, got "
        ):
            frechet_distance(a, b)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="expected finite features"):
            frechet_distance(x, np.where(x == x[0, 0], bad, x))


def test_fid_takes_the_features_of_all_images_in_batches(cats: np.ndarray) -> None:
    sizes = []

    def colours(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        sizes.append(len(images))
        return images.mean((1, 2))

    real, fake = cats[:50], cats[50:] // 2
    expected = frechet_distance(real.mean((1, 2)), fake.mean((1, 2)))
    assert fid(real, fake, colours, batch_size=20) == pytest.approx(expected)
    assert sizes == [20, 20, 10, 20, 20, 6]
    assert fid(real, real, colours) == pytest.approx(0, abs=1e-9)
    assert fid(real, cats[50:], colours) < 0.1 * expected


@pytest.mark.parametrize(
    ("features", "got"),
    [(lambda x: x, r"\(8, 32, 32, 3\)"), (lambda x: x[0, 0], r"\(32, 3\)"), (lambda x: x[:1, 0, 0], r"\(1, 3\)")],
)
def test_fid_refuses_features_of_another_form(
    cats: np.ndarray, features: Callable[[np.ndarray], np.ndarray], got: str
) -> None:
    with pytest.raises(ValueError, match=r"fid: expected features \(8, D\) of 8 images, got " + got):
        fid(cats[:8], cats[8:16], features)


def test_fid_refuses_other_images(cats: np.ndarray) -> None:
    for images in (cats / 255, cats[0], cats[..., :1]):
        with pytest.raises(ValueError, match=r"fid: expected uint8 images \(N, H, W, 3\), got "):
            fid(cats, images, lambda x: x.mean((1, 2)))


def slow_ms_ssim(a: np.ndarray, b: np.ndarray, scales: int) -> float:
    """Of one pair of images, from the definition: window by window, colour by colour."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights * 1.0001 / weights.sum()
    distance = np.arange(-5, 6)
    window = np.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    colours = []
    for colour in range(3):
        x, y = a[..., colour].astype(float), b[..., colour].astype(float)
        product = 1.0
        for scale in range(scales):
            ssim, structure = [], []
            for i, j in np.ndindex(x.shape[0] - 10, x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                together = (window * (p - mp) * (q - mq)).sum()
                structure.append((2 * together + c2) / (vp + vq + c2))
                ssim.append(structure[-1] * (2 * mp * mq + c1) / (mp**2 + mq**2 + c1))
            product *= max(np.mean(ssim if scale == scales - 1 else structure), 0) ** weights[scale]
            h, w = x.shape[0] // 2, x.shape[1] // 2
            x, y = (
                np.array([[z[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(w)] for i in range(h)])
                for z in (x, y)
            )
        colours.append(product)
    return float(np.mean(colours))


@pytest.mark.parametrize(("size", "scales"), [((11, 21), 1), ((22, 27), 2), ((43, 30), 2), ((45, 44), 3)])
def test_ms_ssim_is_its_definition(size: tuple[int, int], scales: int) -> None:
    rng = np.random.default_rng(0)
    # Two random, two near each other, one and its negative.
    a = rng.integers(0, 256, (3, *size, 3), np.uint8)
    b = np.stack([rng.integers(0, 256, (*size, 3), np.uint8), a[1] // 2 + 40, 255 - a[2]])
    expected = [slow_ms_ssim(x, y, scales) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ms_ssim(a, b), expected, rtol=1e-9, atol=1e-12)
    assert expected[1] > 0.5
    assert expected[2] == 0


def test_ms_ssim_of_equal_images_is_one_and_falls_with_noise(cats: np.ndarray) -> None:
    assert ms_ssim(cats, cats) == pytest.approx(1, abs=1e-12)
    noise = np.random.default_rng(0).standard_normal(cats.shape)
    noisy = [ms_ssim(cats, (cats + s * noise).clip(0, 255).astype(np.uint8)).mean() for s in (5, 20, 80)]
    assert 1 > noisy[0] > noisy[1] > noisy[2] > 0
    assert ms_ssim(cats[:20], cats[20:40]) == pytest.approx(ms_ssim(cats[20:40], cats[:20]))


def test_ms_ssim_uses_five_scales_from_176_pixels() -> None:
    # Stripes one pixel wide, and their negative: they differ at the finest scale alone; the coarser ones see grey.
    stripes = np.zeros((1, 176, 176, 3), np.uint8)
    stripes[:, :, ::2] = 255
    for size, weight in ((176, 0.0448), (175, 0.0448 * 1.0001 / (1.0001 - 0.1333))):
        a = stripes[:, :size, :176]
        faint = (127 + a // 255).astype(np.uint8)  # a deviation of half a step, near the constants
        opposite = (128 - a // 255).astype(np.uint8)
        structure = (2 * -0.25 + 58.5225) / (2 * 0.25 + 58.5225)
        assert ms_ssim(faint, opposite)[0] == pytest.approx(structure**weight, rel=1e-8)


def test_diversity_is_one_after_a_collapse_and_low_for_noise(cats: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    collapsed = ms_ssim_diversity(np.repeat(cats[:1], 20, axis=0), pairs=30)
    drawn, random = ms_ssim_diversity(cats, pairs=100), ms_ssim_diversity(noise, pairs=100)
    assert collapsed == pytest.approx(1, abs=1e-12)
    assert random < 0.1 < drawn < 0.9
    assert ms_ssim_diversity(cats, pairs=100) == drawn
    assert ms_ssim_diversity(cats, pairs=100, seed=1) != drawn


def test_diversity_compares_no_image_with_itself() -> None:
    two = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert ms_ssim_diversity(two, pairs=20) == pytest.approx(ms_ssim(two[:1], two[1:])[0])


def test_ms_ssim_refuses_other_images(cats: np.ndarray) -> None:
    for images in (cats / 255, cats[0], cats[..., :1], cats[:, :10]):
        with pytest.raises(ValueError, match=r"ms_ssim: expected uint8 images \(N, H, W, 3\) of at least 11 x 11, got"):
            ms_ssim(images, images)
        with pytest.raises(ValueError, match="expected uint8 images"):
            ms_ssim_diversity(images)
    with pytest.raises(ValueError, match="expected two sets of one shape"):
        ms_ssim(cats, cats[1:])
    with pytest.raises(ValueError, match="expected at least 2 images and 1 pair, got 1 and 500"):
        ms_ssim_diversity(cats[:1])
