"""Tensors and the graph: backward, grad, errors, in-place changes, threads, other libraries' arrays, memory."""

import gc
import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_compare import assert_close, assert_one_line, assert_same, rounding

import minigan as mg
import minigan.functional as F
from minigan import nn, optim
from minigan.tensor import Op

EXACT = rounding(np.float64)


def leaf(values: Any, dtype: Any = np.float64) -> mg.Tensor:
    return mg.tensor(np.array(values, dtype), requires_grad=True)


def constant(values: Any, dtype: Any = np.float64) -> mg.Tensor:
    return mg.tensor(np.array(values, dtype))


# ---- gradients -----------------------------------------------------------------------------------------------------


def test_gradients_accumulate_over_passes() -> None:
    x = leaf([1.0, 2.0, 3.0])
    (x * x).backward(np.array([1.0, 10.0, 100.0]))
    first = x.grad
    (x * 5.0).backward(np.array([1.0, 1.0, 1.0]))
    assert_close(x.grad, [2.0 + 5, 40.0 + 5, 600.0 + 5], EXACT)
    # A gradient that somebody holds does not change under their hands.
    assert_close(first, [2.0, 40.0, 600.0], EXACT)


def test_diamonds() -> None:
    x = leaf(1.5)
    a = x * 2.0
    b = a * a  # a twice in one op
    c = a + b  # and again in another
    (b * c + a).backward()
    # f = 4 x^2 (2 x + 4 x^2) + 2 x = 8 x^3 + 16 x^4 + 2 x
    assert_close(x.grad, 24 * 1.5**2 + 64 * 1.5**3 + 2, EXACT)


def test_ladder_of_diamonds_is_walked_once() -> None:
    """Each rung doubles the number of paths: 2^60 of them, 60 ops."""
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = (y + y) * 0.5
    y.backward()
    assert_close(x.grad, 1.0, EXACT)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 7), (19, 1), (1, 1, 1), (3, 1, 7), (3, 19, 7)])
@pytest.mark.parametrize("op", [F.add, F.subtract, F.multiply, F.divide, F.power])
def test_unbroadcasting(op: Callable[..., mg.Tensor], shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = leaf(rng.uniform(1, 2, shape)), leaf(rng.uniform(1, 2, (3, 19, 7)))
    gy = rng.standard_normal((3, 19, 7))
    for x, y in ((a, b), (b, a)):
        got = mg.grad(op(x, y), [a, b], gy)
        assert [g.shape for g in got if g is not None] == [a.shape, b.shape]
        wide = leaf(np.broadcast_to(a.numpy(), (3, 19, 7)))
        pair = (wide, b) if x is a else (b, wide)
        full, other = mg.grad(op(*pair), [wide, b], gy)
        # The gradient of what was broadcast is the sum over the axes that it was repeated along.
        new = 3 - len(shape)
        axes = tuple(range(new)) + tuple(new + i for i, n in enumerate(shape) if n == 1)
        assert_close(got[0], full.numpy().sum(axes).reshape(shape), EXACT)
        assert_close(got[1], other, EXACT)


def test_third_derivatives() -> None:
    x = leaf([-1.5, 0.5, 2.0])
    g = (x**4).sum()
    for expected in (4 * x.numpy() ** 3, 12 * x.numpy() ** 2, 24 * x.numpy(), np.full(3, 24.0)):
        (g,) = mg.grad(g.sum(), x, create_graph=True)
        assert_close(g, expected, EXACT)
    assert x.grad is None


def test_integer_powers_are_differentiable_at_zero() -> None:
    x = leaf(0.0)
    g: Any = x**2
    for expected in (0.0, 2.0, 0.0):
        (g,) = mg.grad(g, x, create_graph=True)
        assert_close(g, expected, EXACT)


def test_hessian_vector_product() -> None:
    rng = np.random.default_rng(1)
    matrix, v = rng.standard_normal((7, 7)), rng.standard_normal(7)
    x = leaf(rng.standard_normal(7))
    f = x @ constant(matrix) @ x + (x**3).sum() / 6.0
    (g,) = mg.grad(f, x, create_graph=True)
    (hv,) = mg.grad((g * v).sum(), x)
    assert_close(hv, (matrix + matrix.T) @ v + x.numpy() * v, EXACT)


def test_backward_with_create_graph_leaves_differentiable_gradients() -> None:
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    g = x.grad
    assert g is not None
    assert g.requires_grad
    (second,) = mg.grad(g.sum(), x)
    assert_close(second, 6 * x.numpy(), EXACT)


def test_gradient_of_a_gradient_with_respect_to_its_cotangent() -> None:
    x, gy = leaf([1.0, 2.0]), leaf([3.0, 5.0])
    (g,) = mg.grad(x * x, x, gy, create_graph=True)
    (ggy,) = mg.grad(g, gy, np.array([1.0, 10.0]))
    assert_close(ggy, [2.0, 40.0], EXACT)


def test_grad_at_intermediate_tensors() -> None:
    x = leaf(3.0)
    h = x * x
    y = h * h * x
    gx, gh, gy = mg.grad(y, [x, h, y], retain_graph=True)
    assert_close(gh, 2 * 9.0 * 3.0, EXACT)
    assert_close(gx, 5 * 3.0**4, EXACT)
    assert_close(gy, 1.0, EXACT)
    # What lies before h is not needed for it, and stays.
    (gh,) = mg.grad(y, h)
    assert_close(gh, 54.0, EXACT)
    (gx,) = mg.grad(h, x)
    assert_close(gx, 6.0, EXACT)
    assert x.grad is None
    assert h.grad is None


def test_grad_of_several_outputs() -> None:
    x, z = leaf([1.0, 2.0]), leaf(3.0)
    a = x * z
    b = a.sum()
    gx, gz = mg.grad([a, b, b], [x, z], [np.array([1.0, 10.0]), None, np.array(100.0)])
    assert_close(gx, [3.0 * 102, 3.0 * 111], EXACT)
    assert_close(gz, 1.0 + 20 + 101 * 3, EXACT)
    with pytest.raises(ValueError, match="expected 2 grad_outputs, one an output, got 1"):
        mg.grad([x * 1.0, z * 1.0], x, [None])


def test_backward_reaches_leaves_only() -> None:
    x, c = leaf(2.0), constant(3.0)
    h = x * c
    h.backward()
    assert_close(x.grad, 3.0, EXACT)
    assert c.grad is None
    assert h.grad is None
    # A leaf is its own graph.
    x.backward()
    assert_close(x.grad, 4.0, EXACT)


def test_a_constant_that_became_a_parameter_later_gets_nothing_from_before() -> None:
    """As a frozen network that is released between its forward and backward passes: all of it stays frozen."""
    x, w, b = leaf(2.0), constant(3.0), constant(4.0)
    y = x * w + b
    w.requires_grad = b.requires_grad = True
    y.backward()
    assert_close(x.grad, 3.0, EXACT)
    assert w.grad is None
    assert b.grad is None


def test_gradient_has_the_dtype_of_its_tensor() -> None:
    x = leaf([1.0, 2.0], np.float32)
    y = ((x * 2 + 1.5) ** 2 / 3 - 0.25).mean()
    y.backward()
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == np.float32


# ---- deep graphs ---------------------------------------------------------------------------------------------------

DEEP = """
import gc, sys, threading
import numpy as np
import minigan as mg

def deep(depth, create_graph):
    x = mg.tensor(np.ones(1), requires_grad=True)
    one = mg.tensor(np.ones(1))
    y = x
    for _ in range(depth):
        y = y * one + x
    (g,) = mg.grad(y, x, retain_graph=True, create_graph=create_graph)
    assert g.numpy()[0] == depth + 1, g
    del y, g  # the whole graph dies at once
    y = x
    for _ in range(depth):
        y = y + one
    y.backward()  # and here as the pass goes
    assert x.grad.numpy()[0] == 1, x.grad

def work():
    gc.disable()
    deep(10_000, True)
    gc.enable()
    deep(50_000, False)  # 100,000 ops
    gc.collect()
    print("survived")

# A small stack: a recursion of any kind, in Python or in C, does not go unseen.
threading.stack_size(512 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_deep_graphs_forward_backward_and_deleted() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", DEEP], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")


# ---- errors --------------------------------------------------------------------------------------------------------


def test_a_freed_graph_says_so() -> None:
    x = leaf([1.0, 2.0])
    h = x.exp()
    y, z = (h * h).sum(), (h * 3.0).sum()
    y.backward()
    before = x.grad
    for again in (y, z):  # z shares h with y
        with pytest.raises(mg.GraphError, match=r"freed by an earlier backward pass.*retain_graph=True"):
            again.backward()
        with pytest.raises(mg.GraphError, match="freed"):
            mg.grad(again, x)
    # Nothing was added by halves.
    assert x.grad is before


def test_retain_graph() -> None:
    x = leaf(2.0)
    y = x.exp() * x
    for i in (1, 2, 3):
        y.backward(retain_graph=i < 3)
        assert_close(x.grad, i * 3 * np.exp(2.0), EXACT)
    with pytest.raises(mg.GraphError, match="freed"):
        y.backward()


def test_create_graph_retains_unless_told_otherwise() -> None:
    x = leaf(2.0)
    y = x**3
    mg.grad(y, x, create_graph=True)
    mg.grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(mg.GraphError, match="freed"):
        mg.grad(y, x)


def test_unused_inputs() -> None:
    x, other = leaf(2.0), leaf(3.0)
    y = x * x
    with pytest.raises(mg.GraphError, match=r"input 1 \(shape \(\), float64 on cpu\) was not used.*allow_unused"):
        mg.grad(y, [x, other], retain_graph=True)
    gx, nothing = mg.grad(y, [x, other], allow_unused=True)
    assert_close(gx, 4.0, EXACT)
    assert nothing is None


@pytest.mark.parametrize("through", [lambda y, g: y.backward(g), lambda y, g: mg.grad(y, y, g)])
def test_wrong_gradients(through: Any) -> None:
    x = leaf(np.ones((2, 3)))
    y = x * 2.0
    with pytest.raises(mg.GraphError, match=r"shape \(2, 3\)"):
        through(y, None)
    for wrong, received in (
        (np.ones((3, 2)), r"got shape \(3, 2\), float64"),
        (np.ones(3), r"got shape \(3,\), float64"),
        (1.0, r"got shape \(\), float64"),
        (np.ones((2, 3), np.float32), r"got shape \(2, 3\), float32"),
        (mg.tensor(np.ones((2, 3)), device="emulated"), r"got shape \(2, 3\), float64 on emulated"),
    ):
        with pytest.raises(ValueError, match="expected a gradient") as error:
            through(y, wrong)
        assert_one_line(error, r"shape \(2, 3\), float64 on cpu", received)
    assert x.grad is None


def test_no_gradient_required() -> None:
    for y in (constant(1.0), constant(1.0) * 2.0):
        with pytest.raises(mg.GraphError, match="requires no gradient"):
            y.backward()


@pytest.mark.parametrize("op", [F.add, F.subtract, F.multiply, F.divide, F.power, F.matmul, F.l1_loss])
def test_operands_of_two_kinds(op: Any) -> None:
    a = leaf(np.ones((2, 2)))
    for b in (mg.tensor(np.ones((2, 2), np.float32)), np.ones((2, 2), np.float32)):
        with pytest.raises(TypeError) as error:
            op(a, b)
        assert_one_line(error, "float64 on cpu and .*float32 on cpu")
    with pytest.raises(mg.DeviceError) as device_error:
        op(a, mg.tensor(np.ones((2, 2)), device="emulated"))
    assert_one_line(device_error, "on cpu and .*on emulated")
    with pytest.raises(TypeError, match="expected float32 or float64, got int64"):
        op(a, np.ones((2, 2), np.int64))


@pytest.mark.parametrize("wrong", [None, "2", object()])
def test_operands_that_are_no_numbers(wrong: Any) -> None:
    """None as an array is a NaN: it must not get that far."""
    x = leaf([1.0, 2.0])
    for work in (lambda: x + wrong, lambda: x * wrong, lambda: wrong - x, lambda: F.l1_loss(x, wrong)):
        with pytest.raises(TypeError):
            work()


@pytest.mark.parametrize(
    "function",
    [
        F.exp,
        F.tanh,
        F.leaky_relu,
        F.sum,
        lambda a: F.conv2d(a.reshape(1, 2, 2, 1), leaf(np.ones((1, 1, 1, 1)))),
        lambda a: F.conv2d(leaf(np.ones((1, 2, 2, 1))), a[None, :, :, None][:, :1, :1]),
        lambda a: F.conv_transpose2d(a.reshape(1, 2, 2, 1), leaf(np.ones((1, 1, 1, 1)))),
        lambda a: F.matmul(a, leaf(np.ones((2, 2)))),
        lambda a: F.linear(a, leaf(np.ones((2, 2)))),
        lambda a: F.concatenate([leaf(np.ones((2, 2))), a]),
    ],
)
def test_functions_take_tensors(function: Any) -> None:
    with pytest.raises(TypeError) as error:
        function(np.ones((2, 2)))
    assert_one_line(error, "[Tt]ensor", "ndarray")


def test_tensor_of_wrong_things() -> None:
    for wrong in (np.ones(3, np.int64), np.ones(3, np.float16), np.ones(3, bool), np.ones(3, complex), np.array("x")):
        with pytest.raises(TypeError) as error:
            mg.tensor(wrong)
        assert_one_line(error, "float32 or float64", f"got {wrong.dtype}")
    with pytest.raises(TypeError, match="expected dtype float32 or float64, got int32"):
        mg.tensor([1.0], dtype="int32")
    for device in ("gpu", "cuda:", "cuda:x", "cpu:0", "", 3):
        with pytest.raises(mg.DeviceError) as device_error:
            mg.tensor([1.0], device=device)
        assert_one_line(device_error, f"{device!r}")


def test_item_len_bool() -> None:
    assert constant([[2.5]]).item() == float(constant(2.5)) == 2.5
    assert len(constant([1.0, 2.0])) == 2
    assert bool(constant(1.0))
    assert not bool(constant(0.0))
    for function in (mg.Tensor.item, float, bool):
        with pytest.raises(ValueError, match=r"expected a tensor with one element, got shape \(2,\)"):
            function(constant([1.0, 2.0]))
    with pytest.raises(TypeError, match="without dimensions"):
        len(constant(1.0))
    with pytest.raises(TypeError, match="without dimensions"):
        iter(constant(1.0))


def test_data_setter() -> None:
    x = leaf([1.0, 2.0])
    x.data = np.array([3.0, 4.0])
    assert_same(x, np.array([3.0, 4.0]))
    for wrong in (np.ones(3), np.ones(2, np.float32)):
        with pytest.raises(ValueError) as error:
            x.data = wrong
        assert_one_line(error, r"shape \(2,\), float64", f"got shape .*{wrong.dtype}")


# ---- changes in place ----------------------------------------------------------------------------------------------


def assign(t: Any, layer: nn.Module) -> None:
    t.data = t.data * 2


def multiply(t: Any, layer: nn.Module) -> None:
    t.data *= 2


def mark(t: Any, layer: nn.Module) -> None:
    t.data[...] = 0
    t.mark_changed()


def step(t: Any, layer: nn.Module) -> None:
    t.grad = mg.tensor(np.ones(t.shape, t.dtype))
    optim.Adam([t], lr=0.5).step()
    t.grad = None


def load(t: Any, layer: nn.Module) -> None:
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})


def detached(t: Any, layer: nn.Module) -> None:
    """The same memory, under another name."""
    t.detach().data *= 2


class Holder(nn.Module):
    def __init__(self, t: mg.Tensor) -> None:
        self.t = t


MATRIX, IMAGE = (3, 3), (1, 3, 3, 1)
USES: dict[str, tuple[tuple[int, ...], Any]] = {
    "multiply": (MATRIX, lambda x, t: x * t),
    "divide": (MATRIX, lambda x, t: x / t),
    "power": (MATRIX, lambda x, t: x**t),
    "matmul": (MATRIX, lambda x, t: x @ t),
    "logistic": (MATRIX, lambda x, t: F.binary_cross_entropy_with_logits(x, t)),
    "conv2d": (IMAGE, lambda x, t: F.conv2d(x, t)),
    "conv_transpose2d": (IMAGE, lambda x, t: F.conv_transpose2d(x, t)),
    "weight_grad": (IMAGE, lambda x, t: F.conv2d_weight_grad(x, t, 1)),
    # These save views of t.
    "linear": (MATRIX, lambda x, t: F.linear(x, t)),
    "reshape": (MATRIX, lambda x, t: x * t.reshape(9).reshape(3, 3)),
    "index": (MATRIX, lambda x, t: x * t[0]),
    "broadcast": (MATRIX, lambda x, t: x * F.broadcast_to(t, (2, 3, 3))),
    "batch_norm": (MATRIX, lambda x, t: F.batch_norm(x, t[0], t[1])),
}


def assert_refused_or_right(y: mg.Tensor, x: mg.Tensor, expected: mg.Tensor | None) -> None:
    """A backward pass that needs values which are gone raises; one that has them nevertheless may give the gradient."""
    try:
        y.backward(np.cos(np.arange(y.size)).reshape(y.shape))
    except mg.GraphError as raised:
        message = str(raised)
    else:
        assert_close(x.grad, expected, EXACT)
        return
    assert "changed in place" in message
    assert "expected" in message
    assert x.grad is None


@pytest.mark.parametrize("change", [assign, multiply, mark, step, load, detached])
@pytest.mark.parametrize("use", USES)
def test_saved_tensor_changed_in_place(use: str, change: Any) -> None:
    """x's gradient needs the old values of t: never may it be computed from the new ones."""
    shape, function = USES[use]
    rng = np.random.default_rng(2)
    x, t = leaf(rng.uniform(0.5, 1, shape)), leaf(rng.uniform(0.5, 1, shape))
    y = function(x, t)
    (expected,) = mg.grad(y, x, np.cos(np.arange(y.size)).reshape(y.shape), retain_graph=True)
    change(t, Holder(t))
    assert_refused_or_right(y, x, expected)


@pytest.mark.parametrize("function", [F.exp, F.sqrt, F.tanh, F.sigmoid, F.elu, F.leaky_relu])
def test_output_changed_in_place(function: Any) -> None:
    """These keep their output for backward."""
    x = leaf([0.5, 1.0])
    y = function(x)
    (expected,) = mg.grad(y, x, np.cos(np.arange(2)), retain_graph=True)
    y.data *= -2
    assert_refused_or_right(y, x, expected)


def test_running_statistics_changed_between_forward_and_backward() -> None:
    """An evaluation's backward pass after a training pass, which moved the statistics that the first one used."""
    rng = np.random.default_rng(3)
    x, gamma, beta = leaf(rng.standard_normal((7, 3)) + 2), leaf(np.ones(3)), leaf(np.zeros(3))
    running = constant(np.full(3, 0.5)), constant(np.full(3, 4.0))
    expected = ((x.numpy() - 0.5) / np.sqrt(4.0 + 1e-5)).sum(0)
    y = F.batch_norm(x, gamma, beta, *running, training=False)
    F.batch_norm(x, gamma, beta, *running, momentum=0.0)
    try:
        y.backward(np.ones((7, 3)))
    except mg.GraphError:
        return
    assert_close(gamma.grad, expected, EXACT)


@pytest.mark.parametrize("change", [assign, multiply, mark, step, load])
def test_changes_that_do_no_harm(change: Any) -> None:
    """Values that backward does not read may change: of sums, and of what got its gradient already."""
    x, t = leaf(np.ones((2, 2))), leaf(np.full((2, 2), 3.0))
    y = (x + t) - t
    change(t, Holder(t))
    y.backward(np.ones((2, 2)))
    assert_close(x.grad, np.ones((2, 2)), EXACT)
    z = x * t
    z.backward(np.ones((2, 2)))
    change(t, Holder(t))
    (x * t).backward(np.ones((2, 2)))


# ---- no_grad, detach, threads --------------------------------------------------------------------------------------


def test_no_grad_nests_and_survives_exceptions() -> None:
    x = leaf(2.0)
    assert mg.is_grad_enabled()
    with mg.no_grad():
        assert not (x * x).requires_grad
        with mg.set_grad_enabled(True):
            assert (x * x).requires_grad
            with mg.no_grad():
                assert not mg.is_grad_enabled()
            assert mg.is_grad_enabled()
        assert not mg.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), mg.no_grad():
        raise ZeroDivisionError
    assert mg.is_grad_enabled()

    @mg.no_grad()
    def quiet() -> mg.Tensor:
        return x * x

    assert not quiet().requires_grad
    assert (x * x).requires_grad


def test_no_grad_keeps_nothing() -> None:
    x = leaf(np.ones(7))
    with mg.no_grad():
        h = x * 2.0
        y = h.exp()
    assert y.op is None
    ref = weakref.ref(h.data)
    del h
    assert ref() is None


def test_no_grad_is_of_its_thread() -> None:
    x = leaf(2.0)
    seen: list[bool] = []
    with mg.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * x).requires_grad))
        thread.start()
        thread.join()
        assert not (x * x).requires_grad
    assert seen == [True]


def test_threads_compute_side_by_side() -> None:
    """Each of four threads trains on its own graph, all with the compiled loops."""
    rng = np.random.default_rng(4)
    images = rng.standard_normal((4, 2, 9, 9, 3))
    weight = rng.standard_normal((9, 3, 3, 3))

    def work(i: int) -> np.ndarray:
        w = leaf(weight)
        y = F.leaky_relu(F.conv2d(constant(images[i]), w, padding=1))
        (y * y).sum().backward()
        assert w.grad is not None
        return w.grad.numpy()

    expected = [work(i) for i in range(4)]
    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: work(i)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert_same(found[i], expected[i])


def test_detach() -> None:
    x = leaf([2.0, 3.0])
    h = x * x
    d = h.detach()
    assert not d.requires_grad
    assert d.op is None
    assert np.shares_memory(d.numpy(), h.numpy())
    (d * x).backward(np.ones(2))
    assert_close(x.grad, [4.0, 9.0], EXACT)


def test_to() -> None:
    x = leaf([1.0, 2.0])
    assert x.to("cpu") is x
    moved = x.to("emulated")
    assert (moved.device, moved.requires_grad, moved.op) == ("emulated", True, None)
    with pytest.raises(mg.GraphError, match="detach"):
        (x * 2.0).to("emulated")
    with pytest.raises(mg.DeviceError, match="unknown device 'tpu'"):
        x.to("tpu")


# ---- numbers and other libraries' arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2), np.array(2.5)])
def test_numbers_take_the_dtype_of_the_tensor(number: Any) -> None:
    for dtype in (np.float32, np.float64):
        x = mg.tensor(np.array([1.0, 4.0], dtype))
        for y, expected in (
            (x + number, x.numpy() + float(number)),
            (number + x, float(number) + x.numpy()),
            (x - number, x.numpy() - float(number)),
            (number - x, float(number) - x.numpy()),
            (x * number, x.numpy() * float(number)),
            (number * x, float(number) * x.numpy()),
            (x / number, x.numpy() / float(number)),
            (number / x, float(number) / x.numpy()),
            (x**number, x.numpy() ** float(number)),
            (number**x, float(number) ** x.numpy()),
        ):
            assert isinstance(y, mg.Tensor)
            assert y.dtype == dtype
            assert_close(y, expected, rounding(dtype))


def test_arrays_and_tensors_mix() -> None:
    rng = np.random.default_rng(5)
    a, x = rng.uniform(1, 2, (3, 3)), leaf(rng.uniform(1, 2, (3, 3)))
    for operate in (
        lambda p, q: p + q,
        lambda p, q: p - q,
        lambda p, q: p * q,
        lambda p, q: p / q,
        lambda p, q: p**q,
        lambda p, q: p @ q,
    ):
        for y, expected in ((operate(a, x), operate(a, x.numpy())), (operate(x, a), operate(x.numpy(), a))):
            assert isinstance(y, mg.Tensor)
            assert y.requires_grad
            assert_close(y, expected, EXACT)


def test_becomes_a_numpy_array() -> None:
    x = leaf([[1.0, 2.0]], np.float32)
    assert np.shares_memory(np.asarray(x), x.numpy())
    assert not np.shares_memory(np.array(x), x.numpy())
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert_close(np.concatenate([np.asarray(x), x]), [[1.0, 2.0], [1.0, 2.0]], 0)
    with pytest.raises(ValueError, match="copy"):  # a conversion without a copy there is none
        np.array(x, dtype=np.float64, copy=False)


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_tensor_has_memory_of_its_own_unless_it_is_not_to_copy(device: str) -> None:
    a = np.ones(3, np.float32)
    x, shared = mg.tensor(a, device=device), mg.tensor(a, device=device, copy=False)
    a[0] = 7
    assert x.numpy()[0] == 1
    assert shared.numpy()[0] == 7
    assert not np.shares_memory(mg.tensor(x, device=device).numpy(), x.numpy())


def test_what_an_array_was_made_of_stays_as_it_is() -> None:
    weights, means = np.ones(3, np.float32), np.zeros(3, np.float32)
    p, running_mean = mg.tensor(weights, requires_grad=True), mg.tensor(means)
    x = mg.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    F.batch_norm(x, p, p, running_mean, mg.tensor(means)).sum().backward()
    mg.optim.Adam([p], lr=0.1).step()
    assert (p.numpy() != 1).all()
    assert (running_mean.numpy() != 0).all()
    assert (weights == 1).all()
    assert (means == 0).all()


def test_tensor_of_other_kinds_of_numbers() -> None:
    a = np.ones(3, np.float32)
    assert mg.tensor(a, dtype="float64").dtype == np.float64
    assert mg.tensor([1, 2]).dtype == mg.tensor(3).dtype == np.float32
    assert mg.tensor(np.float64(3)).dtype == np.float64
    big_endian = np.array([1.0, 2.0], ">f4")
    assert_same(mg.tensor(big_endian), np.array([1.0, 2.0], np.float32))


def test_dlpack_with_numpy() -> None:
    x = mg.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    view = np.from_dlpack(x)
    assert np.shares_memory(view, x.numpy())
    back = mg.from_dlpack(x.numpy())
    assert np.shares_memory(back.numpy(), x.numpy())
    assert (back.shape, back.dtype, back.device) == ((2, 3), np.float32, "cpu")


def test_dlpack_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch (the bench extra) is not installed")
    x = mg.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    theirs = torch.from_dlpack(x)
    theirs[0, 0] = 70.0
    assert x.numpy()[0, 0] == 70.0
    source = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    ours = mg.from_dlpack(source.T)  # strides come along
    source[1, 2] = 50.0
    assert ours.shape == (3, 2)
    assert ours.numpy()[2, 1] == 50.0
    assert_close((ours * 2.0).numpy(), source.T.numpy() * 2, 0)


def test_no_cuda_interface_on_the_cpu() -> None:
    assert not hasattr(leaf(1.0), "__cuda_array_interface__")


def test_repr_says_what_it_is() -> None:
    assert "shape=(2,), dtype=float32, device='cpu', requires_grad=True" in repr(leaf([1, 2], np.float32))
    assert "op=Multiply" in repr(leaf(1.0) * 2.0)


# ---- memory --------------------------------------------------------------------------------------------------------


SHARING = [
    lambda a, b: a + b,
    lambda a, b: (a + b) * 2.0,
    lambda a, b: a - b,
    lambda a, b: (a + b) + (b + a),
    lambda a, b: a.reshape(4).reshape(2, 2) + b.transpose(),
    lambda a, b: F.concatenate([a, b])[1:3],
    lambda a, b: F.concatenate([a, b], 1)[:, ::2],
    lambda a, b: F.broadcast_to(a.sum(0, keepdims=True), (2, 2)) + b,
]


def assert_gradients_are_apart(leaves: list[mg.Tensor], gradient: np.ndarray) -> None:
    arrays = [t.grad.numpy() for t in leaves if t.grad is not None]
    assert len(arrays) == len(leaves)
    for a, b in itertools.combinations([*arrays, gradient], 2):
        assert not np.shares_memory(a, b)
    for array in arrays:
        array *= 2  # as gradient clipping does: must be possible, and touch this one alone


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("function", SHARING)
def test_leaves_do_not_share_gradients(function: Any, create_graph: bool) -> None:
    a, b = leaf(np.ones((2, 2))), leaf(np.ones((2, 2)))
    gradient = np.ones((2, 2))
    function(a, b).backward(gradient, create_graph=create_graph)
    assert_gradients_are_apart([a, b], gradient)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_leaf_does_not_share_its_gradient_with_the_caller(create_graph: bool) -> None:
    for function in (lambda a: a, lambda a: a.reshape(4).reshape(2, 2), lambda a: a + 1.0):
        a, gradient = leaf(np.ones((2, 2))), np.ones((2, 2))
        function(a).backward(gradient, create_graph=create_graph)
        assert_gradients_are_apart([a], gradient)


def test_memory_is_freed_by_the_last_reference() -> None:
    """With the garbage collector off: nothing in the graph refers back."""
    gc.disable()
    try:
        x = leaf(np.ones(1000))
        h = x * 3.0
        k = h.exp()
        y = (k * h).sum()
        refs = [weakref.ref(t.data) for t in (h, k)] + [weakref.ref(t) for t in (h, k, y)]
        del h, k
        assert refs[0]() is not None
        del y
        assert [ref() for ref in refs] == [None] * len(refs)
    finally:
        gc.enable()


def test_backward_frees_the_graph_as_it_goes() -> None:
    gc.disable()
    try:
        x = leaf(np.ones(1000))
        h = x * 3.0
        k = h.exp()
        y = (k * h).sum()
        refs = [weakref.ref(t.data) for t in (h, k)]
        del h, k
        y.backward()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_values_that_backward_does_not_read_are_not_kept() -> None:
    x = leaf(np.ones(1000))
    h = x * 3.0
    y = (h + 1.0).sum()
    ref = weakref.ref(h.data)
    del h
    assert ref() is None
    y.backward()
    assert_close(x.grad, np.full(1000, 3.0), EXACT)


class WrongShape(Op, abstract=True):
    def forward(self, x: np.ndarray) -> np.ndarray:
        return x * 2

    def backward(self, gy: mg.Tensor) -> tuple[mg.Tensor | None, ...]:
        return (gy.sum(),)


def test_an_op_whose_gradient_has_the_wrong_shape_is_named() -> None:
    with pytest.raises(mg.GraphError) as error:
        WrongShape()(leaf([1.0, 2.0])).sum().backward()
    assert_one_line(error, "WrongShape.backward", r"shape \(2,\), got \(\)")
