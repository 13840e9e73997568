"""minigan: a deep-learning framework small enough to read in an afternoon, and five GANs on it.

Read it from `tensor.py` on: `ops/`, `functional.py`, `nn.py`, `optim.py`, then `examples/`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_ABOVE = ("data", "metrics", "models", "training")

if not TYPE_CHECKING:  # to a type checker it would mean that there is every name

    def __getattr__(name: str) -> Any:
        """`mg.models.build` without a further import: what stands above is loaded when it is first asked for."""
        if name in _ABOVE:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
