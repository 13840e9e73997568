"""`python -m minigan`: what is here and what is missing, and what can be done with finished runs."""

import argparse
import platform
import sys
from importlib import metadata
from pathlib import Path

import minigan as mg
from minigan.backend import cuda_problem
from minigan.cpu import thread_count
from minigan.serialization import CheckpointError
from minigan.training.command_line import OneLineParser, fail
from minigan.training.errors import UserError
from minigan.training.pictures import save_images
from minigan.training.restore import load_generator

# What is used beyond the core, and for what.
OPTIONAL = {
    "cupy-cuda12x": "NVIDIA GPUs (extra cuda12)",
    "cupy-cuda13x": "NVIDIA GPUs (extra cuda13)",
    "pytest": "the tests (extra test)",
    "torch": "comparisons with PyTorch (extra bench)",
}


def main(arguments: list[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    try:
        {"doctor": doctor, "generate": generate}[given.command](given)
    except (UserError, CheckpointError, mg.DeviceError) as error:
        fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m minigan", description=__doc__)
    parser.set_defaults(command="doctor")
    commands = parser.add_subparsers(metavar="COMMAND")
    command = commands.add_parser("doctor", help="versions, devices, libraries, and what is missing (the default)")
    command.set_defaults(command="doctor")
    command = commands.add_parser("generate", help="images from a finished run")
    command.set_defaults(command="generate")
    command.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    command.add_argument("--count", type=int, default=64, metavar="N", help="how many images (64)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same images (0)")
    command.add_argument("--grid", metavar="COLUMNSxROWS", help="one picture with all images, such as 8x8")
    command.add_argument("--out", type=Path, required=True, metavar="PATH", help="a .png for a grid, else a folder")
    command.add_argument("--device", default=None, metavar="cpu|cuda|cuda:N|emulated", help="where to compute")
    return parser


def doctor(given: argparse.Namespace) -> None:
    """Prints versions, devices and libraries."""
    device = mg.default_device()
    print(f"minigan {mg.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"default device: {device} ({device.reason})")
    print(f"  cpu: {thread_count()} threads")
    print(f"  cuda: {cuda_problem() or 'available'}")
    for name in ("numpy", "numba", "pillow", "safetensors", "tqdm"):
        print(f"{name} {metadata.version(name)}")
    for name, purpose in OPTIONAL.items():
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed; for {purpose}")


def generate(given: argparse.Namespace) -> None:
    """Writes images of a run's generator."""
    if given.count < 1 or given.seed < 0:
        raise UserError(f"generate: expected --count from 1 and --seed from 0, got {given.count} and {given.seed}")
    columns = _columns(given.grid, given.count) if given.grid else None
    generator = load_generator(given.run, given.device)
    mg.manual_seed(given.seed)
    save_images(generator.generate(generator.noise(given.count)), given.out, columns)
    print(f"{given.out}: {given.count} images")


def _columns(text: str, count: int) -> int:
    columns, _, rows = text.partition("x")
    if not columns.isdecimal() or not rows.isdecimal() or not int(columns) or int(columns) * int(rows) < count:
        raise UserError(f"--grid: expected COLUMNSxROWS with room for {count} images, such as 8x8, got {text!r}")
    return int(columns)


if __name__ == "__main__":
    main(sys.argv[1:])
