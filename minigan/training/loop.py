"""The loop around a system's training step: data in; losses, samples and checkpoints out."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

import minigan as mg
from minigan.backend import is_cuda, memory_errors
from minigan.cpu import keep_memory
from minigan.data import Batches, DataError
from minigan.distributed import world
from minigan.kernels import EmulatorError
from minigan.serialization import CheckpointError
from minigan.tensor import Tensor
from minigan.training.averaging import average_of, update_average
from minigan.training.board import expect_installed
from minigan.training.command_line import Options, fail, quiet_pipes
from minigan.training.dataset import Dataset
from minigan.training.errors import UserError
from minigan.training.feed import feed
from minigan.training.graph import GraphedStep
from minigan.training.health import Health, non_finite
from minigan.training.interrupt import Interrupt, deferred_interrupts
from minigan.training.parallel import average_buffers, expect_same, spread
from minigan.training.readback import Readback
from minigan.training.run import Run, checkpoints_in, expect_writable
from minigan.training.scores import Scores
from minigan.training.settings import in_steps
from minigan.training.system import System
from minigan.training.watch import Watch, logs_every


@quiet_pipes()
def train(make: Callable[[], System], options: Options[Any], dataset: Dataset) -> None:
    """Trains the system that `make` builds, on the dataset, as the options say, and exits.

    Exit code 0 at the end, 2 for a mistake of the user, 130 or 143 after a signal, when everything is saved. Of many
    ranks (see `minigan.distributed`) each calls it.
    """
    keep_memory()
    try:
        with closing(_Training(make, options, dataset)) as training:
            number = training.run_to_end()
    except (UserError, DataError, CheckpointError, mg.DeviceError, EmulatorError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        world().exit(130, "stopped before training began: there is nothing to save")
    if number:
        world().close()
        raise SystemExit(128 + number)


@dataclass
class _Line:
    """Of the log, before its numbers are read."""

    step: int
    epoch: int
    batch: int
    numbers: Readback


class _Training:
    """A run in progress. Of many ranks, each has one; only the first has a folder, `run`, and tells of it, `watch`.

    z: the noise of its samples, the same all along. distance: the sliced Wasserstein distance of the samples to the
    data before training. best: the lowest one that `--metrics-every` found.
    """

    def __init__(self, make: Callable[[], System], options: Options[Any], dataset: Dataset) -> None:
        self.options, self.settings, self.world = options, options.settings, world()
        self.say = (lambda text: None) if options.quiet else print
        if options.tensorboard:
            expect_installed()
        if self.world.is_first:
            expect_writable(options)
        try:
            self.rows = self.world.share(self.settings.batch_size)
        except ValueError as error:
            raise UserError(f"--batch-size: {error}") from None
        self.system = self._new_system(make)
        if self.settings.batch_size // (1 if options.sync_batch_norm else self.world.size) == 1:
            self._expect_trainable_on_one()
            self.system = self._new_system(make)
        self.train_on: Callable[[Tensor], Any] = lambda real: self.system.step(real)
        if options.average:
            self.system.average = average_of(self.system.generator)
        self.batches: Batches = self.world.in_turn(
            lambda: dataset.batches(options, self.system.generator.pixels, self.say, self.rows)
        )
        self.scores = Scores(self.batches.images, options.seed)
        if options.metrics_every is not None and self.world.is_first:
            self.scores.expect_measurable()
        # Here, where Ctrl-C still ends the program at once: it takes some seconds. A checkpoint has it.
        first_run = self.world.is_first and not options.resume
        self.distance = self.scores.distance(self.system.sampler) if first_run else 0.0
        self.health = Health(self.scores.real)
        self.best: float | None = None
        self._at_end = ExitStack()

    def _new_system(self, make: Callable[[], System]) -> System:
        """The system as the seed has it."""
        mg.manual_seed(self.options.seed)
        try:
            return make()
        except ValueError as error:
            raise UserError(str(error)) from None
        except memory_errors() as error:
            height, width = self.settings.image_size
            raise UserError(
                f"--image-size: networks for {height} x {width} pixels do not fit into the memory of device "
                f"{self.options.device}; try a smaller one"
            ) from error

    def _expect_trainable_on_one(self) -> None:
        """Raises UserError where a step of one image, which is done here, leaves batch norm a single value a channel.

        Of two images it has at least two, whatever the networks.
        """
        (height, width), least = self.settings.image_size, 2 * self.world.size
        image = mg.tensor(np.zeros((1, height, width, 3), np.float32), device=self.options.device)
        try:
            self._memory_checked(lambda: self.system.step(image))
        except ValueError as error:
            each = " a rank" if self.world.size > 1 else ""
            raise UserError(
                f"--batch-size: one image{each} of {height} x {width} is too few: {error}; expected --batch-size "
                f"{least} or more, or a larger --image-size" + (", or --sync-batch-norm" if each else "")
            ) from None

    def close(self) -> None:
        """Gives the run's folder back."""
        self._at_end.close()

    def _begin(self, steps: int) -> None:
        """A new run, of so many steps."""
        self.step, self.z = 0, self.system.generator.noise(self.settings.samples)
        if self.world.is_first:
            details = {"device": self.options.device, "precision": self.options.precision, **self._ranks()}
            self.run = Run.create(self.options, {**details, "images": len(self.batches.images), "planned_steps": steps})
            self._at_end.callback(self.run.close)
            self._watch()
            self.watch.show_samples(0, self.system.sampler.generate(self.z))
        if self.world.comm is not None:
            spread(self.system, self.world, self.options.sync_batch_norm)

    def _resume(self, steps: int) -> None:
        """An old run, now of so many steps, with its state put into the system, the batches and the random numbers."""
        loaded: Any = None
        if self.world.is_first:
            self.run, *loaded = Run.resume(self.options, {"planned_steps": steps, **self._ranks()})
            self._at_end.callback(self.run.close)
            loaded.append(self.run.folder)
        tensors, state, folder = self.world.from_first(loaded)
        try:
            self.step, self.z = int(state["step"]), mg.tensor(tensors.pop("sample_z"), device=self.options.device)
            self.distance, self.best = state["distance"], state["best"]
            if self.world.is_first and not self.run.has_best():
                self.best = None
            self.system.load_state_dict(tensors, state["system"])
            self.batches.load_state_dict(state["batches"])
            self.health.load_state_dict(state["health"])
        except (KeyError, ValueError) as error:
            raise UserError(f"--resume: {folder}: the checkpoint does not fit: {error.args[0]}") from None
        if state["seed"] == self.options.seed:  # with another seed, chosen together with --from, it goes another way
            mg.random.set_state(state["random"])
        if self.world.comm is not None:
            spread(self.system, self.world, self.options.sync_batch_norm)
        if self.world.is_first:
            self._watch()

    def _watch(self) -> None:
        self.watch = Watch(self.run, self.options, self.health, self.step)
        self._at_end.callback(self.watch.close)

    def _ranks(self) -> dict[str, Any]:
        processes = [f"{pid} on {machine}" for machine, pid in self.world.processes]
        return {
            "ranks": self.world.size,
            "processes": processes,
            "sync_batch_norm": self.options.sync_batch_norm,
        }

    def run_to_end(self) -> int:
        """Trains; returns the number of the signal that ended it, or 0."""
        steps, sample_every, checkpoint_every = (
            in_steps(duration, self.batches.batches_per_epoch)
            for duration in (self.settings.steps, self.settings.sample_every, self.settings.checkpoint_every)
        )
        with deferred_interrupts() as interrupt:  # from before there is a folder until everything is in it
            (self._resume if self.options.resume else self._begin)(steps)
            if self.step < steps:
                self._train(steps, sample_every, checkpoint_every, interrupt)
            elif self.world.is_first:  # perhaps its pictures are not: they come last
                longer = f"--steps N, from {self.step + 1:,} on, trains longer"
                self.say(f"{self.run.folder}: all {steps:,} steps are done, {self.step:,} in all; {longer}")
                self._draw()
            return self.world.most(interrupt.number)

    def _train(self, steps: int, sample_every: int, checkpoint_every: int, interrupt: Interrupt) -> None:
        """At least one step, so that a new run has something to resume from however early a signal comes."""
        metrics_every, log_every = self.options.metrics_every, logs_every(self.options.device)
        if self.world.is_first:
            of = f"{self.settings.batch_size} images" + f", shared by {self.world.size} ranks" * (self.world.size > 1)
            self.say(f"{self.run.folder}: steps {self.step + 1:,} to {steps:,} of {of}")
        if self.options.graph:
            self.train_on = GraphedStep(self.system, self.options.device, self.say)
        real = feed(self.batches, self.options.device)
        started = time.perf_counter()
        last = False
        unread: _Line | None = None
        with self.watch.until(steps) if self.world.is_first else nullcontext():
            while not last:
                epoch, batch = divmod(self.batches.step, self.batches.batches_per_epoch)
                results = self._one_step(next(real))
                # Asked once a step: a signal that comes after this lets one more be done, and saved. All ranks agree.
                stopped = self.world.most(interrupt.number)
                last = self.step == steps or stopped != 0
                saved = last or self.step % checkpoint_every == 0
                measured = metrics_every is not None and self.step % metrics_every == 0
                sampled = last or self.step % sample_every == 0
                kept = sampled or saved or measured
                if unread is not None:  # of the step before: this one is in the GPU's queue by now
                    self._log(unread, thorough=False)
                    unread = None
                if self.step % log_every == 0 or kept:
                    unread = _Line(self.step, epoch, batch, Readback(results, self.options.device))
                    # Nothing is kept that was not looked at. A CPU has no queue.
                    if kept or not is_cuda(self.options.device):
                        self._log(unread, thorough=kept)
                        unread = None
                if saved and self.world.comm is not None:
                    expect_same(self.system, self.world, self.step)
                if self.world.is_first:
                    if sampled:
                        self.watch.show_samples(self.step, self.system.sampler.generate(self.z))
                    if measured:
                        self._measure()
                    if saved:
                        self.run.save_checkpoint(self.step, *self._state())
        if not self.world.is_first:
            return
        if self.step < steps:
            self.say(f"stopped after step {self.step:,}, which is saved; go on with --resume --out {self.run.folder}")
        else:
            self._finish((time.perf_counter() - started) / 60)

    def _one_step(self, real: Tensor) -> Any:
        """One training step, and what follows from it."""
        common = self.world.comm is not None
        try:
            with mg.random.share_of_batch(self.rows, self.settings.batch_size) if common else nullcontext():
                results = self._memory_checked(lambda: self.train_on(real))
        except FloatingPointError as error:  # MINIGAN_DEBUG=1; the traceback says which line of the example it was
            if self.world.is_first:
                self.run.add_finding(f"step {self.step + 1:,}: {error}")
            error.add_note(f"This was step {self.step + 1:,}.")
            raise
        if common:
            average_buffers(self.system, self.world)
        self.step += 1
        if self.system.average is not None and self.options.average is not None:
            update_average(self.system.average, self.system.generator, self.options.average, self.step)
        if self.batches.step % self.batches.batches_per_epoch == 0:
            self.system.end_epoch()
        return results

    def _memory_checked(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except memory_errors() as error:
            raise UserError(_out_of_memory(self.settings.batch_size, self.options.device)) from error

    def _log(self, line: _Line, thorough: bool) -> None:
        """Reads the numbers, logs and judges them."""
        values = self.world.means(line.numbers.values())
        if self.world.is_first:
            self.watch.log(line.step, line.epoch, line.batch, values)
        self._check(line.step, values, thorough)

    def _check(self, step: int, values: dict[str, float], thorough: bool) -> None:
        """Stops before anything that is not finite is saved. thorough: looks into the networks in any case."""
        if thorough or not all(np.isfinite(value) for value in values.values()):
            found = non_finite(self.system, values)
            if found:
                problem = f"step {step:,}: {found}"
                saved = []
                if self.world.is_first:
                    self.run.add_finding(problem)
                    saved = checkpoints_in(self.run.folder)
                back = f", or go back with --resume --from {int(saved[-1].stem)} and another --seed" if saved else ""
                raise UserError(
                    f"{problem}. Nothing of it was saved: start anew with a lower learning rate{back}. "
                    "MINIGAN_DEBUG=1 names the operation where it began."
                )

    def _measure(self) -> None:
        """Scores of the samples; a checkpoint of the best."""
        scores = self.scores.all(self.system.sampler)
        self.watch.show_scores(self.step, scores)
        if self.best is None or scores["swd"] < self.best:
            self.best = scores["swd"]
            self.run.save_best(self.step, *self._state())

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that the rest of the run depends on: tensors, and the rest."""
        tensors = {**self.system.state_dict(), "sample_z": self.z.numpy()}
        return tensors, {
            "system": self.system.scalars(),
            "batches": self.batches.state_dict(),
            "seed": self.options.seed,
            "random": mg.random.get_state(),
            "health": self.health.state_dict(),
            "distance": self.distance,
            "best": self.best,
        }

    def _finish(self, minutes: float) -> None:
        self._draw()
        after = self.scores.distance(self.system.sampler)
        self.say(
            f"{self.run.folder}: done in {minutes:.1f} minutes; look at samples/{self.step:06d}.png and progress.gif\n"
            f"sliced Wasserstein distance to the images: {self.distance:.0f} before training, {after:.0f} now "
            f"({after / self.distance:.2f} of it)"
        )

    def _draw(self) -> None:
        """The pictures of a run as a whole."""
        self.run.save_film()
        if not self.run.save_plot(self.system.curves):
            self.say("losses.png is not drawn: log.csv has no line")


def _out_of_memory(batch_size: int, device: str) -> str:
    smaller = f"try --batch-size {batch_size // 2}" if batch_size > 1 else "try a smaller --image-size"
    return f"--batch-size: {batch_size} images a step do not fit into the memory of device {device}; {smaller}"
