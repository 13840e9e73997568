"""Whether a run is in good health: values that are not finite, and the ways in which a GAN goes wrong, in words."""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from minigan import nn
from minigan.backend import Array, array_module, on_device, to_numpy
from minigan.optim import Adam
from minigan.tensor import Tensor
from minigan.training.system import System

# ---- values that are not finite --------------------------------------------------------------------------------------


def non_finite(system: System, values: Mapping[str, Tensor | float]) -> str | None:
    """None if all is finite, else a sentence that names what is not: where, and how much else of its kind.

    Looked at are the state of the system (but not the average, which follows from it), the gradients, and `values`,
    those that a step returned. What comes first in the sentence comes first on the way to the others: weights make
    gradients and losses.
    """
    state: dict[str, Array] = {name: t.data for name, t in vars(system).items() if isinstance(t, Tensor)}
    gradients: dict[str, Array] = {}
    moments: dict[str, Array] = {}
    labels: dict[int, str] = {}
    for name, network in vars(system).items():
        if isinstance(network, nn.Module) and name != "average":
            for label, t in _by_layer(name, network):
                labels[id(t)], state[label] = label, t.data
                if t.grad is not None:
                    gradients[f"the gradient of {label}"] = t.grad.data
    for name, adam in vars(system).items():
        if isinstance(adam, Adam):
            for moment, arrays in adam._moments():
                for i, (p, array) in enumerate(zip(adam.parameters, arrays, strict=True)):
                    moments[f"{name}'s moment {moment} of {labels.get(id(p), f'parameter {i}')}"] = array
    device = system.generator.parameters()[0].device
    found = [_bad(arrays, device) for arrays in (state, gradients, moments)]
    found.append([f"{name} ({float(value)})" for name, value in values.items() if not math.isfinite(float(value))])
    kinds = "weights and buffers", "gradients", "moments", "values of the log"
    told = [
        names[0] + (f" and {len(names) - 1} other {kind}" if names[1:] else "")
        for names, kind in zip(found, kinds, strict=True)
        if names
    ]
    return f"not finite: {'; '.join(told)}" if told else None


def _by_layer(name: str, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by names such as "generator, layer 3 (ConvTranspose2d), weight"."""
    for key, t in network.named_tensors():
        *path, own = key.split(".")
        layer = functools.reduce(getattr, path, network)
        yield f"{name}, " + (f"layer {'.'.join(path)} ({type(layer).__name__}), " if path else "") + own, t


def _bad(arrays: Mapping[str, Array], device: str) -> list[str]:
    """The names of the arrays that have a value that is not finite.

    A sum is finite only where all its terms are, and needs no memory. Where it is not, it may only have overflowed, so
    those few arrays are looked at value by value. The sums come from a GPU together, so that it is waited for once.
    """
    xp = array_module(device)
    with on_device(device), np.errstate(over="ignore", invalid="ignore"):
        sums = to_numpy(xp.stack([a.sum() for a in arrays.values()])) if arrays else np.zeros(0)
        suspects = [name for name, total in zip(arrays, sums, strict=True) if not np.isfinite(total)]
        return [name for name in suspects if not xp.isfinite(arrays[name]).all()]


# ---- the ways in which a GAN goes wrong ------------------------------------------------------------------------------

# Losses of single batches are noise: all that is judged here are means over so many steps.
BLOCK = 50

# How many blocks such a mean over a few is taken of.
FEW = 4

# What lasts for less than this share of the run so far may be a passing phase, however many steps it took.
SHARE_OF_RUN = 0.1

# The discriminator wins. The best answers to real images are 1 less the label smoothing, 0.8 at the least, and half of
# a label noise of 0.2 to generated ones, 0.1: so the bounds lie a little to the middle of these.
WINNING_REAL = 0.75
WINNING_FAKE = 0.12
# The generator's loss is the mean of -log D(G(z)), and 3 is usual. At 4, D(G(z)) is typically 2 %, and at 8, 0.03 %.
LOSING = 4.0
LOST = 8.0
# In between, a generator can hold its own for long. It does not where its loss has risen by more than means over a few
# blocks differ by chance.
RISE = 1.4
# Runs that do well can begin like this.
WINNING_STEPS = 250

# The discriminator is at chance: it says about one half to all images (0.45 with label smoothing of 0.1) ...
CHANCE = 0.06
# ... whether real or generated ...
CHANCE_GAP = 0.02
# ... and the generator's loss stays as it is, up to this share. Two networks that learn sway by more.
FLAT = 0.05
CHANCE_STEPS = 500

# Mode collapse: the diversity of samples below this share of the data's, and of the best before.
LOW_DIVERSITY = 0.3
FALLEN_DIVERSITY = 0.35
# Networks that have hardly learnt draw noise, whose diversity is no measure for later.
UNTRAINED_STEPS = 200
# Generators jump: one bad grid, or two, are no collapse.
COLLAPSED_GRIDS = 3
COLLAPSED_STEPS = 100
# Below this share of the data's, samples do not differ: there is nothing to fall from. If that is so for long it is a
# finding too, but only then, for some systems learn the mean image first.
NO_DIVERSITY = 0.1
NO_DIVERSITY_STEPS = 1000
# How many real images are enough to know the diversity of the data.
REAL_IMAGES = 512

# BEGAN's k is clipped to [0, 1]. At 0 it makes steps of step_of_k times the balance of the losses, 1e-5 as published,
# and leaves this neighbourhood in tens of them once the balance turns. At first, k is 0 in healthy runs too.
K_AT_0 = 1e-4
K_AT_1 = 0.99
K_STEPS = 1000

# BEGAN's M falls, quickly at first and then hardly, in healthy runs; it does not double.
M_RISE = 2.0
M_STEPS = 200

GENERATOR_LOSSES = ("loss_generator", "g_loss")
WATCHED = (*GENERATOR_LOSSES, "d_real", "d_fake", "k", "M")

GO_BACK = "--resume --from STEP goes back to a checkpoint from before"


def diversity(images: np.ndarray) -> float:
    """How much images differ from each other: the standard deviation over the images, averaged over pixels and colours.

    images: uint8 (N, H, W, C). From 0, where all are the same, to 127.5, where half are black and half are white.
    """
    count = len(images)
    total = np.zeros(images.shape[1:], np.int64)
    squares = np.zeros(images.shape[1:], np.int64)
    for image in images:  # one by one, in whole numbers: exact, and without copies of all in a larger type
        wide = image.astype(np.int64)
        total += wide
        squares += wide * wide
    return float(np.sqrt(count * squares - total * total).mean() / count)


@dataclass
class Phase:
    """What a run goes through without a break.

    since: the step. seen: how often it was seen since. first, recent: means of a value, over the first few and over the
    last few times.
    """

    since: int
    seen: int = 0
    first: float = 0.0
    recent: float = 0.0


class Health:
    """Watches a run, and says in words what goes wrong; each kind of finding once in a run.

    real: uint8 images (N, H, W, 3), the data, against whose diversity that of the samples is held.

    Of the log these columns are read, where a system has them: d_real and d_fake, the mean of what the discriminator
    says to real and to generated images, from 0 to 1; loss_generator or g_loss; BEGAN's k and M.
    """

    def __init__(self, real: np.ndarray) -> None:
        chosen = np.linspace(0, len(real) - 1, min(len(real), REAL_IMAGES)).astype(int)
        self._real = diversity(np.asarray(real[chosen]))
        self._reported: list[str] = []
        # The block that is being filled: its number, how many lines of the log it has, and their sums by column.
        self._block, self._lines = 0, 0
        self._sums: dict[str, float] = {}
        self._phases: dict[str, Phase] = {}
        # The best value of M and of the diversity so far, each with its step.
        self._best: dict[str, tuple[float, int]] = {}

    def watch_losses(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Takes a line of the log, of any number of steps after the last one; returns new findings."""
        for name in WATCHED:
            if name in values:
                self._sums[name] = self._sums.get(name, 0.0) + float(values[name])
        self._lines += 1
        if step // BLOCK == self._block:
            return []
        means = {name: total / self._lines for name, total in self._sums.items()}
        self._block, self._lines, self._sums = step // BLOCK, 0, {}
        found: dict[str, str | None] = {}
        loss = next((means[name] for name in GENERATOR_LOSSES if name in means), None)
        if loss is not None and {"d_real", "d_fake"} <= means.keys():
            found["discriminator wins"] = self._discriminator_wins(step, means["d_real"], means["d_fake"], loss)
            found["at chance"] = self._at_chance(step, means["d_real"], means["d_fake"], loss)
        if "k" in means:
            found["k at 0"], found["k at 1"] = self._k_at_0(step, means["k"]), self._k_at_1(step, means["k"])
        if "M" in means:
            found["M rises"] = self._m_rises(step, means["M"])
        return self._new(found)

    def watch_samples(self, step: int, images: np.ndarray) -> list[str]:
        """Takes samples, uint8 (N, H, W, 3), those of one z all along; returns new findings."""
        if len(images) < 2:  # one image has no diversity, whatever the generator can do
            return []
        return self._new({"mode collapse": self._collapse(step, diversity(images))})

    def state_dict(self) -> dict[str, Any]:
        """All that later findings depend on, as JSON has it; a few numbers, however long the run."""
        return {
            "reported": list(self._reported),
            "block": [self._block, self._lines],
            "sums": dict(self._sums),
            "phases": {name: list(astuple(phase)) for name, phase in self._phases.items()},
            "best": {name: list(best) for name, best in self._best.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state. Raises KeyError where something is missing."""
        self._reported = list(state["reported"])
        self._block, self._lines = state["block"]
        self._sums = dict(state["sums"])
        self._phases = {name: Phase(*values) for name, values in state["phases"].items()}
        self._best = {name: (value, step) for name, (value, step) in state["best"].items()}

    def _discriminator_wins(self, step: int, d_real: float, d_fake: float, loss: float) -> str | None:
        winning = d_real >= WINNING_REAL and d_fake <= WINNING_FAKE and loss >= LOSING
        phase = self._lasting("discriminator wins", step, winning, WINNING_STEPS, step - BLOCK, loss)
        if phase is None or phase.recent < min(RISE * phase.first, LOST):
            return None
        return (
            f"step {step:,}: the discriminator wins: since step {phase.since:,} it tells real images (d_real, now "
            f"{d_real:.2f}) from generated ones (d_fake, {d_fake:.4f}) almost without fault, and the generator's loss "
            f"went from {phase.first:.2f} to {phase.recent:.2f}. The generator then learns little. If the samples "
            f"still improve, train on. If not, {GO_BACK}; in a new run try half the learning rate of the discriminator "
            "in the preset, more images (few are learnt by heart), or a larger --batch-size."
        )

    def _at_chance(self, step: int, d_real: float, d_fake: float, loss: float) -> str | None:
        before = self._phases.get("at chance")
        if before is not None and abs(loss - before.first) > FLAT * before.first:
            del self._phases["at chance"]  # not flat; it may begin anew from this level
        at_chance = max(abs(d_real - 0.5), abs(d_fake - 0.5)) <= CHANCE and abs(d_real - d_fake) <= CHANCE_GAP
        phase = self._lasting("at chance", step, at_chance, CHANCE_STEPS, step - BLOCK, loss)
        if phase is None:
            return None
        return (
            f"step {step:,}: the discriminator is at chance: since step {phase.since:,} it says about the same to real "
            f"images (d_real, now {d_real:.3f}) and to generated ones (d_fake, {d_fake:.3f}), and the generator's loss "
            f"stays at {loss:.3f}. If the samples look like the data, that is the ideal end of training. If they do "
            "not, the discriminator does not learn, and so the generator cannot: in a new run try a higher learning "
            "rate of the discriminator in the preset, or a lower one of the generator. If they did before, "
            f"{GO_BACK}."
        )

    def _k_at_0(self, step: int, k: float) -> str | None:
        phase = self._lasting("k at 0", step, k <= K_AT_0, K_STEPS, step - BLOCK, k)
        if phase is None:
            return None
        return (
            f"step {step:,}: BEGAN's k is stuck at 0: its mean has been at most {K_AT_0:g} since step {phase.since:,}. "
            "The discriminator reconstructs generated images worse than gamma asks for (loss_gen_D is above gamma "
            "times loss_real) and pays no attention to them; without an opponent the generator draws blurred images. "
            "It passes when the generator catches up. If it does not, try in a new run a higher gamma (0.7) or a "
            f"higher learning rate in the preset, or a larger --batch-size; if k was above 0 before, {GO_BACK}."
        )

    def _k_at_1(self, step: int, k: float) -> str | None:
        phase = self._lasting("k at 1", step, k >= K_AT_1, K_STEPS, step - BLOCK, k)
        if phase is None:
            return None
        return (
            f"step {step:,}: BEGAN's k is stuck at 1: its mean has been at least {K_AT_1:g} since step "
            f"{phase.since:,}. Generated images are reconstructed too easily (loss_gen_D is below gamma times "
            f"loss_real); most often they are flat, or all the same: look at the samples. {GO_BACK}; in a new run try "
            "a lower learning rate or a smaller step_of_k in the preset, or a larger --batch-size."
        )

    def _m_rises(self, step: int, m: float) -> str | None:
        best, when = self._best["M"] = min(self._best.get("M", (m, step)), (m, step))
        if self._lasting("M rises", step, m >= M_RISE * best, M_STEPS, step - BLOCK, m) is None:
            return None
        return (
            f"step {step:,}: BEGAN's M, its measure of convergence, rose to {m:.4f}, {m / best:.1f} times its lowest "
            f"value, {best:.4f} at step {when:,}. Most often a network has lost what it had learnt. (That M no longer "
            f"falls would be no fault.) {GO_BACK}; in a new run try a lower learning rate in the preset, or a larger "
            "--batch-size."
        )

    def _collapse(self, step: int, now: float) -> str | None:
        best, when = now, step
        if step >= UNTRAINED_STEPS:
            best, when = self._best["diversity"] = max(self._best.get("diversity", (now, step)), (now, step))
        low = now < LOW_DIVERSITY * self._real and best >= NO_DIVERSITY * self._real
        collapsed = self._lasting("collapsed", step, low and now < FALLEN_DIVERSITY * best, COLLAPSED_STEPS, step, now)
        never = self._lasting("no diversity", step, now < NO_DIVERSITY * self._real, NO_DIVERSITY_STEPS, step, now)
        if collapsed is not None and collapsed.seen >= COLLAPSED_GRIDS:
            history = f"fell from {best:.1f} at step {when:,} to {now:.1f}"
        elif never is not None:
            history = f"is {now:.1f}, and was as low as that since step {never.since:,}"
        else:
            return None
        return (
            f"step {step:,}: mode collapse: the diversity of the samples (the deviation of a pixel over the images, on "
            f"average) {history}; that of the data is {self._real:.1f}. The generator draws nearly the same image "
            f"whatever z is, and seldom finds out of it. {GO_BACK}; in a new run try a larger --batch-size, or lower "
            "learning rates in the preset, first the generator's; --average evens out what jumps from step to step."
        )

    def _lasting(self, name: str, step: int, holds: bool, least: int, since: int, value: float) -> Phase | None:
        """Notes whether a phase goes on; returns it once it has lasted `least` steps, and long enough for this run.

        since: when it began, if it was not seen before.
        """
        if not holds:
            self._phases.pop(name, None)
            return None
        phase = self._phases.setdefault(name, Phase(since))
        phase.seen += 1
        phase.recent += (value - phase.recent) / min(phase.seen, FEW)
        if phase.seen <= FEW:
            phase.first = phase.recent
        return phase if step - phase.since >= max(least, SHARE_OF_RUN * step) else None

    def _new(self, found: Mapping[str, str | None]) -> list[str]:
        """The findings that were not reported before."""
        new = {kind: text for kind, text in found.items() if text is not None and kind not in self._reported}
        self._reported += new
        return list(new.values())
