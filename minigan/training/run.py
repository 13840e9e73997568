"""A run's folder: what is in it, how a new one is made, and how an old one is gone on with.

config.json          every setting, versions, device, git commit
log.csv              a line a step            metrics.csv  scores of the samples, where they are asked for
health.log           what was found wrong, in words
samples/000100.png   grids of one fixed z     progress.gif  losses.png
checkpoints/000500.safetensors   networks, optimizers, counters, random state, data order; the last ones are kept
checkpoints/best.safetensors     that of the best score
"""

import csv
import dataclasses
import fcntl
import io
import json
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigan import serialization
from minigan.training.command_line import Options
from minigan.training.errors import UserError
from minigan.training.folders import PLACE, latest_run, runs_of
from minigan.training.pictures import film
from minigan.training.plots import plot_losses
from minigan.training.system import Curves
from minigan.version import __version__

# Settings that a resumed run may change: they do not alter what a step computes.
FREE = {"steps", "sample_every", "checkpoint_every"}
BEST = "best.safetensors"
# All that a run makes.
OURS = {".lock", "config.json", "log.csv", "metrics.csv", "health.log", "samples", "checkpoints", "tensorboard"}


class Run:
    """One training run's folder. `Run.create` makes a new one, `Run.resume` opens an old one.

    It belongs to one process at a time: opening it raises UserError while another one has it.
    """

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder, self.kept = folder, kept
        self._tables: dict[str, Any] = {}
        with _writing(folder):
            self._lock = open(folder / ".lock", "w")  # noqa: SIM115 - as long as the run
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process ends
        except OSError as error:  # some network disks have no locks; then nobody can tell
            if isinstance(error, BlockingIOError):
                self._lock.close()
                raise UserError(f"--out: {folder} is in use by another run, which has not ended") from None
        for place in (folder, folder / "checkpoints", folder / "samples"):
            serialization.remove_stale(place)

    @staticmethod
    def create(options: Options[Any], details: Mapping[str, Any]) -> "Run":
        """A new folder. Raises UserError for one that has something in it, or that cannot be written."""
        with ExitStack() as on_error:
            run = Run(_make_folder(options), options.keep)
            on_error.callback(run.close)
            run._clear()
            with _writing(run.folder):
                for name in ("samples", "checkpoints"):
                    (run.folder / name).mkdir()
                (run.folder / "health.log").touch()
            run._write_configuration({**_configuration(options), **_unbinding(options), **details, **_surroundings()})
            on_error.pop_all()
        return run

    @staticmethod
    def resume(
        options: Options[Any], details: Mapping[str, Any]
    ) -> tuple["Run", dict[str, np.ndarray], dict[str, Any]]:
        """The folder of an old run, with its last checkpoint, or that of the step `options.from_step`.

        Raises UserError where there is none, or where options differ. Going back to an earlier step removes what came
        after it, and may change the seed.
        """
        folder = _run_to_resume(options)
        with ExitStack() as on_error:
            run = Run(folder, options.keep)
            on_error.callback(run.close)
            try:
                old = json.loads((folder / "config.json").read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"--resume: {folder / 'config.json'}: cannot be read: {error}") from None
            differences = _differences(old, options)
            if differences:
                raise UserError(f"--resume: {folder} is a run with other settings: {'; '.join(differences)}")
            chosen = run._chosen(options.from_step)
            try:
                tensors, state = serialization.load_checkpoint(chosen)
            except serialization.CheckpointError as error:
                steps = run._steps_besides(chosen)
                raise UserError(f"--resume: {error}" + (f"; there is --from {steps}" if steps else "")) from None
            step = int(chosen.stem)
            if options.from_step is not None:
                run._forget_after(step)
            # Fewer steps than are done would be a plan that the run cannot keep.
            planned = {"planned_steps": max(details["planned_steps"], step)}
            run._write_configuration({**old, "seed": options.seed, **_unbinding(options), **details, **planned})
            for name in ("log.csv", "metrics.csv", "health.log"):
                run._cut(name, step)
            on_error.pop_all()
        return run, tensors, state

    def save_checkpoint(self, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Writes a checkpoint, and removes all but the last ones."""
        path = self.folder / "checkpoints" / f"{step:06d}.safetensors"
        serialization.save_checkpoint(path, tensors, {"step": step, **state})
        for old in checkpoints_in(self.folder)[: -self.kept]:
            old.unlink(missing_ok=True)

    def save_best(self, step: int, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Writes the checkpoint that has the best score so far."""
        serialization.save_checkpoint(self.folder / "checkpoints" / BEST, tensors, {"step": step, **state})

    def has_best(self) -> bool:
        return (self.folder / "checkpoints" / BEST).exists()

    def save_sample(self, step: int, picture: Image.Image) -> None:
        content = io.BytesIO()
        picture.save(content, "PNG")
        serialization.write_whole(self.folder / "samples" / f"{step:06d}.png", content.getvalue())

    def save_film(self) -> None:
        frames = sorted((self.folder / "samples").glob("[0-9]*.png"), key=lambda path: int(path.stem))
        with _writing(self.folder / "progress.gif"):
            serialization.write_whole(self.folder / "progress.gif", film(frames))

    def save_plot(self, curves: Callable[[Curves], list[Curves]]) -> bool:
        """losses.png, as `System.curves` has it; False where the log has no line."""
        content = plot_losses(self.folder / "log.csv", curves)
        if content is not None:
            serialization.write_whole(self.folder / "losses.png", content)
        return content is not None

    def add_line(self, name: str, row: Mapping[str, float]) -> None:
        """Adds a line to a table such as log.csv, and its head before the first one."""
        with _writing(self.folder / name):
            if name not in self._tables:
                path = self.folder / name
                new = not path.exists() or not path.stat().st_size
                self._tables[name] = open(path, "a", newline="")  # noqa: SIM115 - open as long as the run
                if new:
                    csv.writer(self._tables[name], lineterminator="\n").writerow(row)
            values = [str(value) if isinstance(value, int) else f"{value:.6g}" for value in row.values()]
            csv.writer(self._tables[name], lineterminator="\n").writerow(values)
            self._tables[name].flush()

    def add_finding(self, text: str) -> None:
        """Adds a line to health.log."""
        with _writing(self.folder / "health.log"), open(self.folder / "health.log", "a") as file:
            file.write(f"{text}\n")

    def close(self) -> None:
        for table in self._tables.values():
            with suppress(OSError):  # a full disk, of which the user was told when the line could not be written
                table.close()
        self._tables.clear()
        self._lock.close()

    def _chosen(self, step: int | None) -> Path:
        found = checkpoints_in(self.folder)
        if step is None:
            return found[-1]
        for path in found:
            if int(path.stem) == step:
                return path
        raise UserError(
            f"--from: {self.folder} has no checkpoint of step {step}; there is --from {self._steps_besides()}"
        )

    def _steps_besides(self, path: Path | None = None) -> str:
        """The steps of the other checkpoints, in words."""
        return " or ".join(str(int(other.stem)) for other in checkpoints_in(self.folder) if other != path)

    def _clear(self) -> None:
        """Removes what a run left that ended before its first checkpoint."""
        _expect_unused(self.folder)  # again, now that it is ours
        with _writing(self.folder):
            for name in OURS - {".lock"}:
                path = self.folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _forget_after(self, step: int) -> None:
        """Removes the checkpoints and samples of later steps, which are another story now."""
        best = self.folder / "checkpoints" / BEST
        if best.exists() and int(serialization.load_checkpoint(best)[1]["step"]) > step:
            best.unlink()
        for path in (*checkpoints_in(self.folder), *(self.folder / "samples").glob("[0-9]*.png")):
            if int(path.stem) > step:
                path.unlink()

    def _cut(self, name: str, step: int) -> None:
        """Drops the lines after a step, and half a line: the resumed run will write them again."""
        path = self.folder / name
        if path.exists() and path.stat().st_size:
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
            serialization.write_whole(path, "".join(kept).encode())

    def _write_configuration(self, configuration: Mapping[str, Any]) -> None:
        content = json.dumps(configuration, indent=2)
        serialization.write_whole(self.folder / "config.json", content.encode() + b"\n")


def checkpoints_in(folder: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    return sorted((folder / "checkpoints").glob("[0-9]*.safetensors"), key=lambda path: int(path.stem))


def _step_of(line: str) -> int:
    """Of a line of log.csv ("1234,0,...") or health.log ("step 1,234: ..."); 0 for the head of a table."""
    found = re.match(r"step ([\d,]+):|(\d+),", line)
    return int((found[1] or found[2]).replace(",", "")) if found else 0


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out: {error.filename or path}: cannot be written: {error.strerror}") from None


def expect_writable(options: Options[Any]) -> None:
    """Raises UserError where the run could not write into its folder, or into what that would be made in.

    So, too, for a folder among the images: the next run would train on this one's samples. Of a new run nothing is
    left there: the file has no name.
    """
    folder = _run_to_resume(options) if options.resume else options.out or PLACE
    if options.out is not None and not options.resume:
        _expect_unused(folder)
    if options.data is not None and folder.resolve().is_relative_to(options.data.resolve()):
        raise UserError(f"--out: {folder} lies in --data {options.data}, where samples would be taken for images")
    place = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=place) as trial:
            trial.write(bytes(4096))
    except OSError as error:
        raise UserError(f"--out: {place}: cannot be written: {error.strerror}") from None


def _run_to_resume(options: Options[Any]) -> Path:
    folder = options.out or latest_run(options.system)
    if not (folder / "config.json").exists() or not checkpoints_in(folder):
        raise UserError(f"--resume: no run with a checkpoint in {folder}; start it without --resume")
    return folder


def _make_folder(options: Options[Any]) -> Path:
    if options.out is not None:
        _expect_unused(options.out)
        with _writing(options.out):
            options.out.mkdir(parents=True, exist_ok=True)
        return options.out
    number = 1 + max((int(p.name.rpartition("-")[2]) for p in runs_of(options.system)), default=0)
    while True:  # another run may take the same number at the same moment
        folder = PLACE / f"{options.system}-{number:04d}"
        try:
            with _writing(folder):
                folder.parent.mkdir(exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"--out: {folder}: cannot be written: {error.strerror}") from None


def _expect_unused(folder: Path) -> None:
    """Raises UserError unless a folder is new, or empty, or a run ended in it before its first checkpoint."""
    with _writing(folder):
        if not folder.exists():
            return
        if (folder / ".lock").exists():
            serialization.remove_stale(folder)
        names = {path.name for path in folder.iterdir()}
        saved = any((folder / "checkpoints").glob("*.safetensors"))
    if names and (saved or ".lock" not in names or not names <= OURS):
        raise UserError(f"--out: {folder} is not empty; choose another folder, or --resume to go on with the run in it")


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _resolved(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _configuration(options: Options[Any]) -> dict[str, Any]:
    return {
        "system": options.system,
        "preset": options.preset,
        "data": _resolved(options.data),
        "leave_out": _resolved(options.leave_out),
        "average": options.average,
        "seed": options.seed,
        "settings": _plain(dataclasses.asdict(options.settings)),
    }


def _unbinding(options: Options[Any]) -> dict[str, Any]:
    """What a resumed run has as before, unless it is told otherwise."""
    return {"keep": options.keep, "metrics_every": options.metrics_every}


def _differences(old: Mapping[str, Any], options: Options[Any]) -> list[str]:
    """What is not as it was, in words."""
    new = _configuration(options)
    settings = new.pop("settings")
    if options.from_step is not None:
        del new["seed"]
    old_settings = old.get("settings") or {}
    pairs = [(name, old.get(name), value) for name, value in new.items()]
    pairs += [(name, old_settings.get(name), value) for name, value in settings.items() if name not in FREE]
    return [f"{name} was {before!r}, now is {now!r}" for name, before, now in pairs if before != now]


def _surroundings() -> dict[str, Any]:
    """What else a reader may want to know of how a run came about."""
    names = ("numpy", "numba", "pillow", "safetensors", "cupy-cuda12x", "cupy-cuda13x")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "minigan": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
    }


def _git_commit() -> str | None:
    """Of the sources; None where they lie in no repository, or git is not installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:
        return None
