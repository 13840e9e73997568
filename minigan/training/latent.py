"""Ways through the space of z."""

import numpy as np

# Below this sine of the angle between two directions, they span no plane that rounding would leave intact.
NEARLY_PARALLEL = 1e-8


def slerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points on the way from a to b: (T, *shape), for a, b (shape) and t (T,) in [0, 1].   Shoemake, 1985.

    The direction turns evenly along the great circle, and the norm goes evenly from one to the other. Opposite
    directions have many great circles: one of them is taken. From or to zero, which has no direction, the way is
    straight.
    """
    # Half way along a straight line between two normal vectors, z has 0.7 of the norm that the generator has learned
    # from (White, "Sampling generative networks", 2016). The same holds for z uniform in (-1, 1), and there the norm
    # matters more than the bounds, beyond which a few coordinates go: the first layer sees nothing but weighted sums of
    # all coordinates, and those spread as the norm does.
    u, v = (x.astype(np.float64).ravel() for x in (a, b))
    t = np.asarray(t, np.float64)[:, None]
    norms = np.linalg.norm(u), np.linalg.norm(v)
    if min(norms) == 0:
        path = (1 - t) * u + t * v
    else:
        u, v = u / norms[0], v / norms[1]
        across = v - (u @ v) * u
        sine = np.linalg.norm(across)
        angle = np.arctan2(sine, u @ v)  # exact where the arc cosine is not, near 0 and pi
        across = across / sine if sine > NEARLY_PARALLEL else _perpendicular(u)
        path = (np.cos(t * angle) * u + np.sin(t * angle) * across) * ((1 - t) * norms[0] + t * norms[1])
    path = path.reshape(-1, *a.shape).astype(a.dtype)
    path[t[:, 0] == 0], path[t[:, 0] == 1] = a, b  # not as rounding would have them
    return path


def _perpendicular(u: np.ndarray) -> np.ndarray:
    """A unit vector at right angles to the unit vector u; zero in one dimension, where there is none."""
    axis = np.zeros_like(u)
    axis[np.abs(u).argmin()] = 1
    across = axis - (u @ axis) * u
    return across / (np.linalg.norm(across) or 1)


def closed_path(points: np.ndarray, frames: int) -> np.ndarray:
    """From each of the points (N, *z_shape) to the next, and from the last to the first: (N * frames, *z_shape).

    A leg has `frames` steps, and ends one step before the point with which the next one begins.
    """
    t = np.arange(frames) / frames
    return np.concatenate([slerp(a, b, t) for a, b in zip(points, np.roll(points, -1, axis=0), strict=True)])
