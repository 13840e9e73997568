"""The losses of a run as a picture. It takes matplotlib, which the extra `plot` brings."""

import csv
import importlib.util
from pathlib import Path

import numpy as np

# A loss of one batch tells little: the line is the mean over so many steps around each.
SMOOTHED_OVER = 25


def plot_losses(log: Path, target: Path) -> bool:
    """Draws the columns of log.csv that begin with "loss", over the steps; False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

    rows = list(csv.DictReader(log.read_text().splitlines()))
    steps = [float(row["step"]) for row in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(name for name in rows[0] if name.startswith("loss")):
        values = np.array([float(row[name]) for row in rows])
        width = min(SMOOTHED_OVER, len(values))
        counts = np.convolve(np.ones(len(values)), np.ones(width), "same")
        axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
        axes.plot(
            steps, np.convolve(values, np.ones(width), "same") / counts, color=f"C{i}", label=name.replace("_", " ")
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, and its mean over {SMOOTHED_OVER} lines of the log")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=110)
    return True
