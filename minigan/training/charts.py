"""Line charts as SVG in HTML: lines over training steps, for a page that has to be read on a phone, too.

Text and axes are placed in per cent of the chart, and only the lines are stretched to fit it; so letters have the same
size at every width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

# A loss of one batch tells little: the line is the mean over so many lines of the log around each. Short runs have
# a shorter one, a twentieth of them.
SMOOTHED_OVER = 1000
LEAST_SMOOTHED_OVER = 25
MOST_POINTS = 600
# Lines with so few points have a dot at each.
FEW_POINTS = 30
# What float32 cannot hold is no value of a run, and would leave nothing to see of the others.
LARGEST = float(np.finfo(np.float32).max)
# A chart with more values than this leaves out the outermost hundredth of them.
MANY_VALUES = 100
COLORS = 6


@dataclass(frozen=True)
class Panel:
    """One chart: lines with their names, all over the same steps. top: of the axis, where it is known beforehand."""

    title: str
    lines: Mapping[str, np.ndarray]
    smooth: bool = True
    top: float | None = None


def is_finite(values: np.ndarray) -> np.ndarray:
    """Where there is a number that can be drawn."""
    return np.abs(values) <= LARGEST  # false for NaN


def rolling_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` values around each, of those that there are at the ends."""
    width = min(width, len(values))
    counts = np.convolve(np.ones(len(values)), np.ones(width), "same")
    return np.convolve(values, np.ones(width), "same") / counts


def smoothing_width(count: int) -> int:
    """How many lines of a log a mean is over, where it has `count` of them: a twentieth, within bounds."""
    return min(count, int(np.clip(count // 20, LEAST_SMOOTHED_OVER, SMOOTHED_OVER)))


def smoothed(values: np.ndarray) -> np.ndarray:
    """The rolling mean of the values that are finite; NaN where there are none."""
    finite = is_finite(values)
    width = smoothing_width(len(values))
    share = rolling_mean(finite.astype(np.float64), width)
    total = rolling_mean(np.where(finite, values, 0.0), width)
    return np.divide(total, share, out=np.full(len(values), np.nan), where=share > 0)


def thinned(values: np.ndarray) -> np.ndarray:
    """The indices of at most MOST_POINTS values that look like all: the least and the greatest of each stretch."""
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    chosen: set[int] = set()
    borders = np.linspace(0, len(values), MOST_POINTS // 2 + 1).astype(int)
    for start, end in pairwise(borders):
        finite = start + np.flatnonzero(is_finite(values[start:end]))
        if len(finite):
            chosen |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
        else:
            chosen.add(int(start))  # a gap in the line
    return np.array(sorted(chosen))


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most so many multiples of 1, 2 or 5 times a power of ten, from at or below `low` to at or above `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < most:
            break
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as people write it, with about three digits."""
    if not math.isfinite(value) or 0 < abs(value) < 1e-3 or abs(value) >= 1e7:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def chart(panel: Panel, steps: np.ndarray) -> str:
    """A figure with title, legend, axes and lines; steps and each of the panel's lines: (N,), N > 0."""
    means = {name: smoothed(values) if panel.smooth else values for name, values in panel.lines.items()}
    bottom, top = axis_range(panel, list(means.values()))
    ticks = nice_ticks(bottom, top)
    bottom, top = ticks[0], ticks[-1]
    right = max(float(steps.max()), 1.0)

    def x(step: np.ndarray) -> np.ndarray:
        return step / right

    def y(value: np.ndarray) -> np.ndarray:
        return (top - value) / (top - bottom)

    axes = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{p:.2f}%" y2="{p:.2f}%"/>'
        f'<text x="-0.5em" y="{p:.2f}%" dy="0.35em" text-anchor="end">{number(tick)}</text>'
        for tick, p in ((tick, 100 * float(y(np.array(tick)))) for tick in ticks)
    ) + "".join(
        f'<line class="tick" x1="{p:.2f}%" x2="{p:.2f}%" y1="0" y2="100%"/>'
        f'<text x="{p:.2f}%" y="100%" dy="1.5em" text-anchor="middle">{number(tick)}</text>'
        for tick, p in ((tick, 100 * tick / right) for tick in nice_ticks(0, right, 5) if tick <= right)
    )
    raw, strong, dots, legend, last = "", "", "", "", []
    for i, (name, values) in enumerate(panel.lines.items()):
        color = f"c{i % COLORS}"
        if panel.smooth:
            raw += _path(f"raw {color}", x(steps), y(values), thinned(values))
        mean = means[name]
        strong += _path(f"mean {color}", x(steps), y(mean), thinned(mean))
        if len(steps) <= FEW_POINTS:
            dots += "".join(
                f'<circle class="{color}" cx="{100 * a:.2f}%" cy="{100 * b:.2f}%" r="3"/>'
                for a, b in zip(x(steps), y(values), strict=True)
                if 0 <= b <= 1
            )
        now = number(float(mean[-1])) if is_finite(mean[-1:])[0] else "not finite"
        last.append(f"{name} {now}")
        legend += f'<li><i class="{color}"></i>{escape(name)} <b>{now}</b></li>'
    label = escape(f"Line chart of {', '.join(panel.lines)} over the steps 0 to {right:,.0f}. Last: {', '.join(last)}.")
    note = _left_out(panel, steps, bottom, top)
    return (
        f'<figure class="chart"><figcaption>{escape(panel.title)}</figcaption><ul class="legend">{legend}</ul>'
        f'<svg class="plot" role="img" aria-label="{label}">{axes}'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">{raw}{strong}</svg>'
        f"{dots}</svg>{note}</figure>"
    )


def axis_range(panel: Panel, means: list[np.ndarray]) -> tuple[float, float]:
    """Of the axis: 0, all means, and all values but a few outliers, which would make the rest flat."""
    bounds = [0.0]
    for values in panel.lines.values():
        finite = values[is_finite(values)]
        if len(finite):
            bounds += list(np.percentile(finite, [1, 99] if len(finite) > MANY_VALUES else [0, 100]))
    bounds += [bound for mean in means for bound in mean[is_finite(mean)]]
    bottom, top = min(bounds), max(bounds) if panel.top is None else panel.top
    # An axis needs a length; 1e-30 is far below anything that is logged, and far above where ticks underflow.
    return (bottom, top) if top - bottom > 1e-30 else (bottom, bottom + 1.0)


def _path(name: str, x: np.ndarray, y: np.ndarray, chosen: np.ndarray) -> str:
    """A line in the square of 1000 x 1000 through the chosen points, with gaps where y is not finite."""
    data, pen = "", "M"
    for a, b in zip(x[chosen], y[chosen], strict=True):
        if abs(b) <= LARGEST:
            # Far outside is as good as anywhere outside, and takes fewer digits.
            data += f"{pen}{1000 * a:.1f} {1000 * min(max(b, -9), 9):.1f}"
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{name}" d="{data}"/>' if data else ""


def _left_out(panel: Panel, steps: np.ndarray, bottom: float, top: float) -> str:
    """What the axis does not reach, in words."""
    notes = []
    for name, values in panel.lines.items():
        finite = np.where(is_finite(values), values, 0.0)
        beyond = np.maximum(finite - top, bottom - finite)
        count = int((beyond > 0).sum())
        if count:
            worst = int(beyond.argmax())
            verb = "value lies" if count == 1 else "values lie"
            notes.append(
                f"{count:,} {verb} outside, the farthest {number(float(finite[worst]))} at step {steps[worst]:,.0f}"
                f" ({name})"
            )
    return f'<p class="note">{escape("; ".join(notes))}.</p>' if notes else ""
