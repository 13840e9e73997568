"""A run's folder: what is in it, how a new one is made, and how an old one is gone on with.

config.json          every setting, versions, device, git commit
log.csv              a line a step
samples/000100.png   grids of one fixed z            progress.gif  losses.png
checkpoints/000500.safetensors   networks, optimizers, counters, random state, data order; the last ones are kept
"""

import csv
import dataclasses
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigan import serialization
from minigan.training.command_line import Options
from minigan.training.errors import UserError
from minigan.training.pictures import film
from minigan.training.plots import plot_losses
from minigan.version import __version__

KEPT_CHECKPOINTS = 3

# Settings that a resumed run may change: they do not alter what a step computes.
FREE = {"steps", "sample_every", "checkpoint_every"}


class Run:
    """One training run's folder. `Run.create` makes a new one, `Run.resume` opens an old one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._columns: list[str] = []
        self._log: Any = None

    @staticmethod
    def create(options: Options[Any], details: Mapping[str, Any]) -> "Run":
        """A new folder. Raises UserError for one that has something in it, or that cannot be written."""
        try:
            run = Run(_make_folder(options))
            for name in ("samples", "checkpoints"):
                (run.folder / name).mkdir()
            content = json.dumps({**_configuration(options), **details, **_surroundings()}, indent=2)
            serialization.write_whole(run.folder / "config.json", content.encode() + b"\n")
        except OSError as error:
            raise UserError(f"--out: {error.filename or options.out}: cannot be written: {error.strerror}") from None
        return run

    @staticmethod
    def resume(options: Options[Any]) -> tuple["Run", dict[str, np.ndarray], dict[str, Any]]:
        """The folder of an old run, with its last checkpoint.

        Raises UserError where there is none, or where options differ.
        """
        folder = options.out or _latest(options.system)
        run = Run(folder)
        found = run.checkpoints()
        if not (folder / "config.json").exists() or not found:
            raise UserError(f"--resume: no run with a checkpoint in {folder}; start it without --resume")
        try:
            old = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--resume: {folder / 'config.json'}: cannot be read: {error}") from None
        new = _configuration(options)
        differences = [
            f"{name} was {old.get(name)!r}, now is {value!r}" for name, value in new.items() if old.get(name) != value
        ]
        old_settings = old.get("settings") or {}
        for name, value in _plain(dataclasses.asdict(options.settings)).items():
            if name not in FREE and old_settings.get(name) != value:
                differences.append(f"{name} was {old_settings.get(name)!r}, now is {value!r}")
        differences = [d for d in differences if not d.startswith("settings was")]
        if differences:
            raise UserError(f"--resume: {folder} is a run with other settings: {'; '.join(differences)}")
        tensors, state = serialization.load_checkpoint(found[-1])
        run._cut_log(int(state["step"]))
        return run, tensors, state

    def checkpoints(self) -> list[Path]:
        """The checkpoints, the oldest first."""
        return checkpoints_in(self.folder)

    def save_checkpoint(self, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, and removes all but the last ones."""
        path = self.folder / "checkpoints" / f"{step:06d}.safetensors"
        serialization.save_checkpoint(path, tensors, {"step": step, **state})
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()
        return path

    def save_sample(self, step: int, picture: Image.Image) -> Path:
        path = self.folder / "samples" / f"{step:06d}.png"
        picture.save(path)
        return path

    def save_film(self) -> Path:
        path = self.folder / "progress.gif"
        film(sorted((self.folder / "samples").glob("[0-9]*.png")), path)
        return path

    def save_plot(self) -> bool:
        """losses.png; False where matplotlib is not installed."""
        return plot_losses(self.folder / "log.csv", self.folder / "losses.png")

    def log(self, row: Mapping[str, float]) -> None:
        """Adds a line to log.csv, and its head before the first one."""
        if self._log is None:
            path = self.folder / "log.csv"
            new = not path.exists()
            self._log = open(path, "a", newline="")  # noqa: SIM115 - open as long as the run
            self._columns = list(row)
            if new:
                csv.writer(self._log).writerow(self._columns)
        csv.writer(self._log).writerow([f"{row[name]:.6g}" for name in self._columns])
        self._log.flush()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _cut_log(self, step: int) -> None:
        """Drops the lines after a step: the resumed run will write them again."""
        path = self.folder / "log.csv"
        if path.exists():
            head, *lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and int(float(line.split(",", 1)[0])) <= step]
            serialization.write_whole(path, "".join([head, *kept]).encode())


def checkpoints_in(folder: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    return sorted((folder / "checkpoints").glob("[0-9]*.safetensors"))


def _make_folder(options: Options[Any]) -> Path:
    if options.out is not None:
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise UserError(
                f"--out: {options.out} is not empty; choose another folder, or --resume to go on with the run in it"
            )
        options.out.mkdir(parents=True, exist_ok=True)
        return options.out
    number = 1 + max((int(p.name.rpartition("-")[2]) for p in _runs(options.system)), default=0)
    while True:  # another run may take the same number at the same moment
        folder = Path("runs") / f"{options.system}-{number:04d}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _runs(system: str) -> list[Path]:
    return sorted(Path("runs").glob(f"{system}-[0-9][0-9][0-9][0-9]"))


def _latest(system: str) -> Path:
    runs = _runs(system)
    if not runs:
        raise UserError(f"--resume: there is no run runs/{system}-NNNN here; name its folder with --out")
    return runs[-1]


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _configuration(options: Options[Any]) -> dict[str, Any]:
    return {
        "system": options.system,
        "preset": options.preset,
        "data": None if options.data is None else str(options.data.resolve()),
        "seed": options.seed,
        "settings": _plain(dataclasses.asdict(options.settings)),
    }


def _surroundings() -> dict[str, Any]:
    """What else a reader may want to know of how a run came about."""
    names = ("numpy", "numba", "pillow", "safetensors", "cupy-cuda12x", "cupy-cuda13x")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "minigan": __version__,
        "git_commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
    }
