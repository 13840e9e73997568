"""The matrix product."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.backend import Array, contiguous, dispatch
from minigan.cpu import one_blas_thread, parallel_each
from minigan.kernel_launch import launch_elements
from minigan.ops import matmul_cuda
from minigan.ops.leaky_relu import ScaleNegative, scale_negative
from minigan.ops.reduce import sum, sum_to
from minigan.tensor import Op, Operand, Tensor, as_tensor, tensor_method

# A product of at least so many multiplications is cut into so many pieces along its longer side, for as many threads.
# How it is cut depends on the shape alone.
WORTH_CUTTING = 1 << 20
PIECES = 8


def _product_cpu(a: Array, b: Array) -> Array:
    with one_blas_thread():
        if a.ndim > 2 or b.ndim > 2 or a.size * b.shape[1] < WORTH_CUTTING:
            return a @ b
        y = np.empty((len(a), b.shape[1]), a.dtype)
        longer = max(y.shape)
        pieces = [slice(longer * i // PIECES, longer * (i + 1) // PIECES) for i in range(PIECES)]

        def multiply(piece: slice) -> None:
            if len(a) == longer:
                np.matmul(a[piece], b, out=y[piece])
            else:
                np.matmul(a, b[:, piece], out=y[:, piece])

        parallel_each(multiply, pieces, 2 * a.size * b.shape[1])
        return y


# product(device, a, b): (..., M, K), (..., K, N) -> (..., M, N), by BLAS, or cuBLAS on a GPU
product = dispatch(cpu=_product_cpu, cuda=matmul_cuda.product)


@dataclass
class Matmul(Op):
    """y = a @ b over the last two axes, the others broadcast: (..., M, K), (..., K, N) -> (..., M, N).

    ga = gy @ b^T, gb = a^T @ gy, summed over the broadcast axes.
    """

    def forward(self, a: Array, b: Array) -> Array:
        return product(self.device, a, b)

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs
        return (
            sum_to(gy @ _transposed(b), a.shape) if self.needed[0] else None,
            sum_to(_transposed(a) @ gy, b.shape) if self.needed[1] else None,
        )

    reference = staticmethod(np.matmul)

    @staticmethod
    def samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
        shapes = [((7, 19), (19, 33)), ((1, 1), (1, 1)), ((5, 3, 7), (7, 2)), ((2, 1, 3, 4), (5, 4, 2))]
        shapes += [((129, 90), (90, 95)), ((3, 70), (70, 5001))]  # cut into pieces
        for a, b in shapes:
            yield (rng.standard_normal(a), rng.standard_normal(b)), {}


def _add_bias_cpu(y: Array, bias: Array, slope: float) -> Array:
    y += bias
    return y if slope == 1 else scale_negative("cpu", y, y, slope)


def _add_bias_cuda(device: str, y: Array, bias: Array, slope: float) -> Array:
    y, bias = contiguous(device, y, bias)
    args = [bias, y, float(slope), bias.size]
    launch_elements("elementwise.cu", "add_bias", y.size, args, device=device, dtype=y.dtype)
    return y


# add_bias(device, y, bias, slope): (N, C), which may be overwritten, plus (C,); slope: of a LeakyReLU behind it
add_bias = dispatch(cpu=_add_bias_cpu, cuda=_add_bias_cuda)


@dataclass
class Linear(Op):
    """y = x @ w^T + b: (N, in), (out, in) and optionally (out,) -> (N, out). slope: of a LeakyReLU behind it.

    gx = gy @ w, gw = gy^T @ x, gb = gy summed over n. As a product with a transpose, gw would come out transposed too,
    and have to be copied.
    """

    slope: float = 1.0

    saved_inputs = (0, 1)
    keeps_output = True

    def forward(self, x: Array, w: Array, *bias: Array) -> Array:
        y = product(self.device, x, w.transpose())
        if bias:
            y = add_bias(self.device, y, bias[0], self.slope)
        elif self.slope != 1:
            y = scale_negative(self.device, y, y, self.slope)
        self.y = None if self.slope == 1 else y  # its signs are those before LeakyReLU
        return y

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        if self.y is not None:
            gy = ScaleNegative(self.slope)(Tensor(self.y, device=self.device), gy)
        x, w, *_ = self.inputs
        return (
            gy @ w if self.needed[0] else None,
            _transposed(gy) @ x if self.needed[1] else None,
            *(sum(gy, 0) if needed else None for needed in self.needed[2:]),
        )

    @staticmethod
    def reference(x: np.ndarray, w: np.ndarray, *bias: np.ndarray, slope: float = 1.0) -> np.ndarray:
        y = x @ w.T + (bias[0] if bias else 0)
        return np.where(y > 0, y, slope * y)

    @staticmethod
    def samples(rng: np.random.Generator) -> Iterator[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
        for n, inputs, outputs in ((1, 7, 19), (33, 3, 1), (5, 90, 4001)):  # the last is cut into pieces
            x, w = rng.standard_normal((n, inputs)), rng.standard_normal((outputs, inputs))
            yield (x, w), {"slope": 0.3 if n == 33 else 1.0}
            yield (x, w, rng.standard_normal(outputs)), {"slope": 0.3 if n == 1 else 1.0}


def _transposed(x: Tensor) -> Tensor:
    return x.transpose((*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


@tensor_method("__matmul__")
def matmul(a: Tensor, b: Operand) -> Tensor:
    """a @ b, as `numpy.matmul`: (..., M, K), (..., K, N) -> (..., M, N).

    A vector counts as a row on the left, a column on the right.
    """
    b = as_tensor(b, a)
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: expected (..., M, K) and (..., K, N), got {a.shape} and {b.shape}")
    if a.ndim > 1 and b.ndim > 1:
        return Matmul()(a, b)
    y = Matmul()(a if a.ndim > 1 else a.reshape(1, -1), b if b.ndim > 1 else b.reshape(-1, 1))
    rows = () if a.ndim == 1 else y.shape[-2:-1]
    columns = () if b.ndim == 1 else y.shape[-1:]
    return y.reshape(y.shape[:-2] + rows + columns)


@tensor_method("__rmatmul__")
def _reflected_matmul(b: Tensor, a: Operand) -> Tensor:
    return matmul(as_tensor(a, b), b)
