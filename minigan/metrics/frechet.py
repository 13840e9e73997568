"""How near generated images are to real ones: the Fréchet distance between the features of a network.

Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017. The features
of each set are taken for a Gaussian; the distance between two Gaussians has a closed form (Dowson and Landau, 1982).

The published numbers are of one network, Inception-v3 with its 2,048 pooled features; minigan has no network of that
kind, so the user supplies one. Distances compare only where the network, its preprocessing and N are the same. With
few images the distance is too large (Bińkowski et al., "Demystifying MMD GANs", 2018), and falls as N grows, so two
generators are compared at one N: 10,000 or more in articles, and more than the features have dimensions at least, below
which the covariances are singular.
"""

from collections.abc import Callable

import numpy as np


def fid(
    real: np.ndarray, fake: np.ndarray, features: Callable[[np.ndarray], np.ndarray], batch_size: int = 64
) -> float:
    """The Fréchet distance between two sets of images, (N, H, W, 3) in uint8; N may differ.

    features: what a network sees in a batch of at most batch_size such images, (n, D). Raises ValueError for images
    or features of another form.
    """
    for images in (real, fake):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"fid: expected uint8 images (N, H, W, 3), got {images.dtype} {images.shape}")

    def seen(images: np.ndarray) -> np.ndarray:
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        found = [np.asarray(features(batch)) for batch in batches]
        for batch, rows in zip(batches, found, strict=True):
            if rows.ndim != 2 or len(rows) != len(batch):
                raise ValueError(f"fid: expected features ({len(batch)}, D) of {len(batch)} images, got {rows.shape}")
        return np.concatenate(found) if found else np.empty((0, 0))

    return frechet_distance(seen(real), seen(fake))


def frechet_distance(real_features: np.ndarray, fake_features: np.ndarray) -> float:
    """|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^1/2), by means m and covariances C of features (N, D); 0 for equal sets.

    N may differ, and is at least 2. Computed in float64. Raises ValueError for other shapes, and for features that are
    not finite.
    """
    sets = [np.asarray(features, np.float64) for features in (real_features, fake_features)]
    shapes = " and ".join(str(x.shape) for x in sets)
    if any(x.ndim != 2 or len(x) < 2 or x.shape[1] < 1 for x in sets) or sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(f"frechet_distance: expected two sets (N, D) with one D, N from 2, got {shapes}")
    if not all(np.isfinite(x).all() for x in sets):
        raise ValueError(f"frechet_distance: expected finite features, got NaN or infinity in {shapes}")
    means = [x.mean(0) for x in sets]
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in sets]
    # With symmetric roots R of C, trace (C1 C2)^1/2 = trace (R1 C2 R1)^1/2, the sum of the singular values of R1 R2:
    # no root of a matrix that is not symmetric, which would come out complex where rounding has made it so.
    overlap = np.linalg.norm(_root(covariances[0]) @ _root(covariances[1]), "nuc")
    distance = ((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * overlap
    return max(float(distance), 0.0)  # below 0 by rounding alone


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a symmetric matrix that has no negative eigenvalues but by rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
