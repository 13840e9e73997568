"""ELU, the activation of BEGAN."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, dispatch
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.ops.elements import element_kernel, element_loop
from minigan.tensor import Op, Tensor

Samples = Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]


# NumPy's exponential takes several elements at once, which a loop compiled by Numba does not. It is called for so many,
# which stay in a core's cache until they are read again.
CHUNK = 65_536


@jit
def _choose_loop(start, stop, x, alpha, y):  # type: ignore[no-untyped-def]
    """y, which is e^x - 1, becomes x where that is positive, and alpha y elsewhere."""
    for i in range(np.uintp(start), np.uintp(stop)):
        below = alpha * y[i]
        y[i] = x[i] if x[i] > 0 else below


def _elu_cpu(x: Array, alpha: float) -> Array:
    y = np.empty(x.shape, x.dtype)
    source, target, factor = np.ascontiguousarray(x).reshape(-1), y.reshape(-1), x.dtype.type(alpha)

    def share(start: int, stop: int) -> None:
        with np.errstate(over="ignore"):  # of large positive x, where it is not used
            for first in range(start, stop, CHUNK):
                last = min(first + CHUNK, stop)
                np.expm1(source[first:last], out=target[first:last])
                _choose_loop(first, last, source, factor, target)

    parallel(share, x.size, grain=ELEMENTS_PER_THREAD)
    return y


@jit
def _elu_grad_loop(start, stop, y, gy, alpha, gx):  # type: ignore[no-untyped-def]
    for i in range(np.uintp(start), np.uintp(stop)):
        gx[i] = gy[i] if y[i] > 0 else gy[i] * (y[i] + alpha)


elu_forward = dispatch(cpu=_elu_cpu, cuda=element_kernel("elu.cu", "elu", 1, half=True))
elu_grad = dispatch(cpu=element_loop(_elu_grad_loop, 1), cuda=element_kernel("elu.cu", "elu_gradient", 1, half=True))


@dataclass
class ELU(Op):
    """y = x if x > 0 else alpha (e^x - 1).   gx = gy if y > 0 else gy (y + alpha).   Clevert et al., 2015."""

    alpha: float = 1.0

    saved_inputs = ()
    keeps_output = True
    takes_half = (0,)

    def forward(self, x: Array) -> Array:
        self.y = elu_forward(self.device, x, self.alpha)
        return self.y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (ELUGrad(self.alpha)(self.output(self.y), gy),)

    @staticmethod
    def reference(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
        return np.where(x > 0, x, alpha * np.expm1(x))

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((1,), (7, 19), (2, 3, 3, 5)):
            yield (rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape),), {"alpha": 1.0}
        yield (rng.uniform(0.1, 2.0, (33,)) * rng.choice([-1.0, 1.0], 33),), {"alpha": 0.7}


@dataclass
class ELUGrad(Op):
    """gx = gy if y > 0 else gy (y + alpha).   For a cotangent u of gx: gy gets the same of u,

    and y gets u gy where y <= 0.
    """

    alpha: float

    takes_half = (0, 1)

    def forward(self, y: Array, gy: Array) -> Array:
        return elu_grad(self.device, y, gy, self.alpha)

    def backward(self, u: Tensor) -> tuple[Tensor | None, ...]:
        y, gy = self.inputs
        negative = array_module(self.device).asarray(y.data <= 0, dtype=y.dtype)
        return (
            u * gy * Tensor(negative, device=self.device) if self.needed[0] else None,
            ELUGrad(self.alpha)(y, u) if self.needed[1] else None,
        )

    @staticmethod
    def reference(y: np.ndarray, gy: np.ndarray, alpha: float) -> np.ndarray:
        return np.where(y > 0, gy, gy * (y + alpha))

    @staticmethod
    def samples(rng: np.random.Generator) -> Samples:
        for shape in ((7, 19), (1, 33)):
            y = rng.uniform(0.1, 0.9, shape) * rng.choice([-1.0, 1.0], shape)
            yield (y, rng.standard_normal(shape)), {"alpha": 1.0}


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where it is positive, alpha * (e^x - 1) elsewhere; alpha must be positive."""
    if not alpha > 0:
        raise ValueError(f"elu: expected a positive alpha, got {alpha}")
    return ELU(alpha)(x)
