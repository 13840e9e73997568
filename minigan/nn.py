"""Layers: functions of `functional` together with the tensors that they learn."""

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

import minigan.functional as F
from minigan import init
from minigan.backend import to_device, to_numpy
from minigan.ops.batch_norm import placed_batch_norm
from minigan.ops.conv2d import placed_conv2d, placed_conv_transpose2d
from minigan.ops.geometry import Padding, Pair, check_padding, pair
from minigan.ops.moments import Moments
from minigan.ops.place import ALONE, Place
from minigan.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module learns."""

    __slots__ = ("reducer",)

    def __init__(self, data: np.ndarray) -> None:
        super().__init__(data, requires_grad=True)
        self.reducer = None


class Module:
    """A function with state. Parameters, buffers (other tensors) and modules that are set as attributes belong to it.

    A subclass sets them in __init__, and defines forward(x). Names and orders are those in which they were set.
    """

    training = True

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """All parameters and buffers with their names: "0.weight", "3.running_mean" ..."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_tensors(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Each parameter once, under its first name, also if modules share it."""
        first = {id(t): name for name, t in reversed(list(self.named_tensors()))}
        return ((n, t) for n, t in self.named_tensors() if isinstance(t, Parameter) and first[id(t)] == n)

    def parameters(self) -> list[Parameter]:
        return [t for _, t in self.named_parameters()]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by name, in host memory."""
        return {name: np.array(to_numpy(t.data)) for name, t in self.named_tensors()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copies values into the parameters and buffers.

        All of them or none: names, shapes and dtypes must agree exactly.

        Raises KeyError that lists missing and unexpected names; ValueError for a shape or dtype that differs.
        """
        own = dict(self.named_tensors())
        missing, unexpected = [n for n in own if n not in state], [n for n in state if n not in own]
        if missing or unexpected:
            raise KeyError(f"load_state_dict: missing: {missing or 'none'}; unexpected: {unexpected or 'none'}")
        arrays = {name: np.asarray(value) for name, value in state.items()}
        for name, t in own.items():
            a = arrays[name]
            if a.shape != t.shape or a.dtype != t.dtype:
                wanted = f"expected shape {t.shape}, {t.dtype}"
                raise ValueError(f"load_state_dict: {name}: {wanted}, got {a.shape}, {a.dtype}")
        for name, t in own.items():
            t.data[...] = to_device(arrays[name], t.device)
            t.mark_changed()

    def train(self, mode: bool = True) -> "Module":
        """Sets the module, and those in it, to training (or evaluation).

        In training, batch norm uses the batch's statistics.
        """
        self.training = mode
        for _, child in self.named_children():
            child.train(mode)
        return self

    def eval(self) -> "Module":
        """Sets the module, and those in it, to evaluation: batch norm uses its running statistics."""
        return self.train(False)

    def to(self, device: str) -> "Module":
        """Moves all parameters and buffers to a device, in place: an optimizer that has them keeps them."""
        for _, t in self.named_tensors():
            moved = t.to(device)
            t._data, t.device, t.grad = moved.data, moved.device, None
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Module":
        """Freezes (False) or releases the parameters: frozen ones get no gradient, and it is not computed."""
        for _, t in self.named_tensors():
            if isinstance(t, Parameter):
                t.requires_grad = requires_grad
        return self

    def __repr__(self) -> str:
        lines = [f"  {name}: " + repr(child).replace("\n", "\n  ") for name, child in self.named_children()]
        shapes = ", ".join(f"{name} {v.shape}" for name, v in vars(self).items() if isinstance(v, Tensor))
        return f"{type(self).__name__}({shapes}" + "".join("\n" + line for line in lines) + ("\n)" if lines else ")")


class Sequential(Module):
    """Modules, one after the other; `net[i]` is one of them, and their names are "0", "1", ..."""

    def __init__(self, *modules: Module) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: expected a Module at place {i}, got {module!r}")
            setattr(self, str(i), module)

    def forward(self, x: Tensor) -> Tensor:
        for step in _planned(list(self)):
            x = step(x)
        return x

    def __getitem__(self, index: int) -> Module:
        return [module for _, module in self.named_children()][index]

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())


def _whole(what: str, value: Any) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what}: expected a whole number from 1, got {value!r}")
    return int(value)


class Conv2d(Module):
    """(N, H, W, in) -> (N, P, Q, out). weight (out, R, S, in), bias (out,) or None.

    Padding as in `functional.conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: Padding = 0,
        bias: bool = True,
        weight_init: init.Initializer = init.glorot_uniform,
    ) -> None:
        self.stride, self.padding = pair("Conv2d: stride", stride, 1), check_padding("Conv2d", padding)
        c, k = _whole("Conv2d: in_channels", in_channels), _whole("Conv2d: out_channels", out_channels)
        r, s = pair("Conv2d: kernel_size", kernel_size, 1)
        self.weight = Parameter(weight_init((k, r, s, c)))
        self.bias = Parameter(init.zeros((k,))) if bias else None

    def forward(self, x: Tensor, place: Place = ALONE) -> Tensor:
        return placed_conv2d(place, x, self.weight, self.bias, self.stride, self.padding)


class ConvTranspose2d(Module):
    """(N, P, Q, in) -> (N, H, W, out). weight (in, R, S, out), bias (out,) or None.

    As `functional.conv_transpose2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: Padding = 0,
        output_padding: int | Pair = 0,
        bias: bool = True,
        weight_init: init.Initializer = init.glorot_uniform,
    ) -> None:
        self.stride = pair("ConvTranspose2d: stride", stride, 1)
        self.padding = check_padding("ConvTranspose2d", padding)
        self.output_padding = pair("ConvTranspose2d: output_padding", output_padding, 0)
        k = _whole("ConvTranspose2d: in_channels", in_channels)
        c = _whole("ConvTranspose2d: out_channels", out_channels)
        r, s = pair("ConvTranspose2d: kernel_size", kernel_size, 1)
        self.weight = Parameter(weight_init((k, r, s, c)))
        self.bias = Parameter(init.zeros((c,))) if bias else None

    def forward(self, x: Tensor, place: Place = ALONE) -> Tensor:
        settings = self.stride, self.padding, self.output_padding
        return placed_conv_transpose2d(place, x, self.weight, self.bias, *settings)


class Linear(Module):
    """(N, in) -> (N, out). weight (out, in), bias (out,) or None."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_init: init.Initializer = init.glorot_uniform,
    ) -> None:
        shape = _whole("Linear: out_features", out_features), _whole("Linear: in_features", in_features)
        self.weight = Parameter(weight_init(shape))
        self.bias = Parameter(init.zeros(shape[:1])) if bias else None

    def forward(self, x: Tensor, place: Place = ALONE) -> Tensor:
        return F.linear(x, self.weight, self.bias, place.slope)


class BatchNorm2d(Module):
    """(..., C) -> (..., C), normalised over all axes but the last. gamma, beta, running_mean, running_var: (C,).

    momentum in Keras's sense: the share of the running value that is kept. `synchronised` may be set to True: its batch
    is then that of all ranks of a data-parallel program together.
    """

    synchronised = False

    def __init__(self, channels: int, momentum: float = 0.99, epsilon: float = 1e-5) -> None:
        shape = (_whole("BatchNorm2d: channels", channels),)
        if not 0 <= momentum <= 1 or not epsilon > 0:
            raise ValueError(f"BatchNorm2d: expected momentum in [0, 1] and epsilon > 0, got {momentum}, {epsilon}")
        self.momentum, self.epsilon = momentum, epsilon
        self.gamma = Parameter(init.ones(shape))
        self.beta = Parameter(init.zeros(shape))
        self.running_mean = Tensor(init.zeros(shape))
        self.running_var = Tensor(init.ones(shape))

    def forward(self, x: Tensor, place: Place = ALONE) -> Tensor:
        settings = self.training, self.momentum, self.epsilon, self.synchronised, _groups.get()
        return placed_batch_norm(place, x, self.gamma, self.beta, self.running_mean, self.running_var, *settings)


_groups: ContextVar[int] = ContextVar("groups", default=1)  # how many batches, one after another, a pass is given


def together(module: Module, *batches: Tensor) -> tuple[Tensor, ...]:
    """module(batch) for each batch, all in one pass: `judged_real, judged_fake = nn.together(net, real, fake)`.

    To the layers the batches are one, except to BatchNorm2d, which normalises each by its own statistics, and updates
    the running ones by one after the other. The module must not mix the images of a batch in any other way.
    Raises ValueError if the batches are not of one shape.
    """
    if len({batch.shape for batch in batches}) != 1:
        raise ValueError(f"together: expected batches of one shape, got {[batch.shape for batch in batches]}")
    token = _groups.set(_groups.get() * len(batches))
    try:
        y = module(F.concatenate(batches))
    finally:
        _groups.reset(token)
    return tuple(y.reshape(len(batches), len(batches[0]), *y.shape[1:]))


class LeakyReLU(Module):
    """(...) -> (...): x where it is above 0, else slope * x."""

    def __init__(self, slope: float = 0.2) -> None:
        if not slope >= 0:
            raise ValueError(f"LeakyReLU: expected a slope from 0, got {slope}")
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


class ReLU(Module):
    """(...) -> (...): x where it is above 0, else 0."""

    slope = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class ELU(Module):
    """(...) -> (...): x where it is above 0, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha > 0:
            raise ValueError(f"ELU: expected a positive alpha, got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)


class Tanh(Module):
    """(...) -> (...), in (-1, 1): the hyperbolic tangent of x."""

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x)


class Sigmoid(Module):
    """(...) -> (...), in (0, 1): 1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class MaxPool2d(Module):
    """(N, H, W, C) -> (N, P, Q, C). As `functional.max_pool2d`."""

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> None:
        self.kernel_size = pair("MaxPool2d: kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair("MaxPool2d: stride", stride, 1)
        self.padding = pair("MaxPool2d: padding", padding, 0)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class UpsampleNearest2d(Module):
    """(N, H, W, C) -> (N, H scale, W scale, C)."""

    def __init__(self, scale: int = 2) -> None:
        self.scale = _whole("UpsampleNearest2d: scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.upsample_nearest2d(x, self.scale)


class Flatten(Module):
    """(N, ...) -> (N, all the rest)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], int(np.prod(x.shape[1:])))


class Reshape(Module):
    """(N, ...) -> (N, *shape)."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


# ---- chains --------------------------------------------------------------------------------------------------------

# These, not what is derived from them, which may compute something else.
_PLACED = Conv2d, ConvTranspose2d, BatchNorm2d, Linear  # whose forward takes a place
_ROUNDING = _PLACED[:3]  # read 16 bits, and write them where they may
_PASSING = ELU, MaxPool2d, UpsampleNearest2d  # write 16 bits where they read them


def _planned(layers: list[Any]) -> list[Callable[[Tensor], Tensor]]:
    """What a chain of layers computes, one after the other: of each its forward, with its place where it takes one."""
    plan, place = [], ALONE  # of the layer that comes next, from the last one to the first: what is known of it so far
    for before, layer in reversed(list(pairwise([None, *layers]))):
        kind = type(layer)
        if kind in (LeakyReLU, ReLU) and type(before) in _PLACED:
            place = replace(place, slope=layer.slope)
            continue
        if kind is ELU and type(before) in _PLACED[:2]:
            place = replace(place, slope=layer.alpha, elu=True)
            continue
        asks = kind is BatchNorm2d and layer.training
        place = replace(place, moments=Moments(_groups.get())) if asks else place
        plan.append(partial(layer.forward, place=place) if kind in _PLACED else layer)
        half = kind in _ROUNDING or (kind in _PASSING and place.half)
        place = Place(half=half, moments=place.moments if asks else None)
    return plan[::-1]
