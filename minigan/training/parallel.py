"""A system trained by many ranks: the same weights on all of them, before training and after each step."""

import hashlib

import numpy as np

import minigan as mg
from minigan.backend import array_module, on_device
from minigan.distributed import GradientMeans, World
from minigan.nn import BatchNorm2d, Module, Parameter
from minigan.optim import Adam
from minigan.tensor import Tensor
from minigan.training.system import System


def spread(system: System, world: World, synchronised: bool) -> None:
    """Gives all ranks rank 0's state, and their optimizers the means of all gradients.

    synchronised: batch norm by the statistics of the whole batch, not by those of each rank's share.
    """
    tensors, scalars = world.from_first((system.state_dict(), system.scalars()))
    system.load_state_dict(tensors, scalars)
    reducer = GradientMeans(world)
    for part in vars(system).values():
        if isinstance(part, Adam):
            for parameter in part.parameters:
                if not isinstance(parameter, Parameter):
                    raise TypeError("on several ranks an optimizer has to have nn.Parameter, got another Tensor")
                parameter.reducer = reducer
        elif isinstance(part, Module):
            _synchronise(part, synchronised)


def average_buffers(system: System, world: World) -> None:
    """What batch norm knows of each rank's share of a batch becomes the mean of it, in one sum over the ranks."""
    buffers = _buffers(system)
    if buffers:
        device = buffers[0].device
        with on_device(device):
            # In double, so that what is the same on all ranks stays as it is.
            flat = array_module(device).concatenate([t.data.ravel().astype(np.float64) for t in buffers])
            flat = world.mean(flat)
            ends = np.cumsum([t.size for t in buffers])
            for t, end in zip(buffers, ends.tolist(), strict=True):
                t.data[...] = flat[end - t.size : end].reshape(t.shape)
                t.mark_changed()


def expect_same(system: System, world: World, step: int) -> None:
    """Raises RuntimeError unless weights, buffers and random numbers are the same on all ranks, to the bit."""
    digest = hashlib.sha256(repr(mg.random.get_state()).encode())
    for part in vars(system).values():
        if isinstance(part, Module):
            for _, value in part.named_tensors():
                digest.update(value.numpy().tobytes())
    world.expect_same(f"step {step:,}: weights or random numbers", digest.hexdigest())


def _buffers(system: System) -> list[Tensor]:
    networks = [part for part in vars(system).values() if isinstance(part, Module) and part is not system.average]
    return [t for network in networks for _, t in network.named_tensors() if not isinstance(t, Parameter)]


def _synchronise(module: Module, synchronised: bool) -> None:
    if isinstance(module, BatchNorm2d):
        module.synchronised = synchronised
    for _, child in module.named_children():
        _synchronise(child, synchronised)
