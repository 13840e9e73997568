"""What a run shows while it goes on: a bar or plain lines, the log, sample grids, findings, TensorBoard."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigan.backend import is_cuda
from minigan.progress import tqdm
from minigan.training.board import Board
from minigan.training.command_line import Options
from minigan.training.health import Health
from minigan.training.pictures import grid
from minigan.training.run import Run

# On a GPU the host is a step ahead, and Python's time for a line is better spent on the next launches.
CUDA_LOGS_EVERY = 10


def logs_every(device: str) -> int:
    """Of how many steps the log gets a line."""
    return CUDA_LOGS_EVERY if is_cuda(device) else 1


class Watch:
    """Tells of a run's steps. first: the step that a resumed run stands at."""

    def __init__(self, run: Run, options: Options[Any], health: Health, first: int = 0) -> None:
        self.run, self.health, self.settings = run, health, options.settings
        self.quiet = options.quiet
        self.board = Board(run.folder / "tensorboard", first) if options.tensorboard else None
        self.step = first
        self._lines: list[dict[str, float]] = []  # of the log, since the last plain line

    @contextmanager
    def until(self, steps: int) -> Iterator[None]:
        """Steps up to `steps`: a bar on a terminal, plain lines in a file or a pipe."""
        self.steps, self._logged_at = steps, time.perf_counter()
        hidden = self.quiet or not sys.stderr.isatty()
        with tqdm(total=steps, initial=self.step, unit="step", disable=hidden) as self.bar:
            yield

    def close(self) -> None:
        if self.board:
            self.board.close()

    def log(self, step: int, epoch: int, batch: int, values: Mapping[str, float]) -> None:
        """A line of the log."""
        now = time.perf_counter()
        speed = self.settings.batch_size * (step - self.step) / (now - self._logged_at)
        self.bar.update(step - self.step)
        self.step, self._logged_at = step, now
        self.run.add_line(
            "log.csv", {"step": step, "epoch": epoch, "batch": batch, **values, "images_per_second": speed}
        )
        if self.board:
            self.board.add_scalars(step, {**values, "images_per_second": speed})
        self._lines.append({**values, "images/s": speed})
        if not self.bar.disable:
            self.bar.set_postfix_str(_words(self._lines[-1:]), refresh=False)
        self._report(self.health.watch_losses(step, values))

    def show_samples(self, step: int, images: np.ndarray) -> None:
        """A grid of images, uint8 (N, H, W, 3); a plain line, of means since the last one; findings."""
        picture = grid(images, self.settings.columns)
        self.run.save_sample(step, picture)
        if self.board:
            self.board.add_picture(step, np.asarray(picture))
        if self._lines and self.bar.disable and not self.quiet:
            print(f"step {step:,} of {self.steps:,}, mean of {len(self._lines)}: {_words(self._lines)}", flush=True)
        self._lines.clear()
        self._report(self.health.watch_samples(step, images))

    def show_scores(self, step: int, scores: Mapping[str, float]) -> None:
        self.run.add_line("metrics.csv", {"step": step, **scores})
        if self.board:
            self.board.add_scalars(step, scores)

    def _report(self, findings: list[str]) -> None:
        for text in findings:
            self.run.add_finding(text)
            if not self.quiet:
                tqdm.write(text)


def _words(lines: list[dict[str, float]]) -> str:
    """The means of what was logged, for people."""
    return ", ".join(f"{name} {np.mean([line[name] for line in lines]):.4g}" for name in lines[0])
