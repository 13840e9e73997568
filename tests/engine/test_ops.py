"""Every op of the registry: forward against its reference, first and second derivatives, layouts, purity, memory."""

import gc
import inspect
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_compare import assert_close, assert_same, rounding

import minigan as mg
from minigan.tensor import Fused, Op, registry

OPS = {name: op for name, op in registry.items() if op.__module__.startswith("minigan.ops")}


def samples_of(name: str) -> list[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
    return list(OPS[name].samples(np.random.default_rng(zlib.crc32(name.encode()))))


EACH_OP = pytest.mark.parametrize("name", sorted(OPS))
EACH_SAMPLE = pytest.mark.parametrize(
    ("op", "arrays", "settings"),
    [
        pytest.param(OPS[name], arrays, settings, id=f"{name}-{i}")
        for name in sorted(OPS)
        for i, (arrays, settings) in enumerate(samples_of(name))
    ],
)


def tensors(arrays: Any, device: str = "cpu", requires_grad: bool = True) -> list[mg.Tensor]:
    return [mg.tensor(a, requires_grad=requires_grad, device=device, copy=False) for a in arrays]


def cotangent(y: mg.Tensor) -> np.ndarray:
    return np.asarray(np.random.default_rng(7).standard_normal(y.shape)).astype(y.dtype)


def on_its_device(y: mg.Tensor, gy: Any = None) -> mg.Tensor:
    """The cotangent where y is: nothing is copied between devices in silence."""
    return mg.tensor(cotangent(y) if gy is None else gy, device=y.device)


def test_registry_holds_the_ops_of_the_contract() -> None:
    expected = {"Add", "Subtract", "Multiply", "Divide", "Power", "Negate", "Matmul", "Sum", "BroadcastTo", "Reshape"}
    expected |= {"Transpose", "GetItem", "AddAt", "Pad", "Concatenate", "Exp", "Log", "Sqrt", "Abs", "Tanh", "Sigmoid"}
    expected |= {"ELU", "LeakyReLU", "BatchNorm", "LogisticLoss", "MaxPool2d", "UpsampleNearest2d"}
    expected |= {"Conv2d", "Conv2dInputGrad", "Conv2dWeightGrad"}
    assert expected <= set(OPS)


@EACH_OP
def test_complete(name: str) -> None:
    op = OPS[name]
    # A dataclass without a docstring gets its signature for one.
    assert op.__doc__
    assert not op.__doc__.startswith(f"{name}(")
    assert op.__doc__ != Op.__doc__
    defined = {"forward", "reference", "samples"} | (
        {"gradients", "composed"} if issubclass(op, Fused) else {"backward"}
    )
    assert defined <= set(vars(op)), f"{name} lacks {defined - set(vars(op))}"
    assert len(samples_of(name)) >= 1
    assert all(a.dtype == np.float64 for arrays, _ in samples_of(name) for a in arrays)


@EACH_OP
def test_samples_have_odd_sizes(name: str) -> None:
    """Lengths that straddle tiles and vector registers: 1, 7, 19 and 33, each somewhere among an op's samples."""
    lengths = {n for arrays, _ in samples_of(name) for a in arrays for n in a.shape}
    assert {1, 7, 19, 33} <= lengths, f"{name} lacks {sorted({1, 7, 19, 33} - lengths)}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EACH_SAMPLE
def test_forward(op: Callable[..., Op], arrays: Any, settings: dict[str, Any], dtype: str, device: str) -> None:
    arrays = [np.asarray(a.astype(dtype)) for a in arrays]
    before = [a.copy() for a in arrays]
    y = op(**settings)(*tensors(arrays, device))
    assert (y.dtype, y.device) == (np.dtype(dtype), device)
    assert y.requires_grad
    # The reference computes in float64, from the numbers that the op was given.
    expected = op.reference(*(a.astype(np.float64) for a in arrays), **settings)  # type: ignore[attr-defined]
    assert_close(y, expected, rounding(dtype))
    for a, b in zip(arrays, before, strict=True):
        assert_same(a, b)


@EACH_SAMPLE
def test_forward_is_the_same_without_a_graph(
    op: Callable[..., Op], arrays: Any, settings: dict[str, Any], device: str
) -> None:
    y = op(**settings)(*tensors(arrays, device))
    with mg.no_grad():
        assert_same(op(**settings)(*tensors(arrays, device)).numpy(), y.numpy())


@EACH_SAMPLE
def test_first_and_second_derivatives(op: Any, arrays: Any, settings: dict[str, Any], device: str) -> None:
    # gradcheck draws random cotangents, and leaves its inputs alone.
    assert mg.gradcheck(lambda *xs: op(**settings)(*xs), tensors(arrays, device), order=2)


def gradients(op: Any, arrays: Any, settings: Any, device: str, gy: Any = None, **options: Any) -> list[Any]:
    xs = tensors(arrays, device)
    y = op(**settings)(*xs)
    found = mg.grad(y, xs, on_its_device(y, gy), allow_unused=True, **options)
    return [y, *found]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@EACH_SAMPLE
def test_gradient_when_it_is_recorded(op: Any, arrays: Any, settings: Any, dtype: str, device: str) -> None:
    """create_graph computes the very gradient of the plain pass, of its dtype; a fused op has two ways to it."""
    arrays = [np.asarray(a.astype(dtype)) for a in arrays]
    plain = gradients(op, arrays, settings, device)
    recorded = gradients(op, arrays, settings, device, create_graph=True)
    for a, b in zip(plain, recorded, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype == np.dtype(dtype)
            assert_close(b, a, rounding(dtype))


def fortran(a: np.ndarray) -> np.ndarray:
    return np.asfortranarray(a) if a.ndim else a


def strided(a: np.ndarray) -> np.ndarray:
    """Every second element of an array that holds NaN elsewhere."""
    big = np.full([2 * n + 1 for n in a.shape], np.nan)
    view = big[(..., *(slice(1, 2 * n + 1, 2) for n in a.shape))]
    view[...] = a
    return view


def reversed_(a: np.ndarray) -> np.ndarray:
    back = (slice(None, None, -1),) * a.ndim
    return a[back].copy()[back]


def transposed(a: np.ndarray) -> np.ndarray:
    """The last axis has the widest stride, the others are in order."""
    return np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1) if a.ndim > 1 else a


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("layout", [fortran, strided, reversed_, transposed, read_only])
@EACH_SAMPLE
def test_layouts(op: Any, arrays: Any, settings: dict[str, Any], layout: Any, device: str) -> None:
    """Inputs and cotangents of any layout give what contiguous ones give, and are not changed."""
    expected = gradients(op, arrays, settings, device)
    inputs = [layout(a) for a in arrays]
    actual = gradients(op, inputs, settings, device, layout(cotangent(expected[0])))
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, rounding(np.float64))
    for a, b in zip(inputs, arrays, strict=True):
        assert_same(a, b)


@EACH_SAMPLE
def test_gradients_leave_everything_as_it_was(op: Any, arrays: Any, settings: Any, device: str) -> None:
    """Neither the inputs nor the cotangent nor the output change, and a second pass gives the same."""
    xs = tensors([a.copy() for a in arrays], device)
    y = op(**settings)(*xs)
    gy = on_its_device(y)
    before, gy_before, y_before = [x.numpy().copy() for x in xs], gy.numpy().copy(), y.numpy().copy()
    first = mg.grad(y, xs, gy, retain_graph=True, allow_unused=True)
    kept = [None if g is None else g.numpy().copy() for g in first]
    second = mg.grad(y, xs, gy, allow_unused=True)
    for a, b in [*zip([*xs, gy, y], [*before, gy_before, y_before], strict=True)]:
        assert_same(a, b)
    for g, h in zip(second, kept, strict=True):
        assert (g is None) == (h is None)
        if g is not None and h is not None:
            assert_same(g, h)


@EACH_OP
def test_memory_goes_with_the_output(name: str, device: str) -> None:
    """No cycles: after a forward, a backward or a second-order pass nothing is left for the garbage collector."""
    arrays, settings = samples_of(name)[0]

    def forward() -> tuple[list[mg.Tensor], mg.Tensor]:
        xs = tensors(arrays, device)
        return xs, OPS[name](**settings)(*(x * 1.0 for x in xs))  # type: ignore[call-arg]

    def backward() -> None:
        _, y = forward()
        y.backward(on_its_device(y))

    def second() -> None:
        xs, y = forward()
        gy = mg.tensor(cotangent(y), requires_grad=True, device=device)
        g = next(g for g in mg.grad(y, xs, gy, create_graph=True, allow_unused=True) if g is not None)
        mg.grad(g, gy, on_its_device(g))

    for work in (forward, backward, second):
        work()  # compiles the loops, which leaves garbage of its own
        gc.disable()
        gc.collect(0)
        gc.freeze()  # what is there by now need not be searched
        try:
            work()
            assert gc.collect() == 0, work.__name__
        finally:
            gc.unfreeze()
            gc.enable()


@EACH_OP
def test_gradient_only_where_it_is_needed(name: str, device: str) -> None:
    """Each input in turn is the only one that requires a gradient; it gets the one that it gets among all.

    To rounding, where kernels sum a bias's gradient in the launch of its weight's, if that is wanted as well.
    """
    arrays, settings = samples_of(name)[-1]
    expected = gradients(OPS[name], arrays, settings, device)[1:]
    for i, g in enumerate(expected):
        if g is None:
            continue
        xs = [mg.tensor(a, requires_grad=j == i, device=device) for j, a in enumerate(arrays)]
        y = OPS[name](**settings)(*xs)  # type: ignore[call-arg]
        y.backward(on_its_device(y))
        if device != "cpu" and name in ("Conv2d", "Conv2dInputGrad") and i == 2:
            assert_close(xs[i].grad, g, rounding("float64"))
        else:
            assert_same(xs[i].grad, g)
        assert all(x.grad is None for j, x in enumerate(xs) if j != i)


@EACH_OP
def test_inputs_that_ops_made(name: str, device: str) -> None:
    """Intermediate tensors as inputs: values that backward needs are kept, also where a gradient is recorded."""
    arrays, settings = samples_of(name)[-1]
    expected = gradients(OPS[name], arrays, settings, device)[1:]
    for create_graph in (False, True):
        xs = tensors(arrays, device)
        y = OPS[name](**settings)(*(x * 1.0 for x in xs))  # type: ignore[call-arg]
        found = mg.grad(y, xs, on_its_device(y), create_graph=create_graph, allow_unused=True)
        for g, h in zip(found, expected, strict=True):
            assert (g is None) == (h is None)
            if g is not None:
                assert_close(g, h, rounding(np.float64))


def test_comparison_fails_on_nan_shape_and_value() -> None:
    x = np.array([1.0, 2.0])
    assert_close(x, x, 0)
    for wrong in (np.array([1.0, np.nan]), np.array([[1.0, 2.0]]), np.array([1.0, 2.1]), np.array([1.0, np.inf])):
        with pytest.raises(AssertionError):
            assert_close(wrong, x, 1e-3)
        with pytest.raises(AssertionError):
            assert_same(wrong, x)


def test_ops_are_called_with_tensors_of_one_kind() -> None:
    for name, op in OPS.items():
        arrays, settings = samples_of(name)[0]
        if len(arrays) > 1:
            first, *others = tensors(arrays)
            narrow = [mg.tensor(t.numpy(), dtype="float32") for t in others]
            with pytest.raises(TypeError, match=r"expected tensors of one dtype, got .*float64.*float32"):
                op(**settings)(first, *narrow)  # type: ignore[call-arg]
            elsewhere = [mg.tensor(t.numpy(), device="emulated") for t in others]
            with pytest.raises(mg.DeviceError, match=r"expected tensors on one device, got .*cpu.*emulated"):
                op(**settings)(first, *elsewhere)  # type: ignore[call-arg]


def test_each_file_of_ops_is_walked() -> None:
    """An op that is defined but not imported by functional would escape all of this."""
    assert {op.__module__ for op in OPS.values()} >= {
        f"minigan.ops.{stem}"
        for stem in ("arithmetic", "batch_norm", "conv2d", "elementwise", "elu", "leaky_relu", "losses", "matmul")
    }
    assert all(inspect.isclass(op) and issubclass(op, Op) for op in OPS.values())
