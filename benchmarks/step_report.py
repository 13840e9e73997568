"""What `steps.py` found: the table, the means, the JSON file and the chart.

A run is what one process measured: {"environment": ..., "results": [a CaseResult as plain values, ...]}.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import OK, WRONG, geometric_mean, plotter
from timing import Spread

Run = Mapping[str, Any]
# More processors than this kept busy by others, and the times describe the operating system.
BUSY = 0.1


@dataclass
class SideResult:
    """One competitor in one case.

    seconds: a step. error: the largest, in units of the tolerance; None for minigan, which the others are compared
    with. share: of the matrix product's rate. peak_bytes: of memory; bytes_before: of that before its first tensor.
    """

    name: str
    status: str = OK
    reason: str = ""
    error: float | None = None
    seconds: Spread | None = None
    images_per_second: float | None = None
    share: float | None = None
    peak_bytes: int | None = None
    bytes_before: int | None = None

    def fail(self, status: str, reason: str) -> None:
        self.status, self.reason, self.seconds = status, reason, None


@dataclass
class CaseResult:
    """All competitors in one case.

    ratio: the best of PyTorch's median times over the best of minigan's; above 1, minigan is faster. ratio_memory: the
    peaks of these two. others: how many processors other processes kept busy during the timing.
    """

    system: str
    preset: str
    batch: int
    precision: str
    threads: int
    operations: int
    sides: list[SideResult] = field(default_factory=list)
    ratio: float | None = None
    best_peer: str | None = None
    best_own: str | None = None
    ratio_memory: float | None = None
    others: float | None = None

    def compare(self, rate: float) -> None:
        """Fills in what follows from the times. rate: operations a second of a matrix product."""
        timed: list[tuple[float, SideResult]] = []
        for one in self.sides:
            if one.error is not None and not one.error < float("inf"):
                one.error = None  # JSON knows no NaN; the reason says it
            if one.seconds is not None:
                one.images_per_second = self.batch / one.seconds.median
                one.share = self.operations / rate / one.seconds.median
                timed.append((one.seconds.median, one))
        own = [pair for pair in timed if pair[1].name.startswith("minigan")]
        peers = [pair for pair in timed if not pair[1].name.startswith("minigan")]
        if not own or not peers:
            return
        (our_seconds, ours), (seconds, best) = (min(pairs, key=lambda pair: pair[0]) for pairs in (own, peers))
        self.ratio, self.best_peer, self.best_own = seconds / our_seconds, best.name, ours.name
        if best.peak_bytes and ours.peak_bytes:
            self.ratio_memory = best.peak_bytes / ours.peak_bytes


def all_results(runs: Sequence[Run]) -> Iterator[Mapping[str, Any]]:
    for run in runs:
        yield from run["results"]


def means(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The geometric mean of the ratios over the systems, for each number of threads and, if several, batch size."""
    found = []
    for run in runs:
        ratios: dict[int | None, list[float]] = {}
        one_each = len({r["system"] for r in run["results"]}) == len(run["results"])
        for r in run["results"]:
            if r["ratio"] is not None:
                ratios.setdefault(None if one_each else r["batch"], []).append(r["ratio"])
        for batch, values in ratios.items():
            mean = geometric_mean(values)
            threads = run["environment"]["threads"]
            found.append({"threads": threads, "batch": batch, "mean": mean, "least": min(values), "count": len(values)})
    return found


# ---- text ------------------------------------------------------------------------------------------------------------

HEADER = (
    "case",
    "threads",
    "side",
    "error",
    "a step (spread)",
    "images/s",
    "of product",
    "peak MB (at start)",
    "x minigan",
)


def text(runs: Sequence[Run]) -> str:
    """The table; then the means, the ceilings, and what was not measured and why."""
    rows: list[Sequence[str]] = [HEADER]
    reasons = []
    for r in all_results(runs):
        ours = next((one["seconds"] for one in r["sides"] if one["name"] == "minigan"), None)
        if r["others"] is not None and r["others"] > BUSY:
            reasons.append(
                f"not to be trusted: {_case(r)}, {r['threads']} threads: meanwhile others kept {r['others']:.1f} "
                "processors busy, and threads that wait for each other then wait for the operating system"
            )
        for one in r["sides"]:
            rows.append(_row(r, one, ours))
            if one["reason"]:
                reasons.append(f"{one['status']}: {_case(r)}, {one['name']}: {one['reason']}")
    lines = [_columns(rows), ""]
    lines += [
        "error: the largest, in units of the tolerance: at most 1",
        "of product: the step's operations a second, of a matrix product's; x minigan: the time over minigan's",
    ]
    for run in runs:
        e = run["environment"]
        rates = ", ".join(f"{who} {rate / 1e12:.3g}" for who, rate in e["product_operations_per_second"].items())
        lines.append(f"matrix product, {e['threads']} threads: {rates} TFLOP/s; load at the start {_load(e)}")
        if e["openblas_coretype"]:
            lines.append(f"warning: OPENBLAS_CORETYPE was {e['openblas_coretype']}")
    for m in means(runs):
        batch = "" if m["batch"] is None else f", batch {m['batch']}"
        lines.append(
            f"PyTorch's best time over minigan's, {m['threads']} threads{batch}: geometric mean {m['mean']:.2f}, "
            f"least {m['least']:.2f}, of {m['count']}"
        )
    sides = [one for r in all_results(runs) for one in r["sides"]]
    lines.append(f"{sum(one['status'] == OK for one in sides)} of {len(sides)} right and measured")
    return "\n".join(lines + [f"  {reason}" for reason in reasons])


def _case(r: Mapping[str, Any]) -> str:
    return f"{r['system']} {r['preset']} {r['batch']}"


def _row(r: Mapping[str, Any], one: Mapping[str, Any], ours: Mapping[str, float] | None) -> list[str]:
    error = "-" if one["error"] is None else f"{one['error']:.2f}"
    row = [_case(r), str(r["threads"]), one["name"], error]
    spread = one["seconds"]
    if spread is None:
        return [*row, one["status"] if one["status"] != OK else "-", *"----"]
    around = 100 * (spread["high"] - spread["low"]) / spread["median"]
    return [
        *row,
        f"{1e3 * spread['median']:.4g} ms ({around:.0f} %)",
        f"{one['images_per_second']:.3g}",
        f"{100 * one['share']:.0f} %",
        f"{one['peak_bytes'] / 1e6:,.0f} ({one['bytes_before'] / 1e6:,.0f})" if one["peak_bytes"] else "-",
        f"{spread['median'] / ours['median']:.2f}" if ours else "-",
    ]


def _load(environment: Mapping[str, Any]) -> str:
    return f"{environment['load'][0]:.1f}" if environment["load"] else "unknown"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


# ---- JSON ------------------------------------------------------------------------------------------------------------

ABOUT = (
    "one entry of `runs` for each number of threads; seconds of a training step: median, quartiles, best, and of how "
    "many samples; error: the largest, in units of the tolerance, right if at most 1; ratio: PyTorch's best median "
    "time over minigan's best; operations: of a step, those on padding counted; share: of the larger matrix "
    "product's rate"
)


def write_json(path: Path, runs: Sequence[Run]) -> None:
    content = {"about": ABOUT, "means": means(runs), "runs": list(runs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


# ---- chart -----------------------------------------------------------------------------------------------------------


def draw_chart(path: Path, runs: Sequence[Run]) -> None:
    """The ratio of each system; or, with several batch sizes, how the time of an image changes with them."""
    pyplot = plotter()
    timed = [r for r in all_results(runs) if any(one["seconds"] for one in r["sides"])]
    if not timed:
        raise SystemExit("--chart: nothing was timed, so there is nothing to draw")
    sizes: dict[str, set[int]] = {}
    for r in timed:
        sizes.setdefault(r["system"], set()).add(r["batch"])
    growth = any(len(batches) > 1 for batches in sizes.values())
    figure = _draw_growth(pyplot, timed) if growth else _draw_ratios(pyplot, timed)
    e = runs[0]["environment"]
    machine = e.get("gpu") or e["cpu"]
    figure.suptitle(f"training steps on {machine}, {e['date'][:10]}, {timed[0]['precision']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_ratios(pyplot: Any, timed: Sequence[Mapping[str, Any]]) -> Any:
    """A bar for each system and number of threads."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    compared = [r for r in timed if r["ratio"]]
    systems = list(dict.fromkeys(_case(r) for r in compared))
    counts = list(dict.fromkeys(r["threads"] for r in compared))
    for i, threads in enumerate(counts):
        own = [r for r in compared if r["threads"] == threads]
        xs = [systems.index(_case(r)) + (i - (len(counts) - 1) / 2) * 0.8 / len(counts) for r in own]
        mean = geometric_mean(r["ratio"] for r in own)
        label = f"{threads} thread{'s' if threads > 1 else ''}, geometric mean {mean:.2f}"
        bars = axes.bar(xs, [r["ratio"] for r in own], 0.75 / len(counts), label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(systems)), systems)
    axes.set_ylabel("PyTorch's best time / minigan's")
    if compared:
        axes.legend(fontsize=8)
    return figure


def _draw_growth(pyplot: Any, timed: Sequence[Mapping[str, Any]]) -> Any:
    """A panel for each system and number of threads: milliseconds an image over the batch size, a line a side."""
    systems = list(dict.fromkeys(r["system"] for r in timed))
    counts = list(dict.fromkeys(r["threads"] for r in timed))
    size = (3.2 * len(systems) + 1, 3 * len(counts) + 0.6)
    figure, grid = pyplot.subplots(len(counts), len(systems), figsize=size, layout="constrained", squeeze=False)
    for i, threads in enumerate(counts):
        for axes, system in zip(grid[i], systems, strict=True):
            own = [r for r in timed if (r["system"], r["threads"]) == (system, threads)]
            for side in dict.fromkeys(one["name"] for r in own for one in r["sides"]):
                found = [(r["batch"], one) for r in own for one in r["sides"] if one["name"] == side]
                points = [(batch, 1e3 * one["seconds"]["median"] / batch) for batch, one in found if one["seconds"]]
                if points:
                    axes.plot(*zip(*sorted(points), strict=True), "o-", markersize=3, label=side)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
            axes.set_title(f"{system}, {threads} thread{'s' if threads > 1 else ''}", fontsize=9)
            axes.set_xlabel("batch size")
    grid[0][0].set_ylabel("milliseconds an image")
    grid[0][0].legend(fontsize=7)
    return figure


def is_wrong(runs: Sequence[Run]) -> bool:
    return any(one["status"] == WRONG for r in all_results(runs) for one in r["sides"])
