"""Adam against PyTorch's, its state, and what it refuses."""

from typing import Any

import numpy as np
import pytest
from engine_compare import assert_close, assert_one_line, assert_same, rounding

import minigan as mg
from minigan import nn, optim

SHAPES = [(7, 3), (1,), (), (40_001,), (5, 3, 3, 2)]


def parameters(dtype: Any = np.float64) -> list[mg.Tensor]:
    rng = np.random.default_rng(0)
    return [mg.tensor(np.asarray(rng.standard_normal(s)).astype(dtype), requires_grad=True) for s in SHAPES]


def set_gradients(ours: list[mg.Tensor], step: int) -> list[np.ndarray]:
    """Gradients of very different sizes, as they come in training."""
    rng = np.random.default_rng(100 + step)
    arrays = [np.asarray(rng.standard_normal(p.shape) * 10.0 ** rng.integers(-4, 2)).astype(p.dtype) for p in ours]
    for p, g in zip(ours, arrays, strict=True):
        p.grad = mg.tensor(g)
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("beta1", "beta2", "epsilon"), [(0.5, 0.999, 1e-8), (0.9, 0.999, 1e-7), (0.5, 0.99, 1e-3), (0.0, 0.9, 1e-8)]
)
def test_adam_is_pytorchs(beta1: float, beta2: float, epsilon: float, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch (the bench extra) is not installed")
    ours = parameters(dtype)
    theirs = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
    adam = optim.Adam(ours, 0.1, beta1, beta2, epsilon)
    judge = torch.optim.Adam(theirs, lr=0.1, betas=(beta1, beta2), eps=epsilon, foreach=False)
    for step in range(20):
        for t, g in zip(theirs, set_gradients(ours, step), strict=True):
            t.grad = torch.tensor(g)
        if step == 10:
            adam.lr = 0.03
            judge.param_groups[0]["lr"] = 0.03
        adam.step()
        judge.step()
        for p, t in zip(ours, theirs, strict=True):
            assert p.dtype == np.dtype(dtype)
            assert_close(p, t, rounding(dtype))


def test_the_first_step_by_hand() -> None:
    """m^ = g and v^ = g^2: the weights move by lr, whatever the gradient, to float32's last digits."""
    for dtype, tolerance in ((np.float32, 4 * 6e-8), (np.float64, 4 * 1.2e-16)):
        for beta1, beta2 in ((0.9, 0.999), (0.5, 0.999), (0.5, 0.9999), (0.0, 0.0)):
            w = mg.tensor(np.zeros(3, dtype), requires_grad=True)
            adam = optim.Adam([w], 1.0, beta1, beta2, 1e-30)
            w.grad = mg.tensor(np.array([1.0, -2.0, 300.0], dtype))
            adam.step()
            assert np.abs(w.numpy() - [-1.0, 1.0, -1.0]).max() <= tolerance, (dtype, beta1, beta2, w)


def test_second_step_by_hand() -> None:
    w = mg.tensor(np.array([0.5]), requires_grad=True)
    adam = optim.Adam([w], lr=0.1, beta1=0.5, beta2=0.75, epsilon=0.01)
    for g in (2.0, 1.0):
        w.grad = mg.tensor(np.array([g]))
        adam.step()
    m = 0.5 * (0.5 * 2) + 0.5 * 1
    v = 0.75 * (0.25 * 4) + 0.25 * 1
    moved = 0.1 * 2 / (2 + 0.01) + 0.1 * (m / (1 - 0.25)) / ((v / (1 - 0.75**2)) ** 0.5 + 0.01)
    assert_close(w, [0.5 - moved], rounding(np.float64))


def test_defaults() -> None:
    adam = optim.Adam(parameters(), 0.1)
    assert (adam.lr, adam.beta1, adam.beta2, adam.epsilon) == (0.1, 0.9, 0.999, 1e-8)


def test_parameters_without_a_gradient_stay() -> None:
    """And their step counts, as Adam has one counter."""
    a, b = parameters()[:2]
    before = b.numpy().copy()
    adam = optim.Adam([a, b], 0.1)
    set_gradients([a], 0)
    adam.step()
    assert_same(b, before)
    assert adam.steps == 1
    adam.zero_grad()
    assert a.grad is None
    moved = a.numpy().copy()
    adam.step()
    assert_same(a, moved)


def test_zero_grad_forgets() -> None:
    ours = parameters()
    adam = optim.Adam(ours, 0.1)
    set_gradients(ours, 0)
    adam.zero_grad()
    assert all(p.grad is None for p in ours)


def test_parameters_move_in_place() -> None:
    """Whoever holds the array, a module or a view, sees the new weights; the gradients stay as they are."""
    ours = parameters()
    arrays = [p.data for p in ours]
    gradients = [g.copy() for g in set_gradients(ours, 0)]
    versions = [p.version for p in ours]
    optim.Adam(ours, 0.1).step()
    for p, array, g, version in zip(ours, arrays, gradients, versions, strict=True):
        assert p.data is array
        assert p.grad is not None
        assert_same(p.grad, g)
        assert p.version > version
        assert p.requires_grad
        assert p.op is None


@pytest.mark.parametrize(
    "layout",
    [np.asfortranarray, lambda a: a[::-1].copy()[::-1], lambda a: np.repeat(a, 2, 1)[:, ::2], lambda a: a.T.copy().T],
)
def test_weights_and_gradients_of_any_layout(layout: Any) -> None:
    """As weights that were permuted from another framework's, and set by `.data`."""
    rng = np.random.default_rng(1)
    values, g = rng.standard_normal((33, 7)), rng.standard_normal((33, 7))
    expected = mg.tensor(values.copy(), requires_grad=True)
    judge = optim.Adam([expected], 0.1)
    w = mg.tensor(layout(values.copy()), requires_grad=True)
    late = mg.tensor(values.copy(), requires_grad=True)
    adam = optim.Adam([w, late], 0.1)
    late.data = layout(values.copy())
    for _ in range(3):
        expected.grad = mg.tensor(g)
        w.grad = late.grad = mg.tensor(layout(g))
        judge.step()
        adam.step()
    assert not np.array_equal(expected.numpy(), values)
    assert_close(w, expected, rounding(np.float64))
    assert_close(late, expected, rounding(np.float64))


def test_state_goes_on_bit_exactly() -> None:
    ours = parameters(np.float32)
    adam = optim.Adam(ours, 0.1, beta1=0.5)
    for step in range(5):
        set_gradients(ours, step)
        adam.step()
    adam.lr = 0.07
    state = adam.state_dict()
    names = {"steps", "lr"} | {f"{kind}.{i}" for kind in "mv" for i in range(len(SHAPES))}
    assert set(state) == names
    copies = [mg.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
    kept = {k: np.array(v) for k, v in state.items()}
    for step in range(5, 8):
        set_gradients(ours, step)
        adam.step()
    for name, value in state.items():  # a copy, which later steps do not change
        assert_same(value, kept[name])
    other = optim.Adam(copies, 0.1, beta1=0.5)
    other.load_state_dict(state)
    assert (other.steps, other.lr) == (5, 0.07)
    for step in range(5, 8):
        set_gradients(copies, step)
        other.step()
    for a, b in zip(ours, copies, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (lambda s: s.pop("m.1"), KeyError, "m.1"),
        (lambda s: s.pop("steps"), KeyError, "steps"),
        (lambda s: s.update({"m.9": np.ones(1)}), KeyError, "m.9"),
        (lambda s: s.update({"v.0": np.ones((3, 7))}), ValueError, r"v.0: expected shape \(7, 3\).*got \(3, 7\)"),
        (
            lambda s: s.update({"v.0": np.ones((7, 3), np.float32)}),
            ValueError,
            "v.0: expected .*float64.*got .*float32",
        ),
    ],
)
def test_wrong_states(change: Any, error: type[Exception], word: str) -> None:
    ours = parameters()
    adam = optim.Adam(ours, 0.1)
    set_gradients(ours, 0)
    adam.step()
    state = {k: v + 1 for k, v in adam.state_dict().items()}
    before = {k: np.array(v) for k, v in adam.state_dict().items()}
    change(state)
    with pytest.raises(error, match=word):
        adam.load_state_dict(state)
    for name, value in adam.state_dict().items():
        assert_same(value, before[name])


NAN = float("nan")


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -0.1},
        {"lr": NAN},
        {"beta1": 1.0},
        {"beta1": -0.1},
        {"beta2": 1.0},
        {"beta2": NAN},
        {"epsilon": 0.0},
        {"epsilon": -1e-08},
        {"epsilon": NAN},
    ],
)
def test_wrong_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError) as error:
        optim.Adam(parameters(), **{"lr": 0.1, **settings})
    assert_one_line(error, "Adam", next(iter(settings)), str(next(iter(settings.values()))))


WRONG_PARAMETERS = {
    "none": lambda w: [],
    "array": lambda w: [w.numpy()],
    "tensor": lambda w: w,  # iterates over its rows, each a tensor
    "intermediate": lambda w: [w * 2.0],  # made by an op: no backward pass gives it a gradient
    "twice": lambda w: [w, w],  # would move twice a step
}


@pytest.mark.parametrize("wrong", WRONG_PARAMETERS)
def test_wrong_parameters(wrong: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        optim.Adam(WRONG_PARAMETERS[wrong](parameters()[0]), 0.1)
    assert_one_line(error, "Adam", "parameter")


def test_a_module_is_not_its_parameters() -> None:
    for module in (nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3))):
        with pytest.raises(ValueError) as error:
            optim.Adam(module, 0.1)  # type: ignore[arg-type]
        assert_one_line(error, r"pass net\.parameters\(\)", f"got .*{type(module).__name__}")


@pytest.mark.parametrize(
    "gradient", [np.ones((3, 7)), np.ones(21), np.ones((7, 1)), np.ones(1), np.ones((7, 3), np.float32)]
)
def test_wrong_gradients_are_refused(gradient: np.ndarray) -> None:
    """The compiled loop would read past the end of a smaller one."""
    w = parameters()[0]
    before = w.numpy().copy()
    adam = optim.Adam([w], 0.1)
    with pytest.raises((ValueError, TypeError)):
        w.grad = mg.tensor(gradient)
        adam.step()
    assert_same(w, before)


def test_adam_trains() -> None:
    """A line through four points, to the digit."""
    mg.manual_seed(0)
    net = nn.Linear(1, 1)
    x = mg.tensor(np.array([[0.0], [1.0], [2.0], [3.0]], np.float32))
    adam = optim.Adam(net.parameters(), 0.1)
    for _ in range(400):
        adam.zero_grad()
        ((net(x) - (3.0 * x - 1.0)) ** 2).mean().backward()
        adam.step()
    assert_close(net.weight, [[3.0]], 1e-3)
    assert_close(net.bias, [-1.0], 1e-3)
