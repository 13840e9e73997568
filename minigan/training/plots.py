"""The losses of a run as a picture. It takes matplotlib, which the extra `plot` brings."""

import csv
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minigan.training.system import Curves

# A loss of one batch tells little: the line is the mean over so many lines of the log around each. Short runs have
# a shorter one, a twentieth of them.
SMOOTHED_OVER = 1000
LEAST_SMOOTHED_OVER = 25


def read_log(log: Path) -> dict[str, np.ndarray]:
    """The columns of log.csv."""
    head, *rows = csv.reader(log.read_text().splitlines())
    return dict(zip(head, np.array(rows, np.float64).reshape(-1, len(head)).T, strict=True))


def rolling_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` values around each, of those that there are at the ends."""
    width = min(width, len(values))
    counts = np.convolve(np.ones(len(values)), np.ones(width), "same")
    return np.convolve(values, np.ones(width), "same") / counts


def plot_losses(log: Path, curves: Callable[[Curves], list[Curves]]) -> bytes | None:
    """A PNG of what `curves` makes of the log's columns, over the steps; None where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    columns = read_log(log)
    steps = columns["step"]
    width = int(np.clip(len(steps) // 20, LEAST_SMOOTHED_OVER, SMOOTHED_OVER))
    panels = curves(columns)
    figure = Figure(figsize=(8, 1.8 + 2.7 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0], panels, strict=True):
        for i, (name, values) in enumerate(panel.items()):
            axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
            axes.plot(steps, rolling_mean(values, width), color=f"C{i}", label=name)
        axes.set_ylim(bottom=min(0, *(values.min() for values in panel.values())) if panel else None)
        axes.grid(alpha=0.3)
        axes.legend()
    axes.set_xlabel(f"step; the strong lines are means over {width:,} lines of the log")
    content = io.BytesIO()
    figure.savefig(content, dpi=110)
    return content.getvalue()
