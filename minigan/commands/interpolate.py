"""`python -m minigan interpolate RUN`: a walk through the images of a finished run."""

import argparse
from pathlib import Path
from typing import Any

import minigan as mg
from minigan.training.errors import UserError
from minigan.training.folders import run_folder
from minigan.training.latent import closed_path
from minigan.training.pictures import check_target, drawn, save_images, save_loop
from minigan.training.restore import load_generator

MOST_IMAGES = 100_000


def add_to(commands: Any) -> None:
    command = commands.add_parser(
        "interpolate",
        help="a walk from image to image of a finished run",
        description="Draws a walk through the space of z, from one random image to the next, and back to the first.",
    )
    command.set_defaults(run=run)
    add = command.add_argument
    add("folder", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    add(
        "--out",
        type=Path,
        metavar="PATH",
        help="a new .gif, which loops, or .png with a row for each leg (RUN/interpolation.gif, written anew)",
    )
    add("--points", type=int, default=5, metavar="N", help="how many random images the walk goes through (5)")
    add("--frames", type=int, default=12, metavar="N", help="images from each of them to the next (12)")
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same walk (0)")
    add("--device", default=None, metavar="cpu|cuda|cuda:N|emulated", help="where to compute")


def run(given: argparse.Namespace) -> None:
    if given.points < 2 or given.frames < 1 or given.seed < 0:
        raise UserError(
            "interpolate: expected --points from 2, --frames from 1 and --seed from 0, "
            f"got {given.points}, {given.frames} and {given.seed}"
        )
    count = given.points * given.frames
    if count > MOST_IMAGES:
        raise UserError(
            f"interpolate: expected at most {MOST_IMAGES:,} images, got --points {given.points:,} times --frames "
            f"{given.frames:,}"
        )
    if given.out is not None:
        check_target(given.out, ".gif", ".png")
    generator = load_generator(given.folder, given.device)
    out = given.out or run_folder(given.folder) / "interpolation.gif"
    mg.manual_seed(given.seed)
    z = closed_path(generator.noise(given.points, "cpu").numpy(), given.frames)
    images = drawn(generator, mg.tensor(z, device="cpu"))
    if out.suffix.lower() == ".gif":
        save_loop(images, count, out)
    else:
        save_images(images, count, out, columns=given.frames)
    print(f"{out}: {count} images, {given.frames} from each of {given.points} points to the next")
