"""Modules: names, state, modes; initial weights; the random generator that they are drawn from."""

import json
import re
from typing import Any

import numpy as np
import pytest
from engine_compare import assert_close, assert_one_line, assert_same, rounding

import minigan as mg
import minigan.functional as F
from minigan import init, nn, random
from minigan.nn import Parameter
from minigan.ops.conv2d import Conv2dWeightGrad
from minigan.ops.place import ALONE, Place


class Small(nn.Module):
    """A module of modules, with a parameter of its own and things that are none."""

    def __init__(self) -> None:
        self.head = nn.Sequential(nn.Conv2d(3, 4, 3, 2, "same"), nn.BatchNorm2d(4), nn.LeakyReLU())
        self.scale = Parameter(np.ones(4, np.float32))
        self.sizes = (3, 4)
        self.last = nn.Linear(4, 2, bias=False)

    def forward(self, *inputs: mg.Tensor) -> mg.Tensor:
        (x,) = inputs
        return self.last((self.head(x) * self.scale).mean((1, 2)))


NAMES = ["head.0.weight", "head.0.bias", "head.1.gamma", "head.1.beta", "scale", "last.weight"]
BUFFERS = ["head.1.running_mean", "head.1.running_var"]


def image(n: int = 2, dtype: Any = np.float32) -> mg.Tensor:
    return mg.tensor(np.random.default_rng(0).standard_normal((n, 6, 6, 3)).astype(dtype))


# ---- names and state -----------------------------------------------------------------------------------------------


def test_names_and_order() -> None:
    net = Small()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [id(t) for _, t in net.named_parameters()] == [id(t) for t in net.parameters()]
    # Parameters and buffers in the order in which they were set.
    assert list(net.state_dict()) == [*NAMES[:4], *BUFFERS, *NAMES[4:]]
    assert [name for name, _ in net.named_children()] == ["head", "last"]
    assert all(isinstance(t, Parameter) and t.requires_grad for t in net.parameters())
    assert not any(t.requires_grad for name, t in net.named_tensors() if name in BUFFERS)


def test_weight_comes_before_bias_and_gamma_before_beta() -> None:
    for module, names in (
        (nn.Conv2d(2, 3, 3), ["weight", "bias"]),
        (nn.ConvTranspose2d(2, 3, 3), ["weight", "bias"]),
        (nn.Linear(2, 3), ["weight", "bias"]),
        (nn.BatchNorm2d(3), ["gamma", "beta"]),
        (nn.Conv2d(2, 3, 3, bias=False), ["weight"]),
        (nn.ReLU(), []),
    ):
        assert [name for name, _ in module.named_parameters()] == names


def test_a_shared_parameter_is_listed_once() -> None:
    """An optimizer would move it twice a step."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            self.a = nn.Linear(2, 2)
            self.b = self.a

    assert len(Tied().parameters()) == 2


def test_state_dict_is_a_copy() -> None:
    net = Small()
    state = net.state_dict()
    for t in net.parameters():
        t.data[...] = 7
    for name, array in state.items():
        assert isinstance(array, np.ndarray)
        assert not (array == 7).any(), name
    kept = {k: v.copy() for k, v in state.items()}
    net.load_state_dict(state)
    for array in state.values():
        array[...] = 9  # nor does the network keep hold of it
    for name, array in net.state_dict().items():
        assert_same(array, kept[name])


def test_load_state_dict_makes_networks_equal() -> None:
    a, b = Small(), Small()
    a(image())  # moves the running statistics
    assert not np.array_equal(a.eval()(image()).numpy(), b.eval()(image()).numpy())
    b.load_state_dict(a.state_dict())
    assert_same(a(image()), b(image()))


def broken(change: Any) -> tuple[Small, dict[str, np.ndarray], dict[str, np.ndarray]]:
    net = Small()
    state = {k: v + 1 for k, v in net.state_dict().items()}
    change(state)
    return net, net.state_dict(), state


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop("last.weight"), KeyError, ("missing: .*last.weight", "unexpected: none")),
        (lambda s: s.update(extra=np.ones(1)), KeyError, ("missing: none", "unexpected: .*extra")),
        (
            lambda s: s.update({"a.b": s.pop("scale"), "c": s.pop("head.0.bias")}),
            KeyError,
            ("missing: .*head.0.bias.*scale", "unexpected: .*a.b.*c"),
        ),
        (
            lambda s: s.update({"last.weight": np.ones((4, 2), np.float32)}),
            ValueError,
            ("last.weight", r"expected shape \(2, 4\), float32", r"got \(4, 2\), float32"),
        ),
        (lambda s: s.update({"scale": np.ones((1, 4), np.float32)}), ValueError, ("scale", r"got \(1, 4\)")),
        (lambda s: s.update({"scale": np.ones((), np.float32)}), ValueError, ("scale", r"got \(\)")),
        (
            lambda s: s.update({"last.weight": s["last.weight"].astype(np.float64)}),
            ValueError,
            ("last.weight", "expected .*float32", "got .*float64"),
        ),
        (lambda s: s.clear(), KeyError, ("missing: .*head.0.weight.*last.weight",)),
    ],
)
def test_load_state_dict_is_strict(change: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    """It names what is wrong, and then nothing was changed."""
    net, before, state = broken(change)
    versions = [t.version for _, t in net.named_tensors()]
    with pytest.raises(error) as raised:
        net.load_state_dict(state)
    message = str(raised.value.args[0])
    assert "\n" not in message
    for word in ("load_state_dict", *words):
        assert re.search(word, message), message
    for name, array in net.state_dict().items():
        assert_same(array, before[name])
    assert [t.version for _, t in net.named_tensors()] == versions


# ---- modes ---------------------------------------------------------------------------------------------------------


def test_train_and_eval() -> None:
    net = Small()
    norm = net.head[1]
    assert net.training
    assert net.eval() is net
    assert not any(m.training for m in (net, net.head, norm, net.last))
    before = net.state_dict()
    net(image())
    for name, array in net.state_dict().items():
        assert_same(array, before[name])
    # One image's result does not depend on the others.
    assert_close(net(image(4)).numpy()[:2], net(image(2)), rounding(np.float32))
    assert net.train() is net
    assert norm.training
    assert np.abs(net(image(4)).numpy()[:2] - net(image(2)).numpy()).max() > 1e-3
    assert not np.array_equal(net.state_dict()["head.1.running_mean"], before["head.1.running_mean"])


def test_a_frozen_network_lets_gradients_through() -> None:
    net = Small()
    x = mg.tensor(image().numpy(), requires_grad=True)
    y = net(x)
    y.backward(np.ones((2, 2), np.float32))
    expected = x.grad
    for t in net.parameters():
        t.grad = None

    assert net.requires_grad_(False) is net
    x.grad = None
    y = net(x)
    assert y.requires_grad
    y.backward(np.ones((2, 2), np.float32))
    assert_same(x.grad, expected)
    assert all(t.grad is None for t in net.parameters())
    assert not net(image()).requires_grad  # nothing is recorded where nothing is learned
    net.requires_grad_()
    assert all(t.requires_grad for t in net.parameters())
    assert not any(t.requires_grad for name, t in net.named_tensors() if name in BUFFERS)


def test_the_gradients_of_a_frozen_network_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).requires_grad_(False)
    x = mg.tensor(image().numpy(), requires_grad=True)
    y = net(x)

    def never(*arguments: Any) -> Any:
        raise AssertionError("a weight gradient of a frozen network was computed")

    monkeypatch.setattr(Conv2dWeightGrad, "forward", never)
    y.backward(np.ones(y.shape, np.float32))
    assert x.grad is not None


def test_to_moves_in_place() -> None:
    net = Small()
    parameters = net.parameters()
    net.last.weight.grad = mg.tensor(np.ones((2, 4), np.float32))
    assert net.to("cpu") is net
    net.to("emulated")
    assert [id(t) for t in net.parameters()] == [id(t) for t in parameters]
    assert all(t.device == "emulated" for _, t in net.named_tensors())
    with pytest.raises(mg.DeviceError, match="unknown device 'tpu'"):
        net.to("tpu")


# ---- containers and layers -----------------------------------------------------------------------------------------


def test_sequential() -> None:
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)]
    net = nn.Sequential(*layers)
    assert len(net) == 3
    assert list(net) == layers
    assert net[0] is layers[0]
    assert net[-1] is layers[2]
    with pytest.raises(IndexError):
        net[3]
    x = mg.tensor(np.ones((5, 3), np.float32))
    assert_same(net(x), layers[2](layers[1](layers[0](x))))
    assert_same(nn.Sequential()(x), x)


@pytest.mark.parametrize("wrong", [F.relu, nn.ReLU, None, [nn.ReLU()], "relu"])
def test_sequential_takes_modules(wrong: Any) -> None:
    """A function or a class would be left out in silence."""
    with pytest.raises((TypeError, ValueError)) as error:
        nn.Sequential(nn.Linear(2, 2), wrong)
    assert_one_line(error, "Sequential", "[Mm]odule")


def test_repr() -> None:
    text = repr(Small())
    assert text.splitlines()[0] == "Small(scale (4,)"
    assert "  head: Sequential(" in text
    assert "    0: Conv2d(weight (4, 3, 3, 3), bias (4,))" in text
    assert text.endswith("\n)")
    assert repr(nn.ReLU()) == "ReLU()"


def test_a_module_without_forward_says_so() -> None:
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty defines no forward"):
        Empty()(image())


def test_layers_are_their_functions() -> None:
    rng = np.random.default_rng(1)
    x = mg.tensor(rng.standard_normal((2, 6, 6, 8)).astype(np.float32))
    conv = nn.Conv2d(8, 4, (3, 2), (2, 1), ((1, 0), (0, 1)))
    up = nn.ConvTranspose2d(8, 4, 5, 2, 1, 1)
    linear = nn.Linear(8, 4)
    for layer in (conv, up, linear):
        layer.bias.data[...] = rng.standard_normal(4)
    for layer, expected in (
        (conv, F.conv2d(x, conv.weight, conv.bias, (2, 1), ((1, 0), (0, 1)))),
        (up, F.conv_transpose2d(x, up.weight, up.bias, 2, 1, 1)),
        (nn.LeakyReLU(0.3), F.leaky_relu(x, 0.3)),
        (nn.LeakyReLU(), F.leaky_relu(x, 0.2)),
        (nn.ReLU(), F.relu(x)),
        (nn.ELU(0.5), F.elu(x, 0.5)),
        (nn.Tanh(), F.tanh(x)),
        (nn.Sigmoid(), F.sigmoid(x)),
        (nn.MaxPool2d(3, 2, 1), F.max_pool2d(x, 3, 2, 1)),
        (nn.MaxPool2d(2), F.max_pool2d(x, 2)),
        (nn.UpsampleNearest2d(3), F.upsample_nearest2d(x, 3)),
        (nn.Flatten(), x.reshape(2, 288)),
        (nn.Reshape(3, 12, 8), x.reshape(2, 3, 12, 8)),
        (nn.Reshape((-1, 8)), x.reshape(2, 36, 8)),
    ):
        assert_same(layer(x), expected)
    assert_same(linear(x.reshape(-1, 8)), F.linear(x.reshape(-1, 8), linear.weight, linear.bias))
    assert conv.weight.shape == (4, 3, 2, 8)
    assert up.weight.shape == (8, 5, 5, 4)
    assert linear.weight.shape == (4, 8)
    for layer in (conv, up, linear):
        assert layer.bias.shape == (4,)
        assert nn.Conv2d(2, 2, 1).bias.numpy().tolist() == [0, 0]


def test_batch_norm_layer() -> None:
    norm = nn.BatchNorm2d(3, momentum=0.5, epsilon=1e-3)
    assert [t.numpy().tolist() for _, t in norm.named_tensors()] == [[1.0] * 3, [0.0] * 3, [0.0] * 3, [1.0] * 3]
    x = image()
    mean, var = mg.tensor(np.zeros(3, np.float32)), mg.tensor(np.ones(3, np.float32))
    expected = F.batch_norm(x, norm.gamma, norm.beta, mean, var, True, 0.5, 1e-3)
    assert_same(norm(x), expected)
    assert_same(norm.running_mean, mean)
    assert_same(norm.running_var, var)
    expected = F.batch_norm(x, norm.gamma, norm.beta, mean, var, False, 0.5, 1e-3)
    assert_same(norm.eval()(x), expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_pass_in_evaluation_can_be_gone_back_through_after_one_in_training(create_graph: bool) -> None:
    """The running statistics that it normalised by are still those of its own time."""
    norm = nn.BatchNorm2d(2)
    x = mg.tensor(np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32), requires_grad=True)
    expected = mg.grad(norm.eval()(x) ** 2, x, np.ones((3, 2), np.float32))[0]
    y = norm(x) ** 2
    norm.train()(3 * x + 1)
    assert_same(mg.grad(y, x, np.ones((3, 2), np.float32), create_graph=create_graph)[0], expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Conv2d(0, 4, 3), ("in_channels", "got 0")),
        (lambda: nn.Conv2d(3, -4, 3), ("out_channels", "got -4")),
        (lambda: nn.Conv2d(3, 4, 0), ("kernel_size", "got 0")),
        (lambda: nn.Conv2d(3, 4, 2.5), ("kernel_size", "got 2.5")),
        (lambda: nn.Conv2d(3, 4, 3, 0), ("stride", "got 0")),
        (lambda: nn.Conv2d(3, 4, 3, 1, "smae"), ("padding", "got 'smae'")),
        (lambda: nn.Conv2d(3.0, 4, 3), ("in_channels", "got 3.0")),
        (lambda: nn.Conv2d(True, 4, 3), ("in_channels", "got True")),
        (lambda: nn.ConvTranspose2d(3, 0, 3), ("out_channels", "got 0")),
        (lambda: nn.ConvTranspose2d(3, 4, 3, 1, "smae"), ("padding", "got 'smae'")),
        (lambda: nn.ConvTranspose2d(3, 4, 3, output_padding=-1), ("output_padding", "got -1")),
        (lambda: nn.Linear(0, 4), ("in_features", "got 0")),
        (lambda: nn.Linear(4, "x"), ("out_features", "got 'x'")),
        (lambda: nn.BatchNorm2d(0), ("channels", "got 0")),
        (lambda: nn.BatchNorm2d(3, momentum=1.5), ("momentum", "1.5")),
        (lambda: nn.BatchNorm2d(3, epsilon=0.0), ("epsilon", "0.0")),
        (lambda: nn.BatchNorm2d(3, epsilon=float("nan")), ("epsilon", "nan")),
        (lambda: nn.LeakyReLU(-1.0), ("slope", "-1.0")),
        (lambda: nn.ELU(0.0), ("alpha", "0.0")),
        (lambda: nn.MaxPool2d(0), ("kernel_size", "got 0")),
        (lambda: nn.UpsampleNearest2d(0), ("scale", "0")),
    ],
)
def test_wrong_arguments_are_refused_at_construction(make: Any, words: tuple[str, ...]) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert_one_line(error, *words)


# ---- initial weights and random numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "fans"), [((64, 5, 4, 96), 20 * (64 + 96)), ((300, 200), 500), ((3, 1, 1, 5000), 5003), ((1, 4096), 4097)]
)
def test_glorot_uniform(shape: tuple[int, ...], fans: int) -> None:
    w = init.glorot_uniform(shape)
    limit = (6 / fans) ** 0.5
    assert (w.shape, w.dtype) == (shape, np.float32)
    # Uniform: nothing beyond the limit (but for float32's rounding), something near it, and its standard deviation.
    assert np.abs(w).max() <= limit * (1 + 1e-6)
    assert np.abs(w).max() >= 0.99 * limit
    tolerance = 5 / w.size**0.5  # five standard errors
    assert abs(w.std() / (limit / 3**0.5) - 1) < tolerance
    assert abs(w.mean() / limit) < tolerance


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_truncated_normal(std: float) -> None:
    w = init.truncated_normal(std)((100, 5, 5, 80)) / std
    assert w.dtype == np.float32
    assert np.abs(w).max() <= 2 * (1 + 1e-6)
    assert np.abs(w).max() >= 1.99
    # A normal distribution cut at two sigma: its deviation is 0.8796 sigma, and 71.5 % lie within one.
    assert abs(w.std() / 0.87962566 - 1) < 5 / w.size**0.5
    assert abs(w.mean()) < 5 / w.size**0.5
    assert abs((np.abs(w) < 1).mean() - 0.7152) < 5 * (0.7152 * 0.2848 / w.size) ** 0.5


def test_layers_start_as_told() -> None:
    mg.manual_seed(3)
    conv = nn.Conv2d(3, 4, 5, weight_init=init.truncated_normal(0.5))
    mg.manual_seed(3)
    assert_same(conv.weight, init.truncated_normal(0.5)((4, 5, 5, 3)))
    mg.manual_seed(3)
    linear = nn.Linear(3, 4)
    mg.manual_seed(3)
    assert_same(linear.weight, init.glorot_uniform((4, 3)))


def test_manual_seed() -> None:
    def draw() -> list[np.ndarray]:
        net = Small()
        return [*net.state_dict().values(), random.normal((3, 5)).numpy(), random.uniform((7,), -1, 1).numpy()]

    mg.manual_seed(5)
    first = draw()
    second = draw()
    mg.manual_seed(5)
    for a, b in zip(first, draw(), strict=True):
        assert_same(a, b)
    mg.manual_seed(6)
    for other in (draw(), second):
        assert not np.array_equal(first[0], other[0])
        assert not np.array_equal(first[-1], other[-1])


def test_random_numbers() -> None:
    mg.manual_seed(0)
    z = random.uniform((1000, 7), -2.0, 1.0)
    assert (z.dtype, z.device, z.shape, z.requires_grad) == (np.float32, "cpu", (1000, 7), False)
    assert -2 <= z.numpy().min() < -1.99
    assert 0.99 < z.numpy().max() < 1
    z = random.normal((1000, 7), 3.0, 0.5)
    assert z.dtype == np.float32
    assert abs(z.numpy().mean() - 3) < 5 * 0.5 / 7000**0.5
    assert abs(z.numpy().std() / 0.5 - 1) < 5 / 7000**0.5
    assert random.normal((2,), device="emulated").device == "emulated"


def test_the_upper_end_of_uniform_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the rounding to float32, for which 1 - 1e-9 is 1."""

    class Highest:
        def uniform(self, low: float, high: float, shape: Any) -> np.ndarray:
            return np.full(shape, low + (high - low) * (1 - 1e-9))

        def random(self, shape: Any, dtype: Any = np.float64) -> np.ndarray:
            return np.full(shape, 1 - 2.0**-24 if np.dtype(dtype) == np.float32 else 1 - 1e-9, dtype)

    monkeypatch.setattr(random, "_generator", Highest())
    assert random.uniform((3,), 0.0, 1.0).numpy().max() < 1


@pytest.mark.parametrize("drawn", [0, 1, 3, 4, 1001])
def test_random_state_goes_through_json(drawn: int) -> None:
    mg.manual_seed(7)
    random.normal((drawn,))
    random.generator().integers(0, 9, 3, np.int32)  # leaves half a number in the generator
    state = json.loads(json.dumps(random.get_state()))
    expected = random.normal((33,)).numpy()
    random.generator().integers(0, 9, 5, np.int32)
    mg.manual_seed(8)
    random.set_state(state)
    assert_same(random.normal((33,)), expected)


@pytest.mark.parametrize("wrong", [-1, 1.5, "1", None])
def test_wrong_seeds(wrong: Any) -> None:
    with pytest.raises(ValueError) as error:
        mg.manual_seed(wrong)
    assert_one_line(error, "whole number", f"got {wrong!r}")


def test_sequential_computes_batch_norm_and_the_leaky_relu_behind_it_as_one(device: str) -> None:
    """The numbers, the names and the running statistics are those of layer after layer; one op less is there."""
    results = []
    for together in (True, False):
        random.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.LeakyReLU(0.3), nn.LeakyReLU(0.1)).to(device)
        x = random.normal((4, 7, 9, 2), device=device)
        if together:
            y = net(x)
        else:
            y = x
            for layer in net:
                y = layer(y)
        assert y.op is not None
        before = y.op.inputs[0].op
        name = type(before).__name__, vars(before)["slope"]
        (y * y).sum().backward()
        net.eval()
        results.append([y, *(p.grad for p in net.parameters()), net(x), *net.state_dict().values()])
        assert name == (("BatchNorm", 0.3) if together else ("LeakyReLU", 0.3))
        assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.gamma", "1.beta"]
    for one, two in zip(*results, strict=True):
        assert_close(one, two, rounding(np.float32))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_sequential_computes_a_convolution_and_the_elu_behind_it_as_one(device: str, kind: Any) -> None:
    """To the last bit layer after layer, to second order, also in front of a batch norm; and one op less is there."""
    results = []
    for together in (True, False):
        random.manual_seed(3)
        chain = nn.Sequential(
            kind(4, 5, 3), nn.ELU(0.7), nn.BatchNorm2d(5), kind(5, 6, 3, 2, "same"), nn.ELU(), nn.ELU()
        )
        net, x = chain.to(device), random.normal((2, 7, 9, 4), device=device)
        x.requires_grad = True
        y = x
        for layer in [net] if together else net:
            y = layer(y)
        assert y.op is not None
        before = y.op.inputs[0].op
        gx, *others = mg.grad((y * y).sum(), [x, *net.parameters()], create_graph=True)
        second = mg.grad((gx * gx).sum(), [x, *(p for name, p in net.named_parameters() if name != "3.bias")])
        results.append([y, gx, *others, *second, *net.state_dict().values()])
        assert (type(before).__name__ == "ELU") != together
    for one, two in zip(*results, strict=True):
        assert_same(one, two)


def test_sequential_leaves_other_layers_alone() -> None:
    """A layer of a user's own class may do something else, and a LeakyReLU in front is not one behind."""

    class Own(nn.BatchNorm2d):
        def forward(self, x: mg.Tensor, place: Place = ALONE) -> mg.Tensor:
            return super().forward(x, place) * 2.0

    x = random.normal((4, 3, 3, 5))
    for layers in ((Own(5), nn.LeakyReLU(0.5)), (nn.LeakyReLU(0.5), nn.BatchNorm2d(5)), (nn.BatchNorm2d(5),)):
        expected = x
        for layer in layers:
            expected = layer(expected)
        assert_same(nn.Sequential(*layers)(x), expected)


def test_what_a_chain_plans() -> None:
    """Slopes that are computed along; 16 bits from a convolution to the next one; moments for who asks in training."""

    class Own(nn.ELU):
        """May read float32 alone."""

    layers = [
        nn.Conv2d(8, 8, 3),
        nn.LeakyReLU(0.3),
        nn.BatchNorm2d(8),
        nn.ELU(),
        nn.MaxPool2d(2),
        nn.UpsampleNearest2d(),
    ]
    layers += [
        nn.ConvTranspose2d(8, 8, 3),
        Own(),
        nn.Conv2d(8, 8, 3),
        nn.ELU(0.5),
        nn.Flatten(),
        nn.Linear(8, 8),
        nn.ReLU(),
    ]
    layers += [nn.LeakyReLU(), nn.BatchNorm2d(8)]
    for training in (True, False):
        layers[2].train(training)
        plan = nn._planned(layers)
        places = [getattr(step, "keywords", {}).get("place") for step in plan]
        assert [p and (p.slope, p.half) for p in places] == [
            (0.3, True), (1.0, True), None, None, None,
            (1.0, False), None, (0.5, False), None, (0.0, False), None, (1.0, False),
        ]  # fmt: skip
        assert [p.elu for p in places if p] == [False, False, False, True, False, False]
        assert places[1].moments is places[0].moments
        assert (places[0].moments is not None) == training
        assert [p.moments for p in (places[5], places[7], places[9])] == [None] * 3


# ---- several batches in one pass -------------------------------------------------------------------------------------


def judge(device: str) -> nn.Sequential:
    """A discriminator, with batch norm behind a convolution and behind a dense layer."""
    random.manual_seed(5)
    layers = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, 0.5), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(5 * 3 * 2, 6)
    return nn.Sequential(*layers, nn.BatchNorm2d(6, 0.5), nn.ReLU(), nn.Linear(6, 1)).to(device)  # type: ignore[return-value]


def batches(count: int, device: str) -> list[mg.Tensor]:
    """Images whose means and deviations differ from batch to batch."""
    given = [random.normal((4, 5, 4, 2), mean=i, std=1 + i, device=device) for i in range(count)]
    for batch in given:
        batch.requires_grad = True
    return given


@pytest.mark.parametrize("count", [1, 2, 3])
def test_together_is_one_after_the_other(count: int, device: str) -> None:
    """Values, gradients of the weights and of the images, and running statistics; each batch weighs differently."""
    results = []
    for at_once in (True, False):
        net, given = judge(device), batches(count, device)
        judged = nn.together(net, *given) if at_once else tuple(map(net, given))
        assert len(judged) == count
        losses = [(i + 1) * (y * y).mean() for i, y in enumerate(judged)]
        sum(losses[1:], losses[0]).backward()
        results.append([*judged, *(t.grad for t in (*given, *net.parameters())), *net.state_dict().values()])
    for one, two in zip(*results, strict=True):
        assert one is not None
        # A gradient is a sum of up to 12 x count products, behind two normalisations that enlarge roundings tenfold.
        assert_close(one, two, 100 * rounding(np.float32))


def test_together_can_be_differentiated_twice(device: str) -> None:
    found = []
    for at_once in (True, False):
        net, given = judge(device), batches(2, device)
        judged = nn.together(net, *given) if at_once else tuple(map(net, given))
        slopes = mg.grad(sum(y.sum() * (i + 1.0) for i, y in enumerate(judged)), given, create_graph=True)
        penalty = sum((g * g).sum() for g in slopes if g is not None)
        assert isinstance(penalty, mg.Tensor)
        penalty.backward()
        found.append([penalty, *(p.grad for p in net.parameters() if p.grad is not None)])
    for one, two in zip(*found, strict=True):
        assert_close(one, two, 1000 * rounding(np.float32))


def test_together_costs_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """One convolution sees all images, and the parts of the result are no copies of it."""
    net = judge("cpu")
    seen = []
    convolve = nn.placed_conv2d
    monkeypatch.setattr(nn, "placed_conv2d", lambda at, x, *rest: seen.append(x.shape) or convolve(at, x, *rest))
    one, two = nn.together(net, *batches(2, "cpu"))
    assert seen == [(8, 5, 4, 2)]
    assert one.shape == two.shape == (4, 1)
    assert one.data.base is two.data.base is not None


def test_together_within_together() -> None:
    """Four batches, of which a module takes two each time."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            self.net = judge("cpu")

        def forward(self, x: mg.Tensor) -> mg.Tensor:
            one, two = nn.together(self.net, x, 2.0 * x)
            return one + two

    given = batches(2, "cpu")
    for found, alone in zip(nn.together(Twice(), *given), map(Twice(), given), strict=True):
        assert_close(found, alone, 100 * rounding(np.float32))


def test_together_without_batch_norm_and_in_evaluation() -> None:
    given = batches(2, "cpu")
    norm = nn.BatchNorm2d(2).eval()
    before = norm.state_dict()
    for net in (nn.Conv2d(2, 3, 3), nn.Flatten(), norm):
        for found, alone in zip(nn.together(net, *given), map(net, given), strict=True):
            assert_close(found, alone, rounding(np.float32))
    for name, value in norm.state_dict().items():
        assert_same(value, before[name])


def test_together_leaves_nothing_behind_when_it_fails() -> None:
    """A batch norm is itself again after an error on the way, with an odd number of images, too."""

    class Broken(nn.Module):
        def forward(self, x: mg.Tensor) -> mg.Tensor:
            raise ArithmeticError("on the way")

    norm, x = nn.BatchNorm2d(2), batches(1, "cpu")[0]
    with pytest.raises(ArithmeticError, match="on the way"):
        nn.together(nn.Sequential(norm, Broken()), x, x)
    odd = x[:3]
    assert_same(norm(odd), F.batch_norm(odd, norm.gamma, norm.beta))


def test_together_wants_batches_of_one_shape() -> None:
    small, large = (mg.tensor(np.ones((n, 2, 2, 3), np.float32)) for n in (3, 4))
    for given in ((small, large), ()):
        with pytest.raises(ValueError) as error:
            nn.together(nn.BatchNorm2d(3), *given)
        assert_one_line(error, "together: expected batches of one shape", *(str(t.shape) for t in given))


LAYERS = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_says_what_it_is(kind: type[nn.Module]) -> None:
    assert vars(kind).get("__doc__")
    if kind in (nn.LeakyReLU, nn.ReLU, nn.ELU, nn.Tanh, nn.Sigmoid):
        assert "(...) -> (...)" in str(kind.__doc__)
