"""Losses: binary cross-entropy on logits, and the mean absolute difference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, dispatch
from minigan.ops import losses_cuda
from minigan.ops.elementwise import abs
from minigan.ops.reduce import broadcast_to, mean
from minigan.ops.sigmoid import logistic, sigmoid
from minigan.tensor import Fused, Op, Operand, Tensor, as_tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


def _logistic_loss_cpu(z: Array, t: Array) -> Array:
    return np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))


logistic_loss = dispatch(cpu=_logistic_loss_cpu, cuda=losses_cuda.logistic_loss)


@dataclass
class LogisticLoss(Op):
    """y = max(z, 0) - z t + log(1 + e^-|z|) = -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)), elementwise.

    gz = gy (sigmoid(z) - t), gt = -gy z. In this form nothing overflows, and no precision is lost, for large logits.
    """

    def forward(self, z: Array, t: Array) -> Array:
        return logistic_loss(self.device, z, t)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        z, t = self.inputs
        return gy * (sigmoid(z) - t) if self.needed[0] else None, -gy * z if self.needed[1] else None

    @staticmethod
    def reference(z: np.ndarray, t: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-z))
        return -t * np.log(p) - (1 - t) * np.log(1 - p)

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((1, 1), (7, 1), (19,), (33, 3)):
            yield (rng.uniform(-4, 4, shape), rng.uniform(0, 1, shape)), {}


def _mean(y: Array) -> Array:
    return np.asarray(y.mean(dtype=np.float64), y.dtype)


def _mean_logistic_cpu(z: Array, t: Array) -> Array:
    return _mean(_logistic_loss_cpu(z, t))


def _mean_logistic_gradient_cpu(z: Array, t: Array, gy: Array) -> Array:
    return gy / z.size * (logistic(z) - t)


def _mean_l1_cpu(a: Array, b: Array) -> Array:
    return _mean(np.abs(a - b))


def _mean_l1_gradient_cpu(a: Array, b: Array, gy: Array) -> Array:
    return gy / a.size * np.sign(a - b)


mean_logistic = dispatch(cpu=_mean_logistic_cpu, cuda=losses_cuda.mean_logistic)
mean_logistic_gradient = dispatch(cpu=_mean_logistic_gradient_cpu, cuda=losses_cuda.mean_logistic_gradient)
mean_l1 = dispatch(cpu=_mean_l1_cpu, cuda=losses_cuda.mean_l1)
mean_l1_gradient = dispatch(cpu=_mean_l1_gradient_cpu, cuda=losses_cuda.mean_l1_gradient)


@dataclass
class MeanLogisticLoss(Fused):
    """The mean of LogisticLoss over all n elements.   gz = gy (sigmoid(z) - t) / n, gt = -gy z / n."""

    def forward(self, z: Array, t: Array) -> Array:
        return mean_logistic(self.device, z, t)

    def gradients(self, gy: Array) -> tuple[Array | None, ...]:
        z, t = (one.data for one in self.inputs)
        gz = mean_logistic_gradient(self.device, z, t, gy) if self.needed[0] else None
        return gz, gy / -z.size * z if self.needed[1] else None

    def composed(self, *inputs: Tensor) -> Tensor:
        return mean(LogisticLoss()(*inputs))

    @staticmethod
    def reference(z: np.ndarray, t: np.ndarray) -> np.ndarray:
        return LogisticLoss.reference(z, t).mean()

    samples = staticmethod(LogisticLoss.samples)


@dataclass
class MeanAbsoluteDifference(Fused):
    """The mean of |a - b| over all n elements.   ga = gy sign(a - b) / n, with sign 0 = 0; gb = -ga."""

    def forward(self, a: Array, b: Array) -> Array:
        return mean_l1(self.device, a, b)

    def gradients(self, gy: Array) -> tuple[Array | None, ...]:
        a, b = (one.data for one in self.inputs)
        return (
            mean_l1_gradient(self.device, a, b, gy) if self.needed[0] else None,
            mean_l1_gradient(self.device, b, a, gy) if self.needed[1] else None,
        )

    def composed(self, *inputs: Tensor) -> Tensor:
        a, b = inputs
        return mean(abs(a - b))

    @staticmethod
    def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.abs(a - b).mean()

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((1, 1), (7, 1), (19,), (33, 3)):
            b = rng.standard_normal(shape)
            yield (b + rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape), b), {}


def binary_cross_entropy_with_logits(logits: Tensor, target: Operand) -> Tensor:
    """The mean over all elements of -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)).

    logits z: any shape, before any sigmoid. target t: a tensor of that shape, or a number for all, in [0, 1].
    """
    t = as_tensor(target, logits)
    number = isinstance(t.data, np.generic)  # the loss takes it as it is
    if t.ndim == 0 and not number:
        t = broadcast_to(t, logits.shape)
    if t.shape != logits.shape and not number:
        raise ValueError(
            f"binary_cross_entropy_with_logits: expected a target of shape {logits.shape} or a number, got {t.shape}"
        )
    _expect_elements("binary_cross_entropy_with_logits", logits)
    return MeanLogisticLoss()(logits, t)


def l1_loss(a: Tensor, b: Operand) -> Tensor:
    """The mean over all elements of |a - b|; a and b have one shape."""
    b = as_tensor(b, a)
    if a.shape != b.shape:
        raise ValueError(f"l1_loss: expected two tensors of one shape, got {a.shape} and {b.shape}")
    _expect_elements("l1_loss", a)
    return MeanAbsoluteDifference()(a, b)


def _expect_elements(what: str, x: Tensor) -> None:
    if not x.size:
        raise ValueError(f"{what}: expected at least one element, got shape {x.shape}")
