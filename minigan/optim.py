"""Optimizers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigan.backend import Array, array_module, dispatch, to_device, to_numpy
from minigan.cpu import jit, parallel_flat
from minigan.tensor import Tensor


@jit
def _adam_loop(start, stop, w, g, m, v, rate, beta1, beta2, epsilon):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        m[i] += (1 - beta1) * (g[i] - m[i])
        v[i] += (1 - beta2) * (g[i] * g[i] - v[i])
        w[i] -= rate * m[i] / (np.sqrt(v[i]) + epsilon)


def _adam_cpu(w: Array, g: Array, m: Array, v: Array, *numbers: float) -> None:
    parallel_flat(_adam_loop, w, np.ascontiguousarray(g), m, v, *(w.dtype.type(n) for n in numbers))


adam_update = dispatch(cpu=_adam_cpu)


class Adam:
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,  w <- w - lr m^ / (sqrt(v^) + epsilon), with m^ = m
    / (1 - beta1^t), v^ = v / (1 - beta2^t). Parameters whose `.grad` is None stay as they are, but for them too the
    step counts. `lr` may be set between steps.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        if not self.parameters or not all(isinstance(p, Tensor) for p in self.parameters):
            raise ValueError("Adam: expected at least one parameter, all of them tensors")
        if not (lr >= 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and epsilon > 0):
            raise ValueError(
                f"Adam: expected lr >= 0, beta1 and beta2 in [0, 1), epsilon > 0, got {lr}, {beta1}, {beta2}, {epsilon}"
            )
        self.lr, self.beta1, self.beta2, self.epsilon = lr, beta1, beta2, epsilon
        self.steps = 0
        self._m = [array_module(p.device).zeros_like(p.data) for p in self.parameters]
        self._v = [array_module(p.device).zeros_like(p.data) for p in self.parameters]

    def step(self) -> None:
        """Moves the parameters by their gradients."""
        self.steps += 1
        correction1, correction2 = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps
        # m^ / (sqrt(v^) + epsilon), with the corrections taken out of the loop over the elements
        rate, epsilon = self.lr * correction2**0.5 / correction1, self.epsilon * correction2**0.5
        for p, m, v in zip(self.parameters, self._m, self._v, strict=True):
            if p.grad is not None:
                adam_update(p.device, p.data, p.grad.data, m, v, rate, self.beta1, self.beta2, epsilon)
                p.mark_changed()

    def zero_grad(self) -> None:
        """Forgets the parameters' gradients."""
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that the next step depends on: "steps", "lr", and for parameter i "m.i" and "v.i"."""
        moments = {f"{name}.{i}": np.array(to_numpy(a)) for name, all_ in self._moments() for i, a in enumerate(all_)}
        return {"steps": self.steps, "lr": self.lr, **moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state. Raises KeyError or ValueError if it does not fit.

        Then nothing was changed.
        """
        own = {f"{name}.{i}": a for name, all_ in self._moments() for i, a in enumerate(all_)}
        if own.keys() | {"steps", "lr"} != state.keys():
            raise KeyError(
                f"Adam.load_state_dict: names that differ: {sorted((own.keys() | {'steps', 'lr'}) ^ state.keys())}"
            )
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

    def _moments(self) -> tuple[tuple[str, list[Array]], tuple[str, list[Array]]]:
        return ("m", self._m), ("v", self._v)
