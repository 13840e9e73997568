"""A case of `steps.py`: one system at one size. minigan's side, the operations of a step, and the judge.

The judge. minigan does two training steps, and what it draws is kept. Each of PyTorch's variants starts from the same
weights, does the same two steps on the same images and noise, and has to come to the same losses, and to move the
weights of both networks alike. Every comparison is written so that NaN fails.

The tolerance of a loss, relative, u being the largest rounding of a factor of a product (float32: 2^-24):

- Before the first update there are the forward passes' own roundings, some hundred that add up: 256 u.
- After an update, without batch norm, some thousand: the two backward passes besides. 2048 u.
- With batch norm another effect is larger. An activation whose value is nearly 0 may be rounded to the other side of
  LReLU's kink, where its gradient is another; batch norm over few pixels spreads that; and Adam's first steps are as
  long for a small gradient as for a large one, of which the sign alone counts. `tests/training/test_torch_parity.py`,
  which finds both sides equal to nine digits in float64, sees up to 2e-2 in float32, and allows 5e-2; as here.

The tolerance of the moves: the difference of both sides' moves of a network's weights, over minigan's own move
(Euclidean norms). A forgotten update, one of two, gives 0.5, an update twice as long 1; moves that go the other way for
a share f of the weights, 2 sqrt(f). Without batch norm 0.1 is allowed. With it, kinks and Adam's first steps change the
sign of some of the moves, and biases before batch norm have no effect, so they go where the rounding of their gradient
sends them. Up to 0.44 was seen (cats small, of batches of 32; 5 % of the signs) in float32, where float64 agrees to
nine digits: 0.39 of it already when both sides added up plainly. 0.48 is allowed there, less than a forgotten update
makes, and 0.5 wherever factors are rounded, of which nothing was measured yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import convolutions as conv
import layers
import numpy as np
from example_modules import load_example

import minigan as mg

WITH_BATCH_NORM = ("cats", "simpsons", "anime")
# Whether the generator draws anew for its own update, or its images for the discriminator serve both.
GENERATED_ONCE = ("cats", "simpsons")

ROUNDING = {"float32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-9}
FORWARD, UPDATED, BATCH_NORM, MOST = 256, 2048, 5e-2, 0.2
MOVES, MOVES_BATCH_NORM, MOVES_ROUNDED = 0.1, 0.48, 0.5
JUDGED_STEPS = 2


@dataclass(frozen=True)
class Case:
    """settings: of the system's example, with the batch size that is measured."""

    system: str
    preset: str
    settings: Any
    device: str = "cpu"
    precision: str = "float32"

    @property
    def batch(self) -> int:
        return self.settings.batch_size

    @property
    def name(self) -> str:
        return f"{self.system} {self.preset}, batch {self.batch}"

    def real(self) -> np.ndarray:
        """A batch of images (N, H, W, 3), evenly distributed between black and white: what is on them costs nothing."""
        black = 0.0 if self.system == "began" else -1.0
        shape = (self.batch, *self.settings.image_size, 3)
        return np.random.default_rng(0).uniform(black, 1, shape).astype(np.float32)


def make_case(system: str, preset: str, batch: int | None, device: str, precision: str) -> Case:
    """batch: None for the preset's own."""
    settings = load_example(system).PRESETS[preset]
    return Case(system, preset, settings if batch is None else replace(settings, batch_size=batch), device, precision)


def build(case: Case) -> Any:
    """minigan's side: the example's own system."""
    mg.manual_seed(0)
    return getattr(load_example(case.system), case.system.capitalize())(case.settings, case.device)


# ---- the operations of a step ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A convolution or a dense layer in a training step.

    operations: of any of its three passes. elements: what a pass reads and writes, each once. times: how often a step
    does it, on a batch of `Case.batch`.
    """

    name: str
    operations: int
    elements: Mapping[str, int]
    times: Mapping[str, int]


@cache
def products(case: Case) -> tuple[Product, ...]:
    """All of them, no result made twice. The networks are built for it, which takes a while: once for each case.

    Each layer of the generator goes forward for each generated batch (one that serves both updates, or two), and
    backward once. The discriminator goes forward for the real, the generated, and in the generator's update the
    generated images; its weights' gradients are computed for the first two of these, its inputs' for all three, but for
    those of its first layer: only the generator wants to know them.
    """
    s = case.settings
    batch_norm = {"momentum": s.momentum} if hasattr(s, "momentum") else {}
    sizes = {"image_size": s.image_size, "base_channels": s.base_channels, "z_size": s.z_size}
    networks = dict(zip("GD", mg.models.build(case.system, **sizes, **batch_norm), strict=True))
    forward_g = 1 if case.system in GENERATED_ONCE else 2
    convolutions = iter(layers.layers(case.system, case.batch, **sizes))
    found = []
    for network, module in networks.items():
        first, dense = True, 0
        for name, p in module.named_parameters():
            if not name.endswith("weight"):
                continue
            # of a transposed convolution, forward is the input gradient of the convolution that it transposes
            forward, weight, inputs = (forward_g, 1, 0 if first else 1) if network == "G" else (3, 2, 1 if first else 3)
            times = {"forward": forward, "input_grad": inputs, "weight_grad": weight}
            if p.ndim == 2:
                dense += 1
                every = case.batch * (p.shape[0] + p.shape[1]) + p.size
                elements = dict.fromkeys(times, every)
                found.append(
                    Product(f"{case.system} {network} dense {dense}", 2 * case.batch * p.size, elements, times)
                )
            else:
                layer = next(convolutions)
                if layer.transposed:
                    times = {**times, "forward": inputs, "input_grad": forward}
                elements = {one: conv.traffic(layer.geometry, one, 1) for one in times}
                found.append(Product(layer.name, conv.operations(layer.geometry), elements, times))
            first = False
    return tuple(found)


def operations(case: Case) -> int:
    """Multiplications and additions of all convolutions and dense layers in one training step, no result made twice."""
    return sum(product.operations * sum(product.times.values()) for product in products(case))


# ---- the judge -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """minigan's first steps: what PyTorch needs to do the same, and what has to come out."""

    numbers: Mapping[str, float]  # drawn once for a run
    before: tuple[list[np.ndarray], list[np.ndarray]]  # the weights of the generator and the discriminator
    draws: list[list[np.ndarray]]  # of each step
    losses: list[dict[str, float]]  # of each step
    after: tuple[list[np.ndarray], list[np.ndarray]]


def _weights(system: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator, discriminator = (
        [np.array(p.numpy()) for p in network.parameters()] for network in (system.generator, system.discriminator)
    )
    return generator, discriminator


@contextmanager
def recorded_draws() -> Iterator[list[np.ndarray]]:
    """What mg.random draws inside, in order."""
    drawn: list[np.ndarray] = []

    def recording(original: Any) -> Any:
        def draw(*args: Any, **keywords: Any) -> mg.Tensor:
            values = original(*args, **keywords)
            drawn.append(np.array(values.numpy()))
            return values

        return draw

    with (
        mock.patch.object(mg.random, "uniform", recording(mg.random.uniform)),
        mock.patch.object(mg.random, "normal", recording(mg.random.normal)),
    ):
        yield drawn


def record(system: Any, real: mg.Tensor) -> Record:
    """Does minigan's first steps."""
    before = _weights(system)
    draws, losses = [], []
    for _ in range(JUDGED_STEPS):
        with recorded_draws() as drawn:
            results = system.step(real)
        draws.append(drawn)
        losses.append({name: float(value) for name, value in results.items() if "loss" in name})
    return Record(dict(system.numbers), before, draws, losses, _weights(system))


def loss_tolerance(case: Case, untouched: bool) -> float:
    """Relative; untouched: before the first update."""
    u = ROUNDING[case.precision]
    if untouched:
        return min(MOST, FORWARD * u)
    return min(MOST, max(UPDATED * u, BATCH_NORM if case.system in WITH_BATCH_NORM else 0.0))


def moves_tolerance(case: Case) -> float:
    if case.precision != "float32":
        return MOVES_ROUNDED
    return MOVES_BATCH_NORM if case.system in WITH_BATCH_NORM else MOVES


@dataclass(frozen=True)
class Verdict:
    """error: the largest, in units of the tolerance; right if at most 1. worst: where it is."""

    error: float
    worst: str


def judge(case: Case, side: Any, real: Any, known: Record) -> Verdict:
    """Does the same steps with `side`, a Step of torch_steps, and compares."""
    import torch_steps

    torch_steps.load_weights(side.generator, known.before[0])
    torch_steps.load_weights(side.discriminator, known.before[1])
    found: list[tuple[float, str]] = []
    for number, (drawn, expected) in enumerate(zip(known.draws, known.losses, strict=True), 1):
        side.load_draws(drawn)
        losses = side.run(real)
        if losses.keys() != expected.keys():
            raise ValueError(f"{case.name}: expected the losses {sorted(expected)}, got {sorted(losses)}")
        for name, value in losses.items():
            tolerance = loss_tolerance(case, number == 1 and name in side.before_update)
            error = abs(float(value) - expected[name]) / (tolerance * abs(expected[name]))
            found.append((error, f"step {number}: {name} is {float(value):.7g}, minigan's {expected[name]:.7g}"))
    for name, network, before, after in zip(
        ("generator", "discriminator"), (side.generator, side.discriminator), known.before, known.after, strict=True
    ):
        difference, moved = _norms(before, after, torch_steps.weights(network))
        share = difference / moved
        found.append((share / moves_tolerance(case), f"the {name}'s weights moved otherwise, by {share:.1%}"))
    # NaN first: it is not larger than any number.
    return Verdict(*max(found, key=lambda one: (not np.isfinite(one[0]), one[0])))


def _norms(
    before: Sequence[np.ndarray], ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> tuple[float, float]:
    """The norm of the difference of two moves, and that of ours."""
    difference = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(ours, theirs, strict=True))
    moved = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(ours, before, strict=True))
    return difference**0.5, moved**0.5
