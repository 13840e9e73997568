"""`python -m minigan generate RUN`: images from a finished run."""

import argparse
import math
from pathlib import Path
from typing import Any

import minigan as mg
from minigan.training.errors import UserError
from minigan.training.pictures import drawn, save_images
from minigan.training.restore import load_generator


def add_to(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="images from a finished run",
        description="Draws images with the generator of a run's last checkpoint: one picture, or a file each.",
    )
    command.set_defaults(run=run)
    command.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    command.add_argument("--count", type=int, default=64, metavar="N", help="how many images (64)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same images (0)")
    command.add_argument("--grid", metavar="COLUMNSxROWS", help="one picture with all images, such as 8x8")
    command.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="a .png for one picture with all images, else a folder"
    )
    command.add_argument("--device", default=None, metavar="cpu|cuda|cuda:N|emulated", help="where to compute")


def run(given: argparse.Namespace) -> None:
    if given.count < 1 or given.seed < 0:
        raise UserError(f"generate: expected --count from 1 and --seed from 0, got {given.count} and {given.seed}")
    columns = _columns(given.grid, given.count) if given.grid else None
    if columns is None and given.out.suffix.lower() == ".png":
        columns = math.isqrt(given.count - 1) + 1  # as square as it can be
    generator = load_generator(given.folder, given.device)
    mg.manual_seed(given.seed)
    save_images(drawn(generator, generator.noise(given.count, "cpu")), given.count, given.out, columns)
    print(f"{given.out}: {given.count} images")


def _columns(text: str, count: int) -> int:
    columns, _, rows = text.partition("x")
    if not columns.isdecimal() or not rows.isdecimal() or not int(columns) or int(columns) * int(rows) < count:
        raise UserError(f"--grid: expected COLUMNSxROWS with room for {count} images, such as 8x8, got {text!r}")
    return int(columns)
