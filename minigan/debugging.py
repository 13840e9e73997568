"""MINIGAN_DEBUG=1: every value is checked, and the operation that first gave one that is not finite is named.

What is checked are tensors, but this module stands below `tensor.py`: all it asks of one is `data` and `device`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

from minigan.backend import array_module, on_device
from minigan.environment import switch

# What is neither 0 nor 1 is refused with the first value that is checked: on import nobody could catch it.
checking = os.environ.get("MINIGAN_DEBUG", "0") not in ("", "0")


@contextmanager
def set_debug(on: bool) -> Iterator[None]:
    """Inside a `with` block, FloatingPointError names the op whose result, or gradient, is the first not to be finite.

    MINIGAN_DEBUG=1 in the environment does so for a whole program. It takes time: on a GPU each op is waited for.
    """
    global checking
    before, checking = checking, on
    try:
        yield
    finally:
        checking = before


def check_finite(what: str, result: Any, made_of: Sequence[tuple[str, Any]]) -> None:
    """Raises FloatingPointError unless all values of the tensor are finite; `made_of` is told with it, by name."""
    switch("MINIGAN_DEBUG")
    result = copy(result)  # asked for its `data`, a tensor no longer keeps them in 16 bits, and other kernels follow
    with on_device(result.device):
        if not array_module(result.device).isfinite(result.data).all():
            sources = "".join(f"; {name} of {finiteness(t)}" for name, t in made_of)
            raise FloatingPointError(f"{what} of {finiteness(result)}{sources}")


def finiteness(t: Any) -> str:
    """A tensor in words, with how many of its values are not finite."""
    bad = t.data.size - int(array_module(t.device).isfinite(t.data).sum())
    return f"{t._kind()}: " + (f"{bad:,} of {t.data.size:,} values not finite" if bad else "all finite")


def checked_backward(op: Any, gy: Any) -> tuple[Any, ...]:
    """op.backward(gy), with every value checked to be finite."""
    what = f"backward of {op._name()}"
    try:
        gradients: tuple[Any, ...] = op.backward(gy)
    except FloatingPointError as error:  # in one of the ops that it is written with
        raise FloatingPointError(f"{what}, with gy of {finiteness(gy)}: {error}") from None
    for i, gx in enumerate(gradients):
        if gx is not None:
            check_finite(f"{what}: gradient of input {i}", gx, [("gy", gy)])
    return gradients
