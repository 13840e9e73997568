"""`python -m minigan export RUN`: the generator of a finished run as an ONNX file."""

import argparse
import json
from pathlib import Path
from typing import Any

from minigan.onnx_export import OPSET, onnx_model
from minigan.serialization import write_whole
from minigan.training.errors import UserError
from minigan.training.folders import run_folder
from minigan.training.restore import load_generator


def add_to(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="the generator of a finished run as an ONNX file",
        description="Writes the generator of a run's last checkpoint as an ONNX file, for programs without minigan.",
    )
    command.set_defaults(run=run)
    command.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, or one of its checkpoints")
    command.add_argument("--onnx", type=Path, required=True, metavar="PATH", help="the file to write, a new .onnx")


def run(given: argparse.Namespace) -> None:
    if given.onnx.exists() or given.onnx.suffix.lower() != ".onnx":
        raise UserError(f"--onnx: expected the name of a new .onnx file, got {given.onnx}")
    generator = load_generator(given.folder, "cpu")
    folder = run_folder(given.folder).resolve()
    system = json.loads((folder / "config.json").read_text())["system"]
    model = onnx_model(generator, folder.name, system)
    write_whole(given.onnx, model.SerializeToString())
    z = ", ".join(map(str, generator.z_shape))
    print(f"{given.onnx}: z (N, {z}) -> images (N, H, W, 3), ONNX opset {OPSET}")
