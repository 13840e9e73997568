"""Batch normalisation over all axes but the last."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, dispatch
from minigan.distributed import world
from minigan.ops import batch_norm_cpu, batch_norm_cuda
from minigan.ops.leaky_relu import leaky_relu
from minigan.ops.mean_over_ranks import mean_over_ranks
from minigan.ops.reduce import mean
from minigan.tensor import Fused, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]

# statistics(device, x, gamma, epsilon): of each channel the mean, the biased variance, 1 / sqrt(variance + epsilon),
# and gamma times that. Whatever takes a slope has a LeakyReLU of that slope behind it: 1 is none.
statistics = dispatch(cpu=batch_norm_cpu.statistics, cuda=batch_norm_cuda.statistics)
normalize = dispatch(cpu=batch_norm_cpu.normalize, cuda=batch_norm_cuda.normalize)
batch_norm_gradients = dispatch(cpu=batch_norm_cpu.gradients, cuda=batch_norm_cuda.gradients)
update_running = dispatch(cpu=batch_norm_cpu.update_running, cuda=batch_norm_cuda.update_running)


@dataclass
class BatchNorm(Fused):
    """(..., C), gamma (C,), beta (C,) -> (..., C): y = leaky(gamma (x - mean) / sqrt(variance + epsilon) + beta).

    Mean and (biased) variance are the batch's, for each channel; forward leaves them in `average` and `variance`.
    Ioffe and Szegedy, "Batch normalization", 2015. leaky(v) = v if v > 0 else slope * v: most networks have a LeakyReLU
    behind it, and what lies between the two is then neither written nor kept. synchronised: mean and variance are those
    of the batch as all ranks together have it.
    """

    epsilon: float = 1e-5
    slope: float = 1.0
    synchronised: bool = False

    def forward(self, x: Array, gamma: Array, beta: Array) -> Array:
        self.average, self.variance, self.inverse, scale = statistics(self.device, x, gamma, self.epsilon)
        if self.synchronised:
            # In double: of its 16 digits, the difference of squares loses twice as many as the mean is larger than the
            # deviation, and where that is more than 4, float32 has not kept them in x either.
            xp = array_module(self.device)
            both = world().mean(xp.stack([self.average, self.variance + self.average**2]))
            self.average, self.variance = both[0], (both[1] - both[0] ** 2).clip(0)
            self.inverse = (self.variance + self.epsilon) ** -0.5
            scale = gamma * self.inverse
        return normalize(self.device, x, self.average, scale, beta, self.slope)

    def gradients(self, gy: Array) -> tuple[Array | None, ...]:
        x, gamma, beta = (t.data for t in self.inputs)
        found = batch_norm_gradients(self.device, x, gamma, self.average, self.inverse, gy, beta, self.slope)
        return self._synchronised(x, gamma, *found) if self.synchronised else found

    def _synchronised(self, x: Array, gamma: Array, gx: Array, ggamma: Array, gbeta: Array) -> tuple[Array, ...]:
        """gx = gamma / sigma (g - gbeta / M - x^ ggamma / M), where ggamma and gbeta are means over the ranks."""
        here = array_module(self.device).stack([ggamma, gbeta]).astype(np.float64)
        excess = (here - world().mean(here)) * (gamma * self.inverse * x.shape[-1] / x.size)
        scale, shift = excess[0] * self.inverse, excess[1].astype(x.dtype)
        return gx + normalize(self.device, x, self.average, scale, shift), ggamma, gbeta

    def composed(self, *inputs: Tensor) -> Tensor:
        x, gamma, beta = inputs
        axes = tuple(range(x.ndim - 1))

        def average(values: Tensor) -> Tensor:
            return mean_over_ranks(mean(values, axes)) if self.synchronised else mean(values, axes)

        centred = x - average(x)
        y = centred * (gamma / (average(centred * centred) + self.epsilon).sqrt()) + beta
        return y if self.slope == 1 else leaky_relu(y, self.slope)

    @staticmethod
    def reference(
        x: np.ndarray,
        gamma: np.ndarray,
        beta: np.ndarray,
        epsilon: float = 1e-5,
        slope: float = 1.0,
        synchronised: bool = False,  # a single rank
    ) -> np.ndarray:
        axes = tuple(range(x.ndim - 1))
        y = gamma * (x - x.mean(axes)) / np.sqrt(x.var(axes) + epsilon) + beta
        return np.where(y > 0, y, slope * y)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape, epsilon in (((2, 1), 1e-3), ((7, 19), 1e-5), ((2, 3, 5, 3), 1e-3), ((3, 7, 33, 1), 1e-5)):
            c = shape[-1]
            yield (
                (
                    rng.standard_normal(shape) * 2 + 1,
                    rng.uniform(0.5, 2, c),
                    rng.standard_normal(c),
                ),
                {"epsilon": epsilon, "synchronised": shape == (7, 19)},
            )
        for shape in ((8, 19), (2, 3, 4, 7)):
            # Half of each channel near 1, half near -1, so that nothing is near the kink when it is normalised.
            signs = np.resize([1.0, -1.0], (int(np.prod(shape[:-1])), 1)).reshape(*shape[:-1], 1)
            c = shape[-1]
            x = signs * rng.uniform(0.8, 1.2, shape)
            yield (x, rng.uniform(0.5, 2, c), rng.uniform(-0.1, 0.1, c)), {"epsilon": 1e-3, "slope": 0.3}


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    slope: float = 1.0,
    synchronised: bool = False,
) -> Tensor:
    """(..., C) normalised for each channel over all other axes, times gamma (C,), plus beta (C,).

    training: by the batch's mean and variance; the running ones, (C,), are then updated in place, as in Keras:
    running = momentum * running + (1 - momentum) * batch, with the unbiased variance. Otherwise by the running ones.
    slope: of a LeakyReLU behind it, which costs next to nothing here; 1 is none.
    synchronised: the batch is that of all ranks of a data-parallel program together.
    Raises ValueError in training if there is only one value for each channel, whose variance is undefined.
    """
    c = x.shape[-1:] or (0,)
    for name, t in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean), ("running_var", running_var)):
        if t is not None and t.shape != c:
            raise ValueError(f"batch_norm: expected {name} of shape {c} for an input of shape {x.shape}, got {t.shape}")
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: expected running_mean and running_var where training=False, got None")
        scale = gamma / (running_var.detach() + epsilon).sqrt()
        y = x * scale + (beta - running_mean.detach() * scale)
        return y if slope == 1 else leaky_relu(y, slope)
    count = round(x.size // max(1, c[0]) / (world().weight if synchronised else 1))
    if count < 2:
        raise ValueError(
            f"batch_norm: expected at least 2 values for each channel in training, got an input of {x.shape}"
        )
    op = BatchNorm(epsilon, slope, synchronised)
    y = op(x, gamma, beta)
    running = [t for t in (running_mean, running_var) if t is not None]
    if running:
        arrays = (None if t is None else t.data for t in (running_mean, running_var))
        update_running(x.device, *arrays, op.average, op.variance, momentum, count)
    for t in running:
        t.mark_changed()
    return y
