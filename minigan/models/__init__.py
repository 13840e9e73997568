"""The networks of the five systems, by name."""

from collections.abc import Callable
from typing import Any

from minigan import nn
from minigan.models import anime, began, cats, maxpool, simpsons
from minigan.models.generator import Generator

__all__ = ["SYSTEMS", "Generator", "build"]

SYSTEMS: dict[str, Callable[..., tuple[Generator, nn.Module]]] = {
    "cats": cats.build,
    "simpsons": simpsons.build,
    "anime": anime.build,
    "maxpool": maxpool.build,
    "began": began.build,
}


def build(name: str, **overrides: Any) -> tuple[Generator, nn.Module]:
    """(generator, discriminator) of a system, freshly initialised; by default exactly the published networks.

    name: cats, simpsons, anime, maxpool or began. overrides: image_size (a number or (height, width)), base_channels,
    z_size. Raises ValueError for another name, and for a size that the architecture does not allow.
    """
    if name not in SYSTEMS:
        raise ValueError(f"models.build: expected one of {', '.join(SYSTEMS)}, got {name!r}")
    return SYSTEMS[name](**overrides)
