"""What a system is to the loop that trains it: networks, optimizers, and one training step."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import minigan.functional as F
from minigan import nn
from minigan.backend import to_device
from minigan.models import Generator
from minigan.optim import Adam
from minigan.tensor import Tensor

Curves = Mapping[str, np.ndarray]


def mean_probability(logits: Tensor) -> Tensor:
    """How real a discriminator finds images, for the log: the mean of sigmoid(logits), which goes into no gradient."""
    return F.sigmoid(logits.detach()).mean()


class System:
    """A GAN in training.

    A subclass sets its networks and optimizers as attributes, one of them `generator`, and defines `step(real)`.

    All modules, optimizers and tensors among the attributes, and the numbers in `numbers`, are its state, and go into
    checkpoints.
    """

    generator: Generator
    average: Generator | None
    numbers: dict[str, float]

    def __init__(self) -> None:
        self.average = None
        self.numbers = {}

    @property
    def sampler(self) -> Generator:
        """The generator that draws samples: the average of the weights, where there is one."""
        return self.generator if self.average is None else self.average

    def step(self, real: Tensor) -> Mapping[str, Tensor | float]:
        """Trains on one batch of real images (N, H, W, 3); returns what the log shows: losses, of no dimensions."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def schedule(self) -> dict[str, float]:
        """What a step does on the host alone: learning rates, counts; returns what of it the log shows.

        `step` calls it first; whatever replays a step as a graph calls it, too, for the graph does the rest alone.
        """
        return {}

    def end_epoch(self) -> None:
        """Called after the last step of each epoch; a learning rate may follow."""

    def curves(self, log: Curves) -> list[Curves]:
        """What the plot of the losses shows, a panel each, from the columns of the log: by default all losses."""
        return [{name.replace("_", " "): values for name, values in log.items() if "loss" in name}]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all tensors, those of networks and optimizers by names such as "generator/0.weight"."""
        parts = {
            f"{name}/{key}": value
            for name, part in self._parts().items()
            for key, value in part.state_dict().items()
            if isinstance(value, np.ndarray)
        }
        return {**parts, **{name: np.array(tensor.numpy()) for name, tensor in self.tensors().items()}}

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
        for name, tensor in self.tensors().items():
            setattr(self, name, Tensor(to_device(tensors[name], tensor.device), device=tensor.device))
        self.numbers = dict(scalars["numbers"])

    def _parts(self) -> dict[str, nn.Module | Adam]:
        return {name: value for name, value in vars(self).items() if isinstance(value, (nn.Module, Adam))}

    def modules(self) -> list[nn.Module]:
        """Its networks."""
        return [part for part in self._parts().values() if isinstance(part, nn.Module)]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of its state, besides those of networks and optimizers."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
