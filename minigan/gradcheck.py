"""Finite differences against the gradients that backward computes.

Along a random direction u, with a random cotangent w, <w, f(x + h u) - f(x - h u)> / 2h must equal <backward(w), u>.
One such number checks every element at once, so the check is cheap for any size; for small inputs the whole Jacobian
is compared too, which tells where the error is. Everything in float64: the differences lose half of the digits.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from minigan.tensor import Tensor, grad, tensor

# Up to this many elements in and out, the whole Jacobian is compared.
JACOBIAN_ELEMENTS = 64


class GradcheckError(AssertionError):
    """A gradient that does not agree with finite differences."""


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    *,
    order: int = 1,
    step: float = 1e-6,
    absolute: float = 1e-5,
    relative: float = 1e-3,
    directions: int = 3,
    seed: int = 0,
) -> bool:
    """Whether backward agrees with finite differences for `function(*inputs) -> Tensor`; True, or GradcheckError.

    inputs: float64 tensors; those with requires_grad are checked. order 2 also checks the gradient of the gradient.
    step: h, absolute and relative: tolerances, all as in PyTorch's gradcheck. The function must be pure: it is called
    again and again, and checked to give the same result each time.
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.requires_grad]
    if not checked or any(not isinstance(t, Tensor) or t.dtype != np.float64 for t in inputs):
        raise ValueError(f"gradcheck: expected float64 tensors, one or more with requires_grad=True; got {inputs}")
    if order not in (1, 2):
        raise ValueError(f"gradcheck: expected order 1 or 2, got {order}")
    if directions < 1 or not step > 0:
        raise ValueError(f"gradcheck: expected at least one direction and a step above 0, got {directions}, {step}")
    rng = np.random.default_rng(seed)
    arrays = [np.array(t.numpy()) for t in inputs]
    device = inputs[0].device

    def run(values: Sequence[np.ndarray]) -> tuple[list[Tensor], Tensor]:
        xs = [tensor(v, i in checked, device) for i, v in enumerate(values)]
        return xs, function(*xs)

    def value(values: Sequence[np.ndarray]) -> np.ndarray:
        return run(values)[1].numpy()

    y = run(arrays)[1]
    if not np.array_equal(y.numpy(), value(arrays), equal_nan=True):
        raise GradcheckError("gradcheck: the function gives different results for the same inputs")

    def analytic(w: np.ndarray) -> list[np.ndarray]:
        xs, y = run(arrays)
        found = grad(y, [xs[i] for i in checked], tensor(w, device=device), allow_unused=True)
        return [np.zeros_like(arrays[i]) if g is None else g.numpy() for i, g in zip(checked, found, strict=True)]

    def compare(what: str, numeric: np.ndarray, backward: np.ndarray) -> None:
        difference = np.abs(numeric - backward)
        # "not <=" instead of ">", so that a NaN does not pass
        if not np.all(difference <= absolute + relative * np.abs(numeric)):
            at = tuple(
                int(i)
                for i in np.unravel_index(int(np.argmax(np.nan_to_num(difference, nan=np.inf))), difference.shape)
            )
            raise GradcheckError(
                f"gradcheck: {what}: finite differences give {numeric[at]:.8g}, backward gives {backward[at]:.8g}"
                + (f" (at {at}, the largest of {difference.size} differences)" if at else "")
            )

    for _ in range(directions):
        w = rng.standard_normal(y.shape)
        gradients = analytic(w)
        for i, g in zip(checked, gradients, strict=True):
            u = rng.standard_normal(arrays[i].shape)
            u /= max(float(np.linalg.norm(u)), 1e-300)
            # A direction of unit length moves each element of a large input little; scale it up to keep the digits.
            u *= min(float(np.sqrt(u.size)), 100.0)
            ahead, behind = ([a + s * step * u if j == i else a for j, a in enumerate(arrays)] for s in (1, -1))
            slope = np.sum(w * (value(ahead) - value(behind))) / (2 * step)
            compare(f"input {i}, along a random direction", np.asarray(slope), np.asarray(np.sum(g * u)))
    for i in checked:
        if (
            arrays[i].size > 0
            and arrays[i].size * y.size <= JACOBIAN_ELEMENTS**2
            and max(arrays[i].size, y.size) <= JACOBIAN_ELEMENTS
        ):
            numeric_rows, backward_rows = _jacobians(i, checked.index(i), arrays, y.shape, value, analytic, step)
            compare(f"input {i}, Jacobian (input element, output element)", numeric_rows, backward_rows)
    if order == 2:
        w = rng.standard_normal(y.shape)
        for position, plain in enumerate(analytic(w)):
            first = _gradient_of(function, checked[position])
            what = f"in the gradient of input {checked[position]}"
            recorded = first(*run(arrays)[0], tensor(w, device=device))
            compare(f"with and without create_graph, {what}", plain, recorded.numpy())
            with_cotangent = [*inputs, tensor(w, requires_grad=True, device=device)]
            again = partial(gradcheck, step=step, absolute=absolute, relative=relative, directions=directions)
            try:
                again(first, with_cotangent, seed=seed + 1)
            except GradcheckError as error:
                raise GradcheckError(f"{error}, {what}") from None
    return True


def _jacobians(
    i: int,
    position: int,
    arrays: Sequence[np.ndarray],
    y_shape: tuple[int, ...],
    value: Callable[[Sequence[np.ndarray]], np.ndarray],
    analytic: Callable[[np.ndarray], list[np.ndarray]],
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """d y / d x, both ways, as (elements of x, elements of y)."""
    numeric = np.empty((arrays[i].size, int(np.prod(y_shape))))
    backward = np.empty_like(numeric)
    for e in range(arrays[i].size):
        u: np.ndarray = np.zeros(arrays[i].size)
        u[e] = step
        u = u.reshape(arrays[i].shape)
        ahead, behind = ([a + s * u if j == i else a for j, a in enumerate(arrays)] for s in (1, -1))
        numeric[e] = ((value(ahead) - value(behind)) / (2 * step)).reshape(-1)
    for e in range(backward.shape[1]):
        w = np.zeros(backward.shape[1])
        w[e] = 1
        backward[:, e] = analytic(w.reshape(y_shape))[position].reshape(-1)
    return numeric, backward


def _gradient_of(function: Callable[..., Tensor], i: int) -> Callable[..., Tensor]:
    """The gradient for input i, as a differentiable function of the inputs and of the cotangent."""

    def gradient(*tensors: Tensor) -> Tensor:
        *xs, cotangent = tensors
        (g,) = grad(function(*xs), xs[i], cotangent, create_graph=True, allow_unused=True)
        zero = xs[i] * 0.0  # so that a gradient which is not part of the graph counts as constant
        return zero if g is None else zero + g

    return gradient
