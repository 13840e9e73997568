"""The loop around a system's training step: data in; losses, samples and checkpoints out."""

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minigan as mg
from minigan.backend import is_cuda, memory_errors
from minigan.data import Batches, DataError, load_images
from minigan.data.cache import Listing, cached, key_of
from minigan.metrics import sliced_wasserstein
from minigan.serialization import CheckpointError
from minigan.tensor import Tensor
from minigan.training.command_line import Options, fail
from minigan.training.errors import UserError
from minigan.training.feed import feed
from minigan.training.interrupt import deferred_interrupts
from minigan.training.pictures import grid
from minigan.training.run import Run
from minigan.training.settings import in_steps
from minigan.training.system import System

TOY_COUNT = 4096
SAMPLES = 64
COLUMNS = 8
# How many images each side of the sliced Wasserstein distance has.
COMPARED = 512


def train(make: Callable[[], System], options: Options[Any], toys: str, **batching: Any) -> None:
    """Trains the system that `make` builds, as the options say, and exits.

    toys: the kind of drawn images to use where the user names no data. batching: for `Batches`.
    Exit code 0 at the end, 2 for a mistake of the user, 130 or 143 after a signal, when everything is saved.
    """
    try:
        number = _train(make, options, toys, batching)
    except (UserError, DataError, CheckpointError, mg.DeviceError) as error:
        fail(str(error))
    except KeyboardInterrupt:  # before or after the training itself, where there is nothing to save
        raise SystemExit(130) from None
    if number:
        raise SystemExit(128 + number)


def _train(make: Callable[[], System], options: Options[Any], toys: str, batching: dict[str, Any]) -> int:
    """Trains; returns the number of the signal that ended it, or 0."""
    settings, say = options.settings, (lambda text: None) if options.quiet else print
    mg.manual_seed(options.seed)
    try:
        system = make()
    except ValueError as error:
        raise UserError(str(error)) from None
    images = _images(options, toys, say)
    black, white = system.generator.pixels
    batches = Batches(images, settings.batch_size, options.seed, low=black, high=white, **batching)
    steps, sample_every, checkpoint_every = (
        in_steps(duration, batches.batches_per_epoch)
        for duration in (settings.steps, settings.sample_every, settings.checkpoint_every)
    )
    begin = _resumed if options.resume else _fresh
    run, first, z, distance_before = begin(system, batches, options)
    if first >= steps:
        say(f"{run.folder}: all {steps:,} steps are done; --steps N trains longer")
        return 0
    say(f"{run.folder}: steps {first + 1:,} to {steps:,} of {settings.batch_size} images")

    # A bar on a terminal; plain lines, one for each grid of samples, in a file or a pipe.
    bar = tqdm(total=steps, initial=first, unit="step", disable=options.quiet or not sys.stderr.isatty())
    real = feed(batches, options.device)
    # On a GPU reading a loss waits for all work in flight, so it is not done at every step.
    log_every = 10 if is_cuda(options.device) else 1
    started = time.perf_counter()
    logged = first, started
    with deferred_interrupts() as interrupt, bar, run:
        for step in range(first + 1, steps + 1):
            epoch = batches.epoch
            try:
                results = system.step(next(real))
            except memory_errors() as error:
                raise UserError(_out_of_memory(settings.batch_size, options.device)) from error
            bar.update()
            stopping = interrupt.number
            last = step == steps or stopping
            sample = last or step % sample_every == 0
            if sample or step % log_every == 0:
                losses = {name: loss.item() for name, loss in results.items()}  # waits for a GPU
                speed = settings.batch_size * (step - logged[0]) / (time.perf_counter() - logged[1])
                logged = step, time.perf_counter()
                run.log({"step": step, "epoch": epoch, **losses, "images_per_second": speed})
                shown = {name: f"{value:.3f}" for name, value in losses.items()}
                bar.set_postfix({**shown, "images/s": f"{speed:.0f}"}, refresh=False)
            if sample:
                run.save_sample(step, grid(system.generator.generate(z), COLUMNS))
                if bar.disable:
                    words = ", ".join(f"{name} {value}" for name, value in shown.items())
                    say(f"step {step:,} of {steps:,}: {words}, {speed:.0f} images/s")
            if last or step % checkpoint_every == 0:
                _save(run, step, system, batches, z, distance_before)
            if stopping:
                say(f"stopped after step {step:,}, which is saved; go on with --resume --out {run.folder}")
                return stopping
    run.save_film()
    if not run.save_plot():
        say("losses.png is not drawn: matplotlib is not installed (pip install 'minigan[plot]')")
    minutes = (time.perf_counter() - started) / 60
    after = _distance(system, images, options.seed)
    say(
        f"{run.folder}: done in {minutes:.1f} minutes; look at samples/{steps:06d}.png and progress.gif\n"
        f"sliced Wasserstein distance to the images: {distance_before:.0f} before training, {after:.0f} now "
        f"({after / distance_before:.2f} of it)"
    )
    return 0


def _fresh(system: System, batches: Batches, options: Options[Any]) -> tuple[Run, int, Tensor, float]:
    """A new run: its folder, step 0, the latent vectors of its samples, the distance before training."""
    z = system.generator.noise(SAMPLES)
    distance = _distance(system, batches.images, options.seed)
    details = {"device": options.device, "precision": options.precision, "images": len(batches.images)}
    run = Run.create(options, details)
    run.save_sample(0, grid(system.generator.generate(z), COLUMNS))
    return run, 0, z, distance


def _resumed(system: System, batches: Batches, options: Options[Any]) -> tuple[Run, int, Tensor, float]:
    """The same of an old run, with its state put into the system, the batches and the random numbers."""
    run, tensors, state = Run.resume(options)
    z = mg.tensor(tensors.pop("sample_z"), device=options.device)
    try:
        system.load_state_dict(tensors, state["system"])
        batches.load_state_dict(state["batches"])
    except (KeyError, ValueError) as error:
        raise UserError(f"--resume: {run.folder}: the checkpoint does not fit: {error.args[0]}") from None
    mg.random.set_state(state["random"])
    return run, int(state["step"]), z, float(state["distance_before"])


def _save(run: Run, step: int, system: System, batches: Batches, z: Tensor, distance_before: float) -> None:
    tensors = {**system.state_dict(), "sample_z": z.numpy()}
    state = {
        "system": system.scalars(),
        "batches": batches.state_dict(),
        "random": mg.random.get_state(),
        "distance_before": distance_before,
    }
    run.save_checkpoint(step, tensors, state)


def _out_of_memory(batch_size: int, device: str) -> str:
    smaller = f"try --batch-size {batch_size // 2}" if batch_size > 1 else "try a smaller --image-size"
    return f"--batch-size: {batch_size} images a step do not fit into the memory of device {device}; {smaller}"


def _images(options: Options[Any], toys: str, say: Callable[[str], None]) -> np.ndarray:
    """uint8 (N, H, W, 3): the user's, or drawn ones."""
    if options.data is not None:
        found = load_images(
            options.data,
            options.settings.image_size,
            minimum=options.settings.batch_size,
            progress=not options.quiet,
        )
        say(f"data: {found.summary()}")
        return found.images
    say(f"data: {TOY_COUNT:,} drawn toy {toys}; your own images: --data PATH (drawing takes some seconds, once)")
    return _toys(toys, options.settings.image_size)


def _toys(kind: str, size: tuple[int, int]) -> np.ndarray:
    """Drawn images, from the cache if they were drawn before by the same code."""
    from minigan.data import toys  # here, since Pillow's drawing is not needed for other data

    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(toys.__file__).parent.glob("*.py"))))

    def fill(add: Callable[[np.ndarray], None]) -> Listing:
        for image in toys.draw(kind, TOY_COUNT, size, seed=0):
            add(image)
        return Listing([f"{kind}-{i}" for i in range(TOY_COUNT)], [])

    return cached(key_of(["toys", kind, TOY_COUNT, *size, code.hexdigest()]), *size, fill)[0]


def _distance(system: System, images: np.ndarray, seed: int) -> float:
    """The mean, over the scales, of the sliced Wasserstein distance between the data and as many samples.

    It has random numbers of its own, so that measuring does not change the run.
    """
    state = mg.random.get_state()
    mg.manual_seed(seed + 1)
    count = min(COMPARED, len(images))
    fake = system.generator.generate(system.generator.noise(count))
    mg.random.set_state(state)
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    return float(np.mean(sliced_wasserstein(np.asarray(images[chosen]), fake)))
