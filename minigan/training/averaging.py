"""A moving average of a network's weights, which often draws better than the network of the moment.

Yazici et al., "The unusual effectiveness of averaging in GAN training", 2019.
"""

import copy
from typing import TypeVar

from minigan import nn

Network = TypeVar("Network", bound=nn.Module)


def average_of(network: Network) -> Network:
    """A network that starts as a copy, for `update_average`."""
    copied = copy.deepcopy(network)
    copied.requires_grad_(False)
    return copied


def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """average <- d average + (1 - d) network, for all parameters and buffers; d = min(decay, (1 + step) / (10 + step)).

    So the first steps, whose weights are soon out of date, are forgotten faster.
    """
    keep = min(decay, (1 + step) / (10 + step))
    for (_, mean), (_, now) in zip(average.named_tensors(), network.named_tensors(), strict=True):
        mean.data[...] += (1 - keep) * (now.data - mean.data)
        mean.mark_changed()
