"""The cases: every convolution of the five systems, found by walking the networks that `models.build` makes.

Nothing is retyped here but the published batch sizes: a layer's sizes are those that it gets when an image goes
through the published network.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minigan import models, nn
from minigan.ops import geometry
from minigan.ops.geometry import Geometry
from minigan.tensor import Tensor, no_grad

# The batch sizes that were published with the systems; their image sizes are the defaults of models.build.
PUBLISHED_BATCH = {"cats": 64, "simpsons": 64, "anime": 64, "maxpool": 16, "began": 16}

# The same networks, narrower and for smaller images: what the emulator can do in seconds.
REDUCED: dict[str, dict[str, Any]] = {
    "cats": {"image_size": 32, "base_channels": 4},
    "simpsons": {"image_size": 32, "base_channels": 4},
    "anime": {"image_size": 32, "base_channels": 4},
    "maxpool": {"image_size": 16, "base_channels": 4},
    "began": {"image_size": 16, "base_channels": 8},
}
REDUCED_BATCH = 2


@dataclass(frozen=True)
class Layer:
    """One convolution of a network. `geometry` is that of the convolution which a transposed layer transposes."""

    system: str
    network: str  # G or D
    number: int  # among the convolutions of its network, from 1
    transposed: bool
    geometry: Geometry

    @property
    def name(self) -> str:
        return f"{self.system} {self.network}{self.number}"


@dataclass(frozen=True)
class Problem:
    """A distinct geometry, and all layers that have it: it is measured once."""

    geometry: Geometry
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def systems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.system for layer in self.layers))


def layers(system: str, batch: int | None = None, **overrides: Any) -> list[Layer]:
    """The convolutions of a system's generator and discriminator, in order, at a batch size (default: the published).

    overrides: of `models.build`. No convolution is computed: each layer records what comes in and hands on zeros of
    the right shape.
    """
    count = PUBLISHED_BATCH[system] if batch is None else batch
    if count < 1:
        raise ValueError(f"layers: expected a batch size from 1, got {count}")
    generator, discriminator = models.build(system, **overrides)
    images: list[Tensor] = []
    found: list[Layer] = []
    for network, module, run in (
        ("G", generator, lambda: images.append(generator(generator.noise(1)))),
        ("D", discriminator, lambda: discriminator(images[0])),
    ):
        for number, (transposed, g) in enumerate(_geometries(module, run), 1):
            found.append(Layer(system, network, number, transposed, replace(g, n=count)))
    return found


def problems(
    systems: Sequence[str], batch: int | None = None, layer: str | None = None, reduced: bool = False
) -> list[Problem]:
    """The distinct problems of some systems.

    layer: keep those that are part of the layers of this name, "cats G1", or "G1" of all systems. reduced: the small
    networks of REDUCED, for the emulator. Raises ValueError if no layer has that name.
    """
    found: list[Layer] = []
    for system in systems:
        overrides = REDUCED[system] if reduced else {}
        found += layers(system, batch or (REDUCED_BATCH if reduced else None), **overrides)
    by_geometry: dict[Geometry, list[Layer]] = {}
    for one in found:
        by_geometry.setdefault(one.geometry, []).append(one)
    wanted = {one.geometry for one in found if layer is None or layer in (one.name, one.name.split()[1])}
    if not wanted:
        raise ValueError(f"--layer: expected one of {', '.join(one.name for one in found)}, got {layer!r}")
    return [Problem(g, tuple(members)) for g, members in by_geometry.items() if g in wanted]


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    for _, child in module.named_children():
        yield from _modules(child)


def _geometries(module: nn.Module, run: Callable[[], Any]) -> list[tuple[bool, Geometry]]:
    """(transposed, geometry) of each convolution of `module`, in the order in which `run` calls them."""
    found: list[tuple[bool, Geometry]] = []
    convolutions = [m for m in _modules(module) if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    for convolution in convolutions:
        vars(convolution)["forward"] = _recorder(convolution, found)
    try:
        with no_grad():
            module.eval()
            run()
    finally:
        for convolution in convolutions:
            del vars(convolution)["forward"]
    if len(found) != len(convolutions):
        raise RuntimeError(f"expected each of {len(convolutions)} convolutions to be called once, got {len(found)}")
    return found


def _recorder(
    convolution: nn.Conv2d | nn.ConvTranspose2d, found: list[tuple[bool, Geometry]]
) -> Callable[[Tensor], Tensor]:
    """A `forward` that notes the geometry of its call, and computes nothing."""

    def forward(x: Tensor, slope: float = 1.0, **_: object) -> Tensor:
        sizes = x.shape, convolution.weight.shape, convolution.stride, convolution.padding
        if isinstance(convolution, nn.Conv2d):
            g = geometry.convolution("layers", *sizes)
            found.append((False, g))
            return Tensor(np.zeros(g.y_shape, np.float32))
        g = geometry.transposed("layers", *sizes, convolution.output_padding)
        found.append((True, g))
        return Tensor(np.zeros(g.x_shape, np.float32))

    return forward
