"""The options that all examples take."""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from minigan.backend import (
    PRECISIONS,
    DeviceError,
    cuda_architecture,
    default_device,
    is_cuda,
    matmul_precision,
    resolve_device,
    set_matmul_precision,
)
from minigan.cpu import thread_count
from minigan.distributed import LaunchError, World, world
from minigan.ops.geometry import Pair
from minigan.training.errors import UserError
from minigan.training.folders import latest_run
from minigan.training.settings import Settings

S = TypeVar("S", bound=Settings)


@dataclass
class Options(Generic[S]):
    """What the user asked for; None where nothing was said.

    settings: the preset's, with what was said on the command line put in its place.
    """

    system: str
    preset: str
    settings: S
    device: str
    precision: str
    data: Path | None
    out: Path | None
    leave_out: Path | None
    seed: int
    average: float | None
    sync_batch_norm: bool
    metrics_every: int | None
    keep: int
    tensorboard: bool
    graph: bool
    resume: bool
    from_step: int | None
    quiet: bool


@contextmanager
def quiet_pipes() -> Iterator[None]:
    """Inside, and as a decorator: ends the program without a word when whoever reads what it says has gone, as `head`.

    The exit code is what a shell sees of other programs, which SIGPIPE ends. Here the signal stays ignored, or it would
    end a program for a connection that breaks as well. Of many ranks none may go by itself: there it is an error.
    """
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        if world().comm is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        raise SystemExit(128 + signal.SIGPIPE) from None


@quiet_pipes()
def command_line(
    system: str, description: str, presets: Mapping[str, S], arguments: Sequence[str] | None = None
) -> Options[S]:
    """The options of an example, from its command line; says which device and preset were chosen, and why.

    A mistake ends the program with exit code 2 and one line that says what was expected.
    """
    parser = _parser(system, description, list(presets))
    given = parser.parse_args(arguments)
    try:
        thread_count()
        ranks = world()
    except (LaunchError, ValueError) as error:
        parser.error(str(error))
    given.quiet = given.quiet or not ranks.is_first
    if given.from_step and not given.resume:
        parser.error("--from: expected --resume with it")
    if given.leave_out and not given.data and not given.resume:
        parser.error("--leave-out: expected --data with it")
    said_preset = given.preset
    if given.resume:
        _recall(given, system)
        if given.preset not in (None, *presets):
            parser.error(f"--resume: expected a run of preset {' or '.join(presets)}, got {given.preset!r}")
    try:
        chosen = default_device() if given.device == "auto" else None
        device = ranks.device(str(chosen) if chosen else resolve_device(given.device))
    except DeviceError as error:
        parser.error(f"{'MINIGAN_DEVICE' if given.device == 'auto' else '--device'}: {error}")
    precision = given.precision or (given.was_precision if given.was_device == device else None)
    if precision:
        if device == "cpu" and precision != "float32":
            parser.error(f"--precision: expected float32 on device cpu, got {precision}")
        if precision in ("bf16", "fp16") and is_cuda(device) and (arch := cuda_architecture(device)) < 80:
            parser.error(f"--precision: {precision} needs a GPU from sm_80 on; expected float32 on this sm_{arch}")
        if precision != matmul_precision(device):
            set_matmul_precision(precision)
    preset = given.preset or ("paper" if is_cuda(device) else "small")
    changes = {
        name: value for name in ("steps", "batch_size", "image_size") if (value := getattr(given, name)) is not None
    }
    if not given.quiet:
        if ranks.comm is not None:
            print(ranks)
        print(f"device: {device}" + (f" ({chosen.reason})" if chosen else ""))
        reason = "" if said_preset else " (as before)" if given.preset else f" (the default on {device}; see --preset)"
        print(f"preset: {preset}{reason}")
    return Options(
        system=system,
        preset=preset,
        settings=dataclasses.replace(presets[preset], **changes),
        device=device,
        precision=matmul_precision(device),
        data=given.data,
        out=given.out,
        leave_out=given.leave_out,
        seed=given.seed or 0,
        average=given.average,
        sync_batch_norm=bool(given.sync_batch_norm),
        metrics_every=given.metrics_every,
        keep=given.keep or 3,
        tensorboard=given.tensorboard,
        graph=given.graph,
        resume=given.resume,
        from_step=given.from_step,
        quiet=given.quiet,
    )


def _recall(given: argparse.Namespace, system: str) -> None:
    """Sets what was not said now to what the run that is resumed was started with."""
    try:
        old = json.loads(((given.out or latest_run(system)) / "config.json").read_text())
        settings = old["settings"]
        before = {
            "preset": old["preset"],
            "data": old["data"] and Path(old["data"]),
            "leave_out": old["leave_out"] and Path(old["leave_out"]),
            "average": old["average"],
            "sync_batch_norm": old.get("sync_batch_norm"),
            "seed": old["seed"],
            "steps": old["planned_steps"],
            "batch_size": settings["batch_size"],
            "image_size": tuple(settings["image_size"]),
            "keep": old.get("keep"),
            "metrics_every": old.get("metrics_every"),
            "was_device": old.get("device"),
            "was_precision": old.get("precision"),
        }
    except UserError as error:
        fail(str(error))
    except (OSError, ValueError, KeyError, TypeError):
        return  # opening the run, later, says what is wrong with it
    for name, value in before.items():
        if getattr(given, name) is None:
            setattr(given, name, value)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line; --help has the rest."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def _parser(system: str, description: str, presets: list[str]) -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=description.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="images: a folder, searched recursively, or a .zip, .tar or .tgz; without it, drawn toy images",
    )
    add("--leave-out", type=Path, metavar="FILE", help="a text file of names of images in --data that are not wanted")
    add("--out", type=Path, metavar="DIR", help=f"where to write; without it, runs/{system}-0001, -0002 ...")
    add("--preset", choices=presets, help="paper: as published; small: minutes on a CPU. Default: by the device")
    add("--steps", type=_count, metavar="N", help="how many training steps")
    add("--batch-size", type=_count, metavar="N", help="images in a step, of all ranks together under mpiexec")
    add("--image-size", type=_size, metavar="N or HxW", help="size of the images in pixels, such as 64 or 64x48")
    add("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|emulated", help="where to compute (auto)")
    add("--precision", choices=PRECISIONS, help="of convolutions on a GPU; default: tf32 where the GPU has it")
    parser.set_defaults(was_device=None, was_precision=None)  # of the run that is resumed: another device may lack it
    add("--seed", type=_seed, metavar="N", help="for the weights, the noise and the order of the data (0)")
    add(
        "--average",
        type=_decay,
        metavar="DECAY",
        help="sample from a moving average of the generator's weights; 0.999 averages over about 1,000 steps",
    )
    add(
        "--sync-batch-norm",
        action=argparse.BooleanOptionalAction,
        help="under mpiexec: batch norm by the statistics of the whole batch, not by those of each rank's share of it",
    )
    add(
        "--metrics-every",
        type=_count,
        metavar="N",
        help="measure the samples every N steps, into metrics.csv, and keep the best checkpoint",
    )
    add("--keep", type=_count, metavar="N", help="how many checkpoints to keep, the last ones (3)")
    add("--tensorboard", action="store_true", help="write for TensorBoard, too (extra watch)")
    add("--graph", action="store_true", help="on a GPU, replay the step as one CUDA graph; same numbers, fewer waits")
    add(
        "--resume", action="store_true", help="go on from the last checkpoint in --out, or in the latest run, as it was"
    )
    add(
        "--from",
        type=_count,
        dest="from_step",
        metavar="STEP",
        help="with --resume: go back to the checkpoint of this step, and forget what came after it; "
        "with another --seed it goes another way from there",
    )
    add("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, below 2^63, got {text!r}")
    return int(text)


def _decay(text: str) -> float:
    try:
        decay = float(text)
    except ValueError:
        decay = -1.0
    if not 0 < decay < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, such as 0.999, got {text!r}")
    return decay


def _size(text: str) -> Pair:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected a number such as 64, or HEIGHTxWIDTH such as 64x48, got {text!r}")
    return int(parts[0]), int(parts[-1])


def fail(message: str) -> NoReturn:
    """Ends the program with one line and exit code 2."""
    program = os.path.basename(sys.argv[0])
    text = f"{'python -m minigan' if program == '__main__.py' else program}: error: {message}"
    try:
        ranks = world()
    except LaunchError:  # that is the message, and there are no ranks to end
        ranks = World()
    ranks.exit(2, text)
