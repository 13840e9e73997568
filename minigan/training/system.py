"""What a system is to the loop that trains it: networks, optimizers, and one training step."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minigan import nn
from minigan.models import Generator
from minigan.optim import Adam
from minigan.tensor import Tensor


class System:
    """A GAN in training.

    A subclass sets its networks and optimizers as attributes, one of them `generator`, and defines `step(real)`.

    All modules and optimizers among the attributes, and the numbers in `numbers`, are its state, and go into
    checkpoints.
    """

    generator: Generator
    numbers: dict[str, float]

    def __init__(self) -> None:
        self.numbers = {}

    def step(self, real: Tensor) -> dict[str, Tensor]:
        """Trains on one batch of real images (N, H, W, 3); returns the losses, of no dimensions, by name."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the tensors of all networks and optimizers, by names such as "generator/0.weight"."""
        return {
            f"{name}/{key}": value
            for name, part in self._parts().items()
            for key, value in part.state_dict().items()
            if isinstance(value, np.ndarray)
        }

    def scalars(self) -> dict[str, dict[str, float]]:
        """The rest of the state: each optimizer's numbers, and `numbers`."""
        found = {
            name: {key: value for key, value in part.state_dict().items() if not isinstance(value, np.ndarray)}
            for name, part in self._parts().items()
            if isinstance(part, Adam)
        }
        return {**found, "numbers": dict(self.numbers)}

    def load_state_dict(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Mapping[str, Any]]) -> None:
        """Goes on from a state. Raises KeyError or ValueError where it is not one of such networks."""
        for name, part in self._parts().items():
            own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            part.load_state_dict({**own, **scalars.get(name, {})})
        self.numbers = dict(scalars["numbers"])

    def _parts(self) -> dict[str, nn.Module | Adam]:
        return {name: value for name, value in vars(self).items() if isinstance(value, (nn.Module, Adam))}
