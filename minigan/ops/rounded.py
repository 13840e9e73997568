"""Copies in 16 bits of float32 arrays, for the passes of convolutions on a GPU's tensor cores: used by several.

Of weights, and of activations and gradients that are not kept in 16 bits anyway.
"""

from dataclasses import dataclass, field

from minigan.backend import Array
from minigan.tensor import Tensor


@dataclass
class Rounded:
    """Where the passes that multiply by one array find its copy in 16 bits, so that it is rounded once.

    The first of them leaves it here. It never follows the array: a change in place is not seen. So it belongs to an op,
    which computes its gradients with the numbers that it was computed with, and is dropped with the op's graph.
    """

    copies: dict[tuple[str, tuple[int, ...]], Array] = field(default_factory=dict)  # by precision and padded shape


Copies = tuple[Rounded | None, Rounded | None]  # of a pass's two operands; None: no other pass asks for it


def shared_copies(x: Tensor, weight: Tensor) -> Copies:
    """Of a layer's input and weight: the weight's gradient multiplies by x again, and that of x by the weight."""
    # What is no tensor is refused by the op.
    x_grad, weight_grad = (isinstance(t, Tensor) and t.requires_grad for t in (x, weight))
    return Rounded() if weight_grad else None, Rounded() if x_grad else None
