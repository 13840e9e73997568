"""Optimizers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minigan import debugging
from minigan.backend import Array, address, contiguous, dispatch, matmul_precision, to_device, to_numpy
from minigan.capture import active
from minigan.cpu import jit, parallel_flat
from minigan.kernel_launch import C_REALS, launch
from minigan.loss_scale import LossScale
from minigan.tensor import Tensor

Quadruple = tuple[Array, ...]  # a parameter, its gradient, and its two moments
# adam.cu: elements that a block updates, tensors of a launch
BLOCK_ELEMENTS, MOST_TENSORS = 2048, 80


@jit
def _adam_loop(start, stop, w, g, m, v, rate, keep1, keep2, epsilon):  # type: ignore[no-untyped-def]
    for i in range(np.uintp(start), np.uintp(stop)):
        mean, square = m[i] + keep1 * (g[i] - m[i]), v[i] + keep2 * (g[i] * g[i] - v[i])
        m[i], v[i] = mean, square
        w[i] -= rate * mean / (np.sqrt(square) + epsilon)


def _adam_cpu(tensors: Sequence[Quadruple], *numbers: float) -> None:
    rounded = [tensors[0][0].dtype.type(n) for n in numbers]
    for arrays in tensors:
        flat = contiguous("cpu", *arrays)
        parallel_flat(_adam_loop, *flat, *rounded)
        _write_back(arrays, flat)


def _adam_cuda(
    device: str,
    tensors: Sequence[Quadruple],
    rate: float,
    keep1: float,
    keep2: float,
    epsilon: float,
    numbers: Array | None = None,
) -> None:
    """All of one dtype, in one launch for each MOST_TENSORS. numbers: rate and epsilon in device memory, instead."""
    for start in range(0, len(tensors), MOST_TENSORS):
        part = tensors[start : start + MOST_TENSORS]
        flat = [contiguous(device, *arrays) for arrays in part]
        sizes = np.array([w.size for w, *_ in flat], np.uint64)
        ends = np.cumsum([-(-w.size // BLOCK_ELEMENTS) for w, *_ in flat])
        addresses = np.array([[address(a) for a in arrays] for arrays in flat], np.uint64)
        table = dict(zip("wgmv", addresses.T, strict=True))
        if ends[-1]:
            firsts = np.concatenate([[0], ends[:-1]]).astype(np.uint32)
            args = [
                {**table, "size": sizes, "first": firsts},
                numbers,
                *map(float, (rate, keep1, keep2, epsilon)),
                len(flat),
            ]
            launch("adam.cu", "adam", ends[-1], 256, args, device=device, macros={"REAL": C_REALS[flat[0][0].dtype]})
        for before, after in zip(part, flat, strict=True):
            _write_back(before, after)


def _write_back(arrays: Quadruple, flat: Quadruple) -> None:
    """Weights that had to be copied to be in C order go back to where they belong; moments are in C order always."""
    if flat[0] is not arrays[0]:
        arrays[0][...] = flat[0]


# adam_update(device, [(w, g, m, v), ...], rate, 1 - beta1, 1 - beta2, epsilon)
adam_update = dispatch(cpu=_adam_cpu, cuda=_adam_cuda)


class Adam:
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,  w <- w - lr m^ / (sqrt(v^) + epsilon), with m^ = m
    / (1 - beta1^t), v^ = v / (1 - beta2^t). Parameters whose `.grad` is None stay as they are, but for them too the
    step counts. `lr` may be set between steps. In fp16, gradients come from `backward`, with a `loss_scale`, and a step
    where one of them is infinite is skipped.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters = [] if hasattr(parameters, "parameters") else list(parameters)  # a module is no list of them
        if isinstance(parameters, Tensor) or not self.parameters:
            raise ValueError(f"Adam: expected parameters, at least one, got {type(parameters)}: pass net.parameters()")
        if not all(isinstance(p, Tensor) and p.op is None for p in self.parameters):
            raise ValueError("Adam: expected parameters that are tensors, and made by no operation")
        if len({id(p) for p in self.parameters}) < len(self.parameters):
            raise ValueError("Adam: expected each parameter once")
        if not (lr >= 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon > 0):
            raise ValueError(
                f"Adam: expected lr >= 0, beta1 and beta2 in [0, 1), epsilon > 0, got {lr}, {beta1}, {beta2}, {epsilon}"
            )
        self.lr, self.beta1, self.beta2, self.epsilon = lr, beta1, beta2, epsilon
        self.steps = 0
        self.loss_scale: LossScale | None = None
        self._scaled = False  # the gradients are those of a scaled loss
        self._m = [to_device(np.zeros(p.shape, p.dtype), p.device) for p in self.parameters]
        self._v = [to_device(np.zeros(p.shape, p.dtype), p.device) for p in self.parameters]

    def backward(self, loss: Tensor) -> None:
        """loss.backward(); where the precision is "fp16", of the loss times the loss scale, until `step` takes it out.

        All gradients that a step uses have to come from here.
        """
        if matmul_precision(loss.device) != "fp16":
            loss.backward()
            return
        self.loss_scale = self.loss_scale or LossScale()
        self._scaled = True
        # An infinite gradient says that the scale is too large, and is no mistake; without a scale it is one.
        debug = debugging.checking and self.loss_scale.value <= 1
        with debugging.set_debug(debug), np.errstate(over="ignore", invalid="ignore"):
            loss.backward(self.loss_scale.value)

    def step(self) -> None:
        """Moves the parameters by their gradients. Raises ValueError, and moves none, if a gradient does not fit."""
        if self._scaled and self.loss_scale is not None:
            self._scaled = False
            if not self.loss_scale.take_out(self.parameters):
                return
        groups: dict[tuple[str, np.dtype], list[Quadruple]] = {}
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                if (p.grad.shape, p.grad.dtype, p.grad.device) != (p.shape, p.dtype, p.device):
                    raise ValueError(f"Adam.step: gradient {i}: expected {p._kind()}, got {p.grad._kind()}")
                for _, moments in self._moments():  # they follow a parameter that went to another device
                    if type(moments[i]) is not type(p.data):
                        moments[i] = to_device(moments[i], p.device)
                groups.setdefault((p.device, p.dtype), []).append((p.data, p.grad.data, self._m[i], self._v[i]))
        capture = active()
        rate, epsilon = self._next_numbers() if capture is None else (0.0, 0.0)
        later = () if capture is None else (capture.numbers(self._next_numbers, "float64", 2),)
        for (device, _), tensors in groups.items():
            adam_update(device, tensors, rate, 1 - self.beta1, 1 - self.beta2, epsilon, *later)
        for p in self.parameters:
            if p.grad is not None:
                p.mark_changed()

    def _next_numbers(self) -> tuple[float, float]:
        """Counts a step. m^ / (sqrt(v^) + epsilon), with the corrections taken out of the loop over the elements."""
        self.steps += 1
        correction1, correction2 = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps
        return self.lr * correction2**0.5 / correction1, self.epsilon * correction2**0.5

    def zero_grad(self) -> None:
        """Forgets the parameters' gradients."""
        self._scaled = False
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that the next step depends on.

        "steps", "lr", for parameter i "m.i" and "v.i", and after training in fp16 "loss_scale" and "good_steps".
        """
        moments = {f"{name}.{i}": np.array(to_numpy(a)) for name, all_ in self._moments() for i, a in enumerate(all_)}
        scale = self.loss_scale
        scaling = {} if scale is None else {"loss_scale": scale.value, "good_steps": scale.good_steps}
        return {"steps": self.steps, "lr": self.lr, **scaling, **moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state. Raises KeyError or ValueError if it does not fit.

        Then nothing was changed.
        """
        own = {f"{name}.{i}": a for name, all_ in self._moments() for i, a in enumerate(all_)}
        expected = own.keys() | {"steps", "lr"} | ({"loss_scale", "good_steps"} if "loss_scale" in state else set())
        if expected != state.keys():
            raise KeyError(f"Adam.load_state_dict: names that differ: {sorted(expected ^ state.keys())}")
        for name, a in own.items():
            if state[name].shape != a.shape or state[name].dtype != a.dtype:
                raise ValueError(
                    f"Adam.load_state_dict: {name}: expected shape {a.shape}, {a.dtype}, "
                    f"got {state[name].shape}, {state[name].dtype}"
                )
        devices = [p.device for p in self.parameters]
        for name, a in own.items():
            a[...] = to_device(state[name], devices[int(name.partition(".")[2])])
        self.steps, self.lr = int(state["steps"]), float(state["lr"])
        self.loss_scale = LossScale(state["loss_scale"], state["good_steps"]) if "loss_scale" in state else None

    def _moments(self) -> tuple[tuple[str, list[Array]], tuple[str, list[Array]]]:
        return ("m", self._m), ("v", self._v)
