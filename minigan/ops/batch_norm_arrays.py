"""What batch normalisation does for each channel and not for each element, by array expressions, on any device.

On a GPU the kernels do most of it on the way; this is for batches that are shared out among ranks, and for the gradient
of a mean and a variance that are given.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minigan.backend import Array, array_module
from minigan.distributed import world


def update_running(
    average: Array,
    variance: Array,
    count: int,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
) -> None:
    """Averages mean and variance of one batch after the other, (groups, C), into the running ones, if there are any.

    count: from how many values each is.
    """
    unbiased = variance * (count / max(1, count - 1))
    for running, batches in ((running_mean, average), (running_var, unbiased)):
        if running is None:
            continue
        for batch in batches:
            running *= running.dtype.type(momentum)
            running += (batch * (1 - momentum)).astype(running.dtype)


def given_statistics(mean: Array, variance: Array, epsilon: float) -> tuple[Array, Array]:
    """average and inverse (1, C), in float64, of a mean and a variance (C,) that do not come from the batch."""
    return mean.astype(np.float64)[None], 1 / np.sqrt(variance.astype(np.float64)[None] + epsilon)


def given_gradients(gamma: Array, inverse: Array, totals: Array) -> tuple[Array, Array]:
    """The gradients of such a mean and variance, from those of gamma and beta."""
    scale = gamma * inverse[0]
    return (-scale * totals[1, 0]).astype(gamma.dtype), (-scale * inverse[0] * totals[0, 0] / 2).astype(gamma.dtype)


def over_ranks(
    statistics: Callable[..., tuple[Array, ...]],
    device: str,
    x: Array,
    gamma: Array,
    epsilon: float,
    groups: int,
    *running: Any,
) -> tuple[Array, ...]:
    """What `statistics` returns, for the batch of all ranks together. running: as of update_running."""
    average, variance, *_ = statistics(device, x, gamma, epsilon, groups)
    # In double: of its 16 digits, the difference of squares loses twice as many as the mean is larger than the
    # deviation, and where that is more than 4, float32 has not kept them in x either.
    both = world().mean(array_module(device).stack([average, variance + average**2]))
    average, variance = both[0], (both[1] - both[0] ** 2).clip(0)
    update_running(average, variance, round(x.size / (average.size * world().weight)), *running)
    inverse = (variance + epsilon) ** -0.5
    return average, variance, inverse, gamma * inverse


def excess(gamma: Array, inverse: Array, totals: Array, size: int) -> tuple[Array, Array]:
    """What the gradient gx of this rank lacks, as scale (x - average) + shift, each (groups, C).

    gx = gamma / sigma (g - gbeta / M - x^ ggamma / M), where ggamma and gbeta are means over the ranks; those of
    `gradients` are this rank's, which it returns as `totals`. size: of x.
    """
    more = (totals - world().mean(totals)) * (gamma * inverse * inverse.size / size)
    return more[0] * inverse, more[1].astype(gamma.dtype)
