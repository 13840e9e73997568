"""The differentiable functions, under the names that users know: `import minigan.functional as F`."""

from minigan.ops.arithmetic import add, divide, multiply, negate, power, subtract
from minigan.ops.batch_norm import batch_norm
from minigan.ops.conv2d import conv2d, conv2d_weight_grad, conv_transpose2d
from minigan.ops.elementwise import abs, clip, exp, log, sqrt
from minigan.ops.elu import elu
from minigan.ops.leaky_relu import leaky_relu, relu
from minigan.ops.losses import binary_cross_entropy_with_logits, l1_loss
from minigan.ops.matmul import Linear, matmul
from minigan.ops.max_pool2d import max_pool2d
from minigan.ops.mean_over_ranks import mean_over_ranks
from minigan.ops.reduce import broadcast_to, mean, sum
from minigan.ops.shape import concatenate, getitem, pad, reshape, transpose
from minigan.ops.sigmoid import sigmoid, tanh
from minigan.ops.upsample_nearest2d import upsample_nearest2d
from minigan.tensor import Tensor

__all__ = [
    "abs",
    "add",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "broadcast_to",
    "clip",
    "concatenate",
    "conv2d",
    "conv2d_weight_grad",
    "conv_transpose2d",
    "divide",
    "elu",
    "exp",
    "getitem",
    "l1_loss",
    "leaky_relu",
    "linear",
    "log",
    "matmul",
    "max_pool2d",
    "mean",
    "mean_over_ranks",
    "multiply",
    "negate",
    "pad",
    "power",
    "relu",
    "reshape",
    "sigmoid",
    "sqrt",
    "subtract",
    "sum",
    "tanh",
    "transpose",
    "upsample_nearest2d",
]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, slope: float = 1.0) -> Tensor:
    """(N, in), (out, in), (out,) -> (N, out): x @ weight^T + bias. slope: of a LeakyReLU behind it; 1 is none."""
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"linear: expected (N, in) and (out, in), got {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: expected a bias of shape {weight.shape[:1]}, got {bias.shape}")
    return Linear(slope)(x, weight, *(() if bias is None else (bias,)))
