"""fp16's loss scale: its schedule, what it does to gradients, and what a step does when it was too large."""

import numpy as np
import pytest
from engine_compare import assert_one_line, assert_same

import minigan as mg
import minigan.functional as F
from minigan import backend, debugging, optim
from minigan.loss_scale import LossScale, all_finite


@pytest.fixture(autouse=True)
def fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_precision", "fp16")


def weights(*values: float, device: str = "emulated") -> mg.Tensor:
    return mg.tensor(np.array(values, np.float32), requires_grad=True, device=device)


def step(adam: optim.Adam, loss: mg.Tensor) -> None:
    adam.zero_grad()
    adam.backward(loss)
    adam.step()


# A gradient that is infinite once it is multiplied by 2^16, and not before.
TOO_LARGE = 1e35


def test_it_doubles_after_good_steps_and_halves_after_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 3)
    scale, w = LossScale(), weights(1.0)
    seen = []
    for finite in (1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1):
        w.grad = mg.tensor(np.array([1.0 if finite else np.inf], np.float32), device="emulated")
        assert scale.take_out([w]) == bool(finite)
        seen.append((scale.value / LossScale.FIRST, scale.good_steps))
    assert seen == [
        *((1, 1), (1, 2), (0.5, 0)),
        *((0.5, 1), (0.5, 2), (1, 0), (1, 1), (1, 2), (0.5, 0), (0.25, 0)),
        *((0.25, 1), (0.25, 2), (0.5, 0)),
    ]


def test_what_was_published_is_the_default() -> None:
    scale = LossScale()
    assert (scale.value, scale.good_steps, scale.GROWTH_STEPS) == (65536, 0, 2000)


def test_it_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 1)
    scale, w = LossScale(2.0**22), weights(1.0)
    values = []
    for _ in range(4):
        w.grad = mg.tensor(np.zeros(1, np.float32), device="emulated")
        scale.take_out([w])
        values.append(scale.value)
    assert values == [2.0**23, 2.0**24, 2.0**24, 2.0**24]


def test_it_changes_no_bit_of_a_gradient_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two come out as they went in; without a convolution nothing is rounded to fp16."""
    results = []
    for precision in ("float32", "fp16"):
        monkeypatch.setattr(backend, "_precision", precision)
        w = weights(0.3, -1.7, 1e-6)
        adam = optim.Adam([w], 0.1)
        for _ in range(5):
            step(adam, (w * w * w).sum())
        results.append(w.numpy().copy())
        assert (adam.loss_scale is None) == (precision == "float32")
    assert_same(*results)


def test_a_step_that_overflows_changes_nothing_and_the_next_one_does() -> None:
    w, v = weights(1.0, 2.0), weights(3.0)
    adam = optim.Adam([w, v], 0.1)
    step(adam, w.sum() + v.sum())
    before = {name: np.copy(value) for name, value in adam.state_dict().items()}
    kept = [w.numpy().copy(), v.numpy().copy()]
    step(adam, w.sum() + v.sum() * TOO_LARGE)  # in one gradient of the two
    assert_same(w, kept[0])
    assert_same(v, kept[1])
    after = adam.state_dict()
    assert (after.pop("loss_scale"), after.pop("good_steps")) == (before.pop("loss_scale") / 2, 0)
    before.pop("good_steps")
    for name, value in before.items():
        assert_same(np.asarray(after[name]), value)
    assert w.grad is None
    assert v.grad is None
    step(adam, w.sum() + v.sum())
    assert adam.steps == 2
    assert not np.array_equal(w.numpy(), kept[0])


def test_nan_is_skipped_as_infinity_is() -> None:
    w = weights(1.0)
    adam = optim.Adam([w], 0.1)
    step(adam, (w * float("nan")).sum())
    assert w.numpy() == [1.0]
    assert adam.loss_scale is not None
    assert adam.loss_scale.value == LossScale.FIRST / 2


def test_gradients_that_are_not_finite_without_a_scale_are_an_error() -> None:
    w = weights(1.0)
    adam = optim.Adam([w], 0.1)
    for _ in range(16):
        step(adam, (w * float("inf")).sum())
    assert adam.loss_scale is not None
    assert adam.loss_scale.value == 1
    with pytest.raises(FloatingPointError, match="not finite even without a loss scale") as caught:
        step(adam, (w * float("inf")).sum())
    assert_one_line(caught)
    assert adam.steps == 0


@pytest.mark.parametrize(("precision", "device"), [("bf16", "emulated"), ("tf32", "emulated"), ("fp16", "cpu")])
def test_nothing_else_is_scaled(monkeypatch: pytest.MonkeyPatch, precision: str, device: str) -> None:
    monkeypatch.setattr(backend, "_precision", precision)
    w = weights(1.0, device=device)
    adam = optim.Adam([w], 0.1)
    adam.backward((w * 3.0).sum())
    assert w.grad is not None
    assert w.grad.numpy() == [3.0]
    assert adam.loss_scale is None
    adam.step()
    assert adam.state_dict().keys() == {"steps", "lr", "m.0", "v.0"}


def test_gradients_of_a_plain_backward_are_taken_as_they_are() -> None:
    w = weights(1.0)
    adam = optim.Adam([w], 0.1)
    adam.backward(w.sum())
    adam.zero_grad()
    (w * 3.0).sum().backward()
    adam.step()
    assert adam.state_dict()["m.0"] == pytest.approx(0.1 * 3.0)


def test_it_is_taken_out_once() -> None:
    w = weights(1.0)
    adam = optim.Adam([w], 0.1)
    adam.backward((w * 3.0).sum())
    for _ in range(2):
        adam.step()
        assert w.grad is not None
        assert w.grad.numpy() == [3.0]


def test_its_state_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 3)
    first, second = (optim.Adam([weights(1.0)], 0.1) for _ in range(2))
    losses = [TOO_LARGE, 1.0, 1.0, 1.0, TOO_LARGE, TOO_LARGE, 1.0]
    for factor in losses[:3]:
        step(first, first.parameters[0].sum() * factor)
    assert first.state_dict()["good_steps"] == 2
    second.load_state_dict(first.state_dict())
    second.parameters[0].data[...] = first.parameters[0].data
    scales = []
    for adam in (first, second):
        for factor in losses[3:]:
            step(adam, adam.parameters[0].sum() * factor)
        assert adam.loss_scale is not None
        scales.append((adam.loss_scale.value, adam.loss_scale.good_steps))
    assert scales == [(LossScale.FIRST / 4, 1)] * 2
    assert_same(*(adam.parameters[0] for adam in (first, second)))


def test_a_state_without_it_is_one_of_another_precision() -> None:
    w = weights(1.0)
    adam = optim.Adam([w], 0.1)
    plain = adam.state_dict()
    step(adam, w.sum())
    adam.load_state_dict(plain)
    assert adam.loss_scale is None
    with pytest.raises(KeyError, match="good_steps"):
        adam.load_state_dict({**plain, "loss_scale": 4.0})


def test_it_saves_gradients_that_fp16_cannot_hold() -> None:
    """A convolution's gradients of 1e-9 and less: nothing is left of them without it, all digits of fp16 with it."""
    rng = np.random.default_rng(0)
    x = mg.tensor(rng.standard_normal((2, 6, 6, 8)).astype(np.float32), device="emulated")
    values = rng.standard_normal((8, 3, 3, 8)).astype(np.float32)
    gy = (rng.standard_normal((2, 6, 6, 8)) * 1e-9).astype(np.float32)
    cotangent = mg.tensor(gy, device="emulated")

    def loss_of(w: mg.Tensor) -> mg.Tensor:
        return (F.conv2d(x, w, padding="same") * cotangent).sum()

    w = mg.tensor(values, requires_grad=True, device="emulated")
    loss_of(w).backward()
    assert w.grad is not None
    assert not w.grad.numpy().any()

    w = mg.tensor(values, requires_grad=True, device="emulated")
    adam = optim.Adam([w], 0.1)
    adam.backward(loss_of(w))
    assert adam.loss_scale is not None
    assert adam.loss_scale.take_out([w])
    judge = mg.tensor(values.astype(np.float64), requires_grad=True)
    y = F.conv2d(mg.tensor(x.numpy().astype(np.float64)), judge, padding="same")
    (y * mg.tensor(gy.astype(np.float64))).sum().backward()
    assert judge.grad is not None
    # A sum of n = 72 products of the size s = 1e-9 sqrt(n); operands are off by 2^-11, so 5 * 2^-11 s is allowed (as
    # test_conv2d_ladder.py derives), and what lies below 6e-8 / 2^16 is rounded to a multiple of it: 1e-12 sqrt(n).
    allowed = (5 * 2.0**-11 * 1e-9 + 1e-12) * 72**0.5
    assert np.abs(w.grad.numpy() - judge.grad.numpy()).max() <= allowed


def test_debugging_does_not_stop_at_an_overflow_that_is_handled() -> None:
    """But at one that would also be there without a scale."""
    w = weights(1e-30)
    adam = optim.Adam([w], 0.1)
    with debugging.set_debug(True):
        step(adam, w.sum() * TOO_LARGE)
        assert debugging.checking
        assert adam.steps == 0
        adam.loss_scale = LossScale(1.0)
        with pytest.raises(FloatingPointError, match="backward of Multiply"):
            adam.backward((w * 1e30 * 1e30).sum())


def test_all_finite() -> None:
    good, bad = (mg.tensor(np.array([3e38, value], np.float32), device="emulated") for value in (3e38, np.inf))
    assert all_finite([])
    assert all_finite([good, good])  # the sum of which is not
    assert not all_finite([good, bad])
