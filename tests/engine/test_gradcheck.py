"""The checker itself is checked: what is planted is found, and what is right passes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import minigan as mg
import minigan.functional as F
from minigan import GradcheckError
from minigan.tensor import Op, Tensor, is_grad_enabled


def inputs(*shapes: tuple[int, ...]) -> list[mg.Tensor]:
    rng = np.random.default_rng(0)
    return [mg.tensor(np.asarray(rng.uniform(0.5, 1.5, s)), requires_grad=True) for s in shapes]


class Planted(Op, abstract=True):
    """y = x^3, right to the first order."""

    def __init_subclass__(cls) -> None:  # not for the registry
        super().__init_subclass__(abstract=True)

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x**3

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0]  # type: ignore[index]
        return (gy * 3.0 * x * x,)


class WrongSign(Planted):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (-super().backward(gy)[0],)  # type: ignore[operator]


class FactorTwo(Planted):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (super().backward(gy)[0] * 2.0,)  # type: ignore[operator]


class OnePercent(Planted):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (super().backward(gy)[0] * 1.01,)  # type: ignore[operator]


class NotANumber(Planted):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (super().backward(gy)[0] * float("nan"),)  # type: ignore[operator]


class Missing(Planted):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (None,)


class OneElement(Planted):
    """Wrong in one element of many."""

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        mask = np.ones(gy.shape)
        mask.reshape(-1)[-1] = 0.0
        return (super().backward(gy)[0] * mask,)  # type: ignore[operator]


class Permuted(Planted):
    """A mixed-up layout, which a constant cotangent and a symmetric input would hide."""

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0]  # type: ignore[index]
        return (gy.reshape(-1)[::-1].reshape(gy.shape) * 3.0 * x * x,)


class IgnoresTheCotangent(Planted):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0]  # type: ignore[index]
        return (3.0 * x * x,)


PLANTED = [WrongSign, FactorTwo, OnePercent, NotANumber, Missing, OneElement, Permuted, IgnoresTheCotangent]


@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (7, 33)])  # with and without the whole Jacobian
@pytest.mark.parametrize("op", PLANTED)
def test_wrong_first_derivatives_are_caught(op: type[Planted], shape: tuple[int, ...]) -> None:
    with pytest.raises(GradcheckError, match="input 0") as error:
        mg.gradcheck(lambda x: op()(x), inputs(shape))
    assert "finite differences give" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 5), (7, 33)])
def test_the_right_one_passes(shape: tuple[int, ...]) -> None:
    assert mg.gradcheck(lambda x: Planted()(x), inputs(shape), order=2) is True


class NotDifferentiable(Planted):
    """Its gradient is right, and a constant."""

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0]  # type: ignore[index]
        return (gy * Tensor(3 * x.data * x.data),)


class NoGraphAtAll(Planted):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0]  # type: ignore[index]
        return (Tensor(gy.data * 3 * x.data * x.data),)


class Square(Planted):
    """x^2, whose derivative is off by a factor of two."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x**2

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy * 4.0 * self.inputs[0],)  # type: ignore[index]


class WrongSecond(Planted):
    """Its gradient is computed rightly, by an op whose own gradient is wrong."""

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy * 3.0 * Square()(self.inputs[0]),)  # type: ignore[index]


class CutCotangent(Planted):
    """The gradient of the gradient reaches x, but not the cotangent."""

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        x = self.inputs[0]  # type: ignore[index]
        return (gy.detach() * 3.0 * x * x,)


class WrongWhenRecorded(Planted):
    """Two ways to the gradient, as in a fused op, of which the differentiable one is wrong."""

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        g = super().backward(gy)[0]
        assert g is not None
        return (g + 1.0 if is_grad_enabled() else g,)


@pytest.mark.parametrize("op", [NotDifferentiable, NoGraphAtAll, WrongSecond, CutCotangent])
def test_wrong_second_derivatives_are_caught(op: type[Planted]) -> None:
    for shape in ((3, 5), (7, 33)):
        assert mg.gradcheck(lambda x: op()(x), inputs(shape))
        with pytest.raises(GradcheckError):
            mg.gradcheck(lambda x: op()(x), inputs(shape), order=2)


def test_a_function_that_takes_gradients_itself() -> None:
    """As a gradient penalty does."""

    def penalty(x: Tensor, w: Tensor) -> Tensor:
        (g,) = mg.grad(F.tanh(x @ w).sum(), [x], create_graph=True)
        return ((g * g).sum() - 1.0) ** 2.0

    assert mg.gradcheck(penalty, inputs((3, 5), (5, 2)))
    with pytest.raises(GradcheckError):
        mg.gradcheck(lambda x, w: penalty(x, w.detach()), inputs((3, 5), (5, 2)))


def test_a_recorded_gradient_that_differs_from_the_plain_one_is_caught() -> None:
    """Off by a constant, so that its own derivatives are right."""
    assert mg.gradcheck(lambda x: WrongWhenRecorded()(x), inputs((3, 5)))
    with pytest.raises(GradcheckError):
        mg.gradcheck(lambda x: WrongWhenRecorded()(x), inputs((3, 5)), order=2)


class MissingTerm(Planted):
    """y = a b + a."""

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return a * b + a

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs  # type: ignore[misc]
        return gy * b, gy * a


class SwappedInputs(MissingTerm):
    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = self.inputs  # type: ignore[misc]
        return gy * a, gy * b + gy


@dataclass
class WrongBroadcast(Planted):
    """y = a + b, b repeated along the first axis."""

    kind: str

    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return a + b

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return gy, {"mean": gy.mean(0), "first": gy[0], "right": gy.sum(0)}[self.kind]


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(GradcheckError, match="input 0"):
        mg.gradcheck(lambda a, b: MissingTerm()(a, b), inputs((3, 4), (3, 4)))
    with pytest.raises(GradcheckError, match="input 0"):
        mg.gradcheck(lambda a, b: SwappedInputs()(a, b), inputs((3, 4), (3, 4)))
    for kind in ("mean", "first"):
        with pytest.raises(GradcheckError, match="input 1"):
            mg.gradcheck(lambda a, b, kind=kind: WrongBroadcast(kind)(a, b), inputs((3, 4), (4,)))
    assert mg.gradcheck(lambda a, b: WrongBroadcast("right")(a, b), inputs((3, 4), (4,)))


def test_only_inputs_that_require_a_gradient_are_checked() -> None:
    a, b = inputs((3, 4), (3, 4))
    a.requires_grad = False
    assert mg.gradcheck(lambda a, b: MissingTerm()(a, b), [a, b])


def test_a_function_without_a_gradient_is_caught() -> None:
    with pytest.raises((GradcheckError, mg.GraphError)):
        mg.gradcheck(lambda x: (x * x).detach(), inputs((3,)))
    with pytest.raises(GradcheckError):  # one way of two is cut
        mg.gradcheck(lambda x: x * x + x.detach() * x, inputs((3,)))


def test_impure_functions_are_caught() -> None:
    rng = np.random.default_rng(1)
    with pytest.raises(GradcheckError, match="different results for the same inputs"):
        mg.gradcheck(lambda x: x * rng.standard_normal(3), inputs((3,)))


def test_nan_in_forward_is_caught() -> None:
    with pytest.raises(GradcheckError):
        mg.gradcheck(lambda x: x * float("nan"), inputs((3,)))


class SmallElement(Planted):
    """y = (1000 x, 0.1 x), of which the second is wrong: too little to be seen in a sum with the first."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x * np.array([1000.0, 0.1])

    def backward(self, gy: Tensor) -> tuple[Tensor | None, ...]:
        return (gy * np.array([1000.0, 0.2]),)


def test_the_jacobian_says_where() -> None:
    with pytest.raises(GradcheckError) as error:
        mg.gradcheck(lambda x: SmallElement()(x), inputs((2,)))
    assert "Jacobian" in str(error.value)
    assert "finite differences give 0.1, backward gives 0.2 (at (1, 1)" in str(error.value).replace("0.10000000", "0.1")


def test_inputs_are_left_alone() -> None:
    xs = inputs((3, 4), (4,))
    before = [x.numpy().copy() for x in xs]
    assert mg.gradcheck(lambda a, b: a * b.exp(), xs, order=2)
    for x, old in zip(xs, before, strict=True):
        assert np.array_equal(x.numpy(), old)
        assert x.grad is None


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a @ b,
        lambda a, b: F.tanh(a @ b).sum(),
        lambda a, b: (a[0] * b[:, 0]).exp(),
        lambda a, b: F.concatenate([a.reshape(-1), b.reshape(-1)]) ** 3,
        lambda a, b: a.sum() * 0.0 + b.sum() * 0.0,  # a derivative may be zero
        lambda a, b: b * 1.0,  # and an input unused
        lambda a, b: a * 1e4,
    ],
)
def test_right_functions_pass(function: Any) -> None:
    assert mg.gradcheck(function, inputs((4, 3), (3, 4)), order=2) is True


def test_a_single_input_needs_no_list() -> None:
    assert mg.gradcheck(F.exp, inputs((3,))[0])


def test_wrong_arguments() -> None:
    x = inputs((3,))[0]
    for wrong, got in (
        (mg.tensor(np.ones(3, np.float32), requires_grad=True), "dtype=float32, device='cpu', requires_grad=True"),
        (mg.tensor(np.ones(3)), "dtype=float64, device='cpu')"),
        ([np.ones(3)], "array("),
        ([x, 2.0], "2.0"),
    ):
        with pytest.raises(
            ValueError, match="expected float64 tensors, one or more with requires_grad=True; got"
        ) as error:
            mg.gradcheck(F.exp, wrong)
        assert got in str(error.value)
    for order in (0, 3):
        with pytest.raises(ValueError, match=f"expected order 1 or 2, got {order}"):
            mg.gradcheck(F.exp, x, order=order)
    with pytest.raises(ValueError, match="expected"):  # would check nothing of a large input
        mg.gradcheck(F.exp, x, directions=0)
    with pytest.raises(ValueError, match="expected"):
        mg.gradcheck(F.exp, x, step=0.0)
