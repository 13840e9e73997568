"""Batch normalisation over all axes but the last."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minigan.backend import Array, dispatch
from minigan.distributed import world
from minigan.ops import batch_norm_cpu, batch_norm_cuda
from minigan.ops.batch_norm_arrays import excess, given_gradients, given_statistics, over_ranks
from minigan.ops.leaky_relu import leaky_relu
from minigan.ops.mean_over_ranks import mean_over_ranks
from minigan.ops.moments import Known
from minigan.ops.place import ALONE, Place
from minigan.ops.reduce import mean
from minigan.tensor import Fused, Tensor, is_grad_enabled, tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]

# statistics(device, x, gamma, epsilon, groups, running_mean, running_var, momentum): of each group and channel,
# (groups, C), the mean, the biased variance, 1 / sqrt(variance + epsilon), and gamma times that; running statistics
# are updated along. Whatever takes a slope has a LeakyReLU of that slope behind it: 1 is none. On a GPU x and gy may
# have 16 bits, gx then has them as x does, and y if that is asked for last.
statistics = dispatch(cpu=batch_norm_cpu.statistics, cuda=batch_norm_cuda.statistics)
normalize = dispatch(cpu=batch_norm_cpu.normalize, cuda=batch_norm_cuda.normalize)
normalize_given = dispatch(cpu=batch_norm_cpu.normalize_given, cuda=batch_norm_cuda.normalize_given)
batch_norm_gradients = dispatch(cpu=batch_norm_cpu.gradients, cuda=batch_norm_cuda.gradients)


@dataclass
class BatchNorm(Fused):
    """(..., C), gamma (C,), beta (C,) -> (..., C): y = leaky(gamma (x - mean) / sqrt(variance + epsilon) + beta).

    Mean and variance are two more inputs (C,). Without them they are the batch's, for each channel, the variance
    biased; forward leaves them in `average` and `variance`, and averages them into `running`: mean, variance, momentum.
    Ioffe and Szegedy, "Batch normalization", 2015. leaky(v) = v if v > 0 else slope * v: most networks have a LeakyReLU
    behind it, and what lies between the two is then neither written nor kept. groups: x is so many batches, one after
    the other. synchronised: mean and variance are those of the batch as all ranks together have it.
    """

    epsilon: float = 1e-5
    slope: float = 1.0
    synchronised: bool = False
    groups: int = 1
    running: tuple[Array | None, Array | None, float] = (None, None, 0.0)
    half: bool = False  # whether the result may be kept in 16 bits
    known: Known | None = None  # moments of x that whoever computed it has left

    takes_half = (0,)

    def forward(self, x: Array, gamma: Array, beta: Array, *given: Array) -> Array:
        if given:
            return normalize_given(self.device, x, gamma, beta, *given, self.epsilon, self.slope, self.half)
        args = self.device, x, gamma, self.epsilon, self.groups, *self.running
        compute = partial(batch_norm_cuda.combined, self.known) if self.known else statistics
        self.known = None
        found = over_ranks(compute, *args) if self.synchronised else compute(*args)
        self.average, self.variance, self.inverse, scale = found
        return normalize(self.device, x, self.average, scale, beta, self.slope, self.half)

    def gradients(self, gy: Array) -> tuple[Array | None, ...]:
        x, gamma, beta, *given = (t.data if self.synchronised else t._data for t in self.inputs)
        known = given_statistics(given[0], given[1], self.epsilon) if given else (self.average, self.inverse)
        gx, *sums, totals = batch_norm_gradients(self.device, x, gamma, *known, gy, beta, self.slope, bool(given))
        if given:
            return gx, *sums, *given_gradients(gamma, known[1], totals)
        if self.synchronised:  # in float32, as more is added
            gx += normalize(self.device, x, self.average, *excess(gamma, self.inverse, totals, x.size))
        return gx, *sums

    def composed(self, *inputs: Tensor) -> Tensor:
        x, gamma, beta, *given = inputs

        def average(values: Tensor) -> Tensor:
            found = mean(values, 1, keepdims=True)
            return mean_over_ranks(found) if self.synchronised else found

        parts = x.reshape(self.groups, -1, x.shape[-1])
        centred = parts - (given[0] if given else average(parts))
        variance = given[1] if given else average(centred * centred)
        y = (centred * (gamma / (variance + self.epsilon).sqrt()) + beta).reshape(x.shape)
        return y if self.slope == 1 else leaky_relu(y, self.slope)

    @staticmethod
    def reference(  # of a single rank
        *inputs: np.ndarray, epsilon: float = 1e-5, slope: float = 1.0, synchronised: bool = False, groups: int = 1
    ) -> np.ndarray:
        x, gamma, beta, *given = inputs
        parts = x.reshape(groups, -1, x.shape[-1])
        average, variance = given or (parts.mean(1, keepdims=True), parts.var(1, keepdims=True))
        y = (gamma * (parts - average) / np.sqrt(variance + epsilon) + beta).reshape(x.shape)
        return np.where(y > 0, y, slope * y)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape, epsilon in (((2, 1), 1e-3), ((7, 19), 1e-5), ((2, 3, 5, 3), 1e-3), ((3, 7, 33, 1), 1e-5)):
            inputs = rng.normal(1, 2, shape), rng.uniform(0.5, 2, shape[-1:]), rng.standard_normal(shape[-1:])
            yield inputs, {"epsilon": epsilon, "synchronised": shape == (7, 19)}
        for shape in ((8, 19), (2, 3, 4, 7)):
            # Half of each channel near 1, half near -1, so that nothing is near the kink when it is normalised.
            signs = np.resize([1.0, -1.0], (int(np.prod(shape[:-1])), 1)).reshape(*shape[:-1], 1)
            c = shape[-1]
            x = signs * rng.uniform(0.8, 1.2, shape)
            inputs = x, rng.uniform(0.5, 2, c), rng.uniform(-0.1, 0.1, c)
            yield inputs, {"epsilon": 1e-3, "slope": 0.3, "groups": 2}
            yield (*inputs, rng.uniform(-0.1, 0.1, c), rng.uniform(0.5, 2, c)), {"epsilon": 1e-3, "slope": 0.3}


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    synchronised: bool = False,
    groups: int = 1,
) -> Tensor:
    """(N, ..., C) normalised for each channel over all other axes, times gamma (C,), plus beta (C,).

    training: by the batch's mean and variance; the running ones, (C,), are then updated in place, as in Keras:
    running = momentum * running + (1 - momentum) * batch, with the unbiased variance. Otherwise by the running ones.
    synchronised: the batch is that of all ranks of a data-parallel program together.
    groups: the N images are so many batches, one after the other, and treated as if each came by itself.
    Raises ValueError in training if there is only one value for each channel, whose variance is undefined.
    """
    settings = training, momentum, epsilon, synchronised, groups
    return placed_batch_norm(ALONE, x, gamma, beta, running_mean, running_var, *settings)


def placed_batch_norm(
    place: Place,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    synchronised: bool = False,
    groups: int = 1,
) -> Tensor:
    """As batch_norm, of a layer in a chain. The result is kept in 16 bits if it may be, and x is."""
    c = x.shape[-1:] or (0,)
    for name, t in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean), ("running_var", running_var)):
        if t is not None and t.shape != c:
            raise ValueError(f"batch_norm: expected {name} of shape {c} for an input of shape {x.shape}, got {t.shape}")
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: expected running_mean and running_var where training=False, got None")
        given = [running_mean.detach(), running_var.detach()]
        if is_grad_enabled():  # a later pass in training changes them, and backward still needs these
            given = [tensor(t, device=t.device) for t in given]
        return BatchNorm(epsilon, place.slope, half=place.half)(x, gamma, beta, *given)
    if groups < 1 or len(x) % groups:
        raise ValueError(f"batch_norm: expected as many images in each of {groups} groups, got an input of {x.shape}")
    if round(x.size // max(1, c[0] * groups) / (world().weight if synchronised else 1)) < 2:
        raise ValueError(f"batch_norm: expected at least 2 values for each channel in training, got {x.shape}")
    before = [None if t is None else t.data for t in (running_mean, running_var)]
    running, known = (before[0], before[1], momentum), place.moments.take(x, groups) if place.moments else None
    y = BatchNorm(epsilon, place.slope, synchronised, groups, running, place.half, known)(x, gamma, beta)
    for t in (running_mean, running_var):
        if t is not None:
            t.mark_changed()
    return y
