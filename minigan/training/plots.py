"""The losses of a run as a picture, losses.png, by Pillow alone: every run has one, whatever is installed."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minigan.training.charts import Panel, axis_range, is_finite, nice_ticks, number, smoothed, smoothing_width, thinned
from minigan.training.errors import UserError
from minigan.training.system import Curves

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# In pixels of the picture. It is drawn FINER times as large, then reduced: that makes lines and letters smooth.
FINER = 3
WIDTH, PANEL_HEIGHT, FOOT = 880, 290, 52
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 30, 10  # around the axes of a panel
LETTERS = 14
# The colours of report.html on white, and of what is behind the lines.
COLORS = ((22, 96, 168), (191, 74, 7), (27, 122, 75), (138, 58, 166), (122, 100, 0), (179, 36, 93))
TEXT, GRID = (60, 60, 60), (222, 222, 222)
FAINT = 0.6  # how much white there is in the line of single steps, behind the means


def read_columns(path: Path) -> tuple[Curves, int]:
    """The columns of a CSV file of numbers, and how many lines could not be read.

    There are no columns where there is no line yet. Half a line at the end is one that is being written, or that a
    killed run left, and does not count.
    """
    try:
        content = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    head, *lines = content[: content.rfind("\n") + 1].splitlines() or [""]
    names = head.split(",")
    rows = []
    for line in lines:
        try:
            row = [float(text) for text in line.split(",")]
        except ValueError:
            continue
        if len(row) == len(names) and row[0] >= 0 and math.isfinite(row[0]):
            rows.append(row)
    if names[0] != "step" or not rows:
        return {}, len(lines)
    return dict(zip(names, np.array(rows).T, strict=True)), len(lines) - len(rows)


def plot_losses(log: Path, curves: Callable[[Curves], list[Curves]]) -> bytes | None:
    """A PNG of what `curves` makes of the log's columns, over the steps; None where the log has no line."""
    columns, _ = read_columns(log)
    if not columns:
        return None
    steps = columns["step"]
    panels = [Panel("", lines) for lines in curves(columns)]
    picture = Image.new("RGB", (WIDTH * FINER, (PANEL_HEIGHT * len(panels) + FOOT) * FINER), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(LETTERS * FINER)
    for i, panel in enumerate(panels):
        _draw_panel(draw, font, panel, steps, PANEL_HEIGHT * i * FINER)
    last = PANEL_HEIGHT * len(panels) * FINER
    for tick, x in _step_ticks(steps):
        draw.text((x, last), number(tick), TEXT, font, "ma")
    note = f"step; the strong lines are means over {smoothing_width(len(steps)):,} lines of the log"
    draw.text(((LEFT + WIDTH - RIGHT) / 2 * FINER, last + 1.6 * LETTERS * FINER), note, TEXT, font, "ma")
    content = io.BytesIO()
    picture.reduce(FINER).save(content, "PNG")
    return content.getvalue()


def _draw_panel(draw: ImageDraw.ImageDraw, font: Font, panel: Panel, steps: np.ndarray, top: float) -> None:
    """Names, axes and lines, `top` below the upper edge."""
    means = [smoothed(values) for values in panel.lines.values()]
    ticks = nice_ticks(*axis_range(panel, means))
    upper, lower = top + TOP * FINER, top + (PANEL_HEIGHT - BOTTOM) * FINER

    def y(values: np.ndarray) -> np.ndarray:
        share = (ticks[-1] - values) / (ticks[-1] - ticks[0])
        return upper + np.clip(share, 0, 1) * (lower - upper)

    for _, at in _step_ticks(steps):
        draw.line([(at, upper), (at, lower)], GRID, FINER)
    for tick, height in zip(ticks, y(np.array(ticks)), strict=True):
        draw.line([(LEFT * FINER, height), ((WIDTH - RIGHT) * FINER, height)], GRID, FINER)
        draw.text(((LEFT - 8) * FINER, height), number(tick), TEXT, font, "rm")
    x = _x(steps, steps)
    for values, color in zip(panel.lines.values(), COLORS, strict=False):
        _draw_line(draw, x, y(values), values, tuple(round(c + FAINT * (255 - c)) for c in color), FINER)
    for values, color in zip(means, COLORS, strict=False):
        _draw_line(draw, x, y(values), values, color, 2 * FINER)
    at = float(LEFT * FINER)
    for name, color in zip(panel.lines, COLORS, strict=False):
        draw.line([(at, top + 18 * FINER), (at + 18 * FINER, top + 18 * FINER)], color, 3 * FINER)
        draw.text((at + 24 * FINER, top + 18 * FINER), name, TEXT, font, "lm")
        at += 44 * FINER + draw.textlength(name, font)


def _draw_line(
    draw: ImageDraw.ImageDraw, x: np.ndarray, y: np.ndarray, values: np.ndarray, color: tuple[int, ...], width: int
) -> None:
    """Through the points whose values are finite, with gaps where they are not."""
    chosen = thinned(values)
    finite = is_finite(values[chosen])
    for part in np.split(chosen, np.flatnonzero(~finite)):
        points = [(x[i], y[i]) for i in part[is_finite(values[part])]]
        if len(points) == 1:
            (a, b), r = points[0], 2 * width
            draw.ellipse([a - r, b - r, a + r, b + r], color)
        elif points:
            draw.line(points, color, width, "curve")


def _x(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return (LEFT + values / max(steps.max(), 1.0) * (WIDTH - RIGHT - LEFT)) * FINER


def _step_ticks(steps: np.ndarray) -> list[tuple[float, float]]:
    """The steps that are marked, and where they are."""
    right = max(float(steps.max()), 1.0)
    ticks = [tick for tick in nice_ticks(0, right, 8) if tick <= right]
    return list(zip(ticks, _x(np.array(ticks), steps), strict=True))
