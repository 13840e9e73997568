"""`python -m minigan doctor`: versions, devices, libraries, and what is missing."""

import argparse
import platform
from importlib import metadata
from typing import Any

import minigan as mg
from minigan.backend import cuda_problem
from minigan.cpu import thread_count
from minigan.kernels import EmulatorError
from minigan.kernels.emulator.builder import compiler

CORE = ("numpy", "numba", "pillow", "safetensors", "tqdm")
# What is used beyond the core, and for what.
OPTIONAL = {
    "cupy-cuda12x": "NVIDIA GPUs (extra cuda12)",
    "cupy-cuda13x": "NVIDIA GPUs (extra cuda13)",
    "matplotlib": "charts of the benchmarks (extra plot)",
    "tensorboardX": "watching a run in TensorBoard (extra watch)",
    "mpi4py": "training on several processes or machines (extra mpi)",
    "nvidia-nccl-cu12": "training on several GPUs (extra nccl12)",
    "onnx": "exporting a generator (extra onnx)",
    "pytest": "the tests (extra test)",
    "torch": "comparisons with PyTorch (extra bench)",
}


def add_to(commands: Any) -> None:
    command = commands.add_parser("doctor", help="versions, devices, libraries, and what is missing (the default)")
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    device = mg.default_device()
    print(f"minigan {mg.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"default device: {device} ({device.reason})")
    print(f"  cpu: {_threads()}")
    print(f"  cuda: {cuda_problem() or 'available'}")
    print(f"  emulated: {_compiler()}")
    for name in CORE:
        print(f"{name} {metadata.version(name)}")
    for name, purpose in OPTIONAL.items():
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed; for {purpose}")


def _threads() -> str:
    try:
        return f"{thread_count()} threads"
    except ValueError as error:
        return str(error)


def _compiler() -> str:
    """What the emulator builds its kernels with, or what is missing."""
    try:
        return f"available, with {compiler()}"
    except EmulatorError as error:
        return str(error)
