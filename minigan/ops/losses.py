"""Losses: binary cross-entropy on logits, and the mean absolute difference."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, contiguous, dispatch
from minigan.kernel_launch import launch_elements
from minigan.ops.elementwise import abs
from minigan.ops.reduce import broadcast_to, mean
from minigan.ops.sigmoid import sigmoid
from minigan.tensor import Op, Operand, Tensor, as_tensor


def _logistic_loss_cpu(z: Array, t: Array) -> Array:
    return np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))


def _logistic_loss_cuda(device: str, z: Array, t: Array) -> Array:
    y = array_module(device).empty(z.shape, z.dtype)
    launch_elements("losses.cu", "logistic_loss", y.size, [*contiguous(device, z, t), y], device=device, dtype=z.dtype)
    return y


logistic_loss = dispatch(cpu=_logistic_loss_cpu, cuda=_logistic_loss_cuda)


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
    def samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
        for shape in ((1, 1), (7, 1), (19,), (33, 3)):
            yield (rng.uniform(-4, 4, shape), rng.uniform(0, 1, shape)), {}


def binary_cross_entropy_with_logits(logits: Tensor, target: Operand) -> Tensor:
    """The mean over all elements of -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)).

    logits z: any shape, before any sigmoid. target t: a tensor of that shape, or a number for all, in [0, 1].
    """
    t = as_tensor(target, logits)
    if t.ndim == 0:
        t = broadcast_to(t, logits.shape)
    if t.shape != logits.shape:
        raise ValueError(
            f"binary_cross_entropy_with_logits: expected a target of shape {logits.shape} or a number, got {t.shape}"
        )
    return mean(LogisticLoss()(logits, t))


def l1_loss(a: Tensor, b: Operand) -> Tensor:
    """The mean over all elements of |a - b|; a and b have one shape."""
    b = as_tensor(b, a)
    if a.shape != b.shape:
        raise ValueError(f"l1_loss: expected two tensors of one shape, got {a.shape} and {b.shape}")
    return mean(abs(a - b))
