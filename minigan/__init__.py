"""minigan: a deep-learning framework small enough to read in an afternoon, and five GANs on it.

Read it from `tensor.py` on: `ops/`, `functional.py`, `nn.py`, `optim.py`, then `examples/`.
"""

from minigan import functional, init, nn, optim, random
from minigan.backend import DeviceError, default_device, set_matmul_precision
from minigan.gradcheck import GradcheckError, gradcheck
from minigan.random import manual_seed
from minigan.serialization import load, save
from minigan.tensor import (
    GraphError,
    Op,
    Tensor,
    from_dlpack,
    grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
    tensor,
)
from minigan.version import __version__

__all__ = [
    "DeviceError",
    "GradcheckError",
    "GraphError",
    "Op",
    "Tensor",
    "__version__",
    "default_device",
    "from_dlpack",
    "functional",
    "grad",
    "gradcheck",
    "init",
    "is_grad_enabled",
    "load",
    "manual_seed",
    "nn",
    "no_grad",
    "optim",
    "random",
    "save",
    "set_grad_enabled",
    "set_matmul_precision",
    "tensor",
]
