"""What a run found: the table, the geometric means, the JSON file and the chart."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from convolutions import PASSES
from layers import Problem
from timing import Spread, Timing

from minigan.backend import DeviceError, default_device, resolve_device
from minigan.cpu import thread_count

ROOT = Path(__file__).resolve().parents[1]
PASS_TITLES = {"forward": "forward", "input_grad": "input gradient", "weight_grad": "weight gradient"}

OK, WRONG, SKIPPED = "ok", "wrong", "skipped"


@dataclass
class Result:
    """One competitor on one pass of one problem.

    error: the largest, in units of the tolerance; None if it was not looked at. peer: the competitor it is compared
    with, None for a peer. chosen: minigan takes this one when none is named. winograd: it is filtering of that name,
    which has a tolerance of its own.
    """

    problem: Problem
    pass_: str
    competitor: str
    precision: str
    peer: str | None
    operations: int
    traffic: int
    status: str = OK
    reason: str = ""
    error: float | None = None
    judged: str = ""
    timing: Timing | None = None
    chosen: bool = False
    winograd: bool = False
    floor: float | None = None  # seconds, by the ceilings
    ratio: float | None = None  # the peer's time over this one's, cold: above 1 is faster than the peer
    ratio_warm: float | None = None

    def seconds(self) -> float | None:
        return None if self.timing is None else self.timing.cold.median


@dataclass
class Report:
    environment: dict[str, Any]
    results: list[Result] = field(default_factory=list)

    def compare(self) -> None:
        """Fills in the ratios, once the times are there."""
        times = {(r.problem, r.pass_, r.competitor): r.timing for r in self.results}
        for r in self.results:
            other = times.get((r.problem, r.pass_, r.peer)) if r.peer else None
            if r.timing is None or other is None:
                continue
            r.ratio = other.cold.median / r.timing.cold.median
            if other.warm and r.timing.warm:
                r.ratio_warm = other.warm.median / r.timing.warm.median


# ---- numbers ---------------------------------------------------------------------------------------------------------


def geometric_mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.exp(sum(map(math.log, found)) / len(found)) if found else None


@dataclass(frozen=True)
class Mean:
    competitor: str
    group: str
    mean: float
    warm: float | None
    count: int


def means(report: Report) -> list[Mean]:
    """Geometric means of the ratios: for each competitor by pass, by system, and in all.

    By pass and in all, each distinct problem counts once; in a system, each of its layers.
    """
    rows: list[tuple[str, Result]] = []
    for r in report.results:
        if r.ratio is None:
            continue
        for competitor in (r.competitor, *([f"as chosen, {r.precision}"] if r.chosen else [])):
            rows.append((competitor, r))
    found = []
    for competitor in dict.fromkeys(name for name, _ in rows):
        own = [r for name, r in rows if name == competitor]
        groups: dict[str, list[Result]] = {PASS_TITLES[p]: [r for r in own if r.pass_ == p] for p in PASSES}
        for system in dict.fromkeys(s for r in own for s in r.problem.systems):
            groups[system] = [r for r in own for layer in r.problem.layers if layer.system == system]
        groups["all"] = own
        for group, members in groups.items():
            mean = geometric_mean(r.ratio for r in members if r.ratio is not None)
            warm = geometric_mean(r.ratio_warm for r in members if r.ratio_warm is not None)
            if mean is not None:
                found.append(Mean(competitor, group, mean, warm, len(members)))
    return found


# ---- text ------------------------------------------------------------------------------------------------------------


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _spread(spread: Spread) -> str:
    """The median, and the distance of the quartiles in percent of it."""
    around = f"{100 * (spread.high - spread.low) / spread.median:.0f} %" if spread.count > 1 else "once"
    return f"{_time(spread.median)} ({around})"


def table(results: Sequence[Result], timed: bool) -> str:
    """One line a competitor, pass and problem."""
    header = ["layer", "pass", "competitor", "error"]
    header += ["cold (spread)", "warm (spread)", "TFLOP/s", "GB/s", "roofline", "x peer", "x warm"] if timed else []
    lines = [header]
    for r in results:
        error = "-" if r.error is None else f"{r.error:.2f}" + " W" * r.winograd
        line = [r.problem.name, r.pass_, r.competitor + (" *" if r.chosen else ""), error]
        if r.status != OK:
            line.append(f"{r.status}: {r.reason}")
        elif timed and r.timing is not None:
            seconds = r.timing.cold.median
            line += [
                _spread(r.timing.cold),
                _spread(r.timing.warm) if r.timing.warm else "-",
                f"{r.operations / seconds / 1e12:.3g}",
                f"{r.traffic / seconds / 1e9:.3g}",
                f"{100 * r.floor / seconds:.0f} %" if r.floor else "-",
                f"{r.ratio:.2f}" if r.ratio else "-",
                f"{r.ratio_warm:.2f}" if r.ratio_warm else "-",
            ]
        lines.append(line)
    return _columns(lines)


def means_table(report: Report) -> str:
    rows = [["competitor", "over", "x peer", "x warm", "of"]]
    for m in means(report):
        rows.append([m.competitor, m.group, f"{m.mean:.2f}", f"{m.warm:.2f}" if m.warm else "-", str(m.count)])
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; a row that is shorter than the first may have a long last cell."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    for row in rows:
        for i, cell in enumerate(row[:4]):
            widths[i] = max(widths[i], len(cell))
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip() for row in rows)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def write_json(path: Path, report: Report) -> None:
    """Everything, in one file: what the numbers mean, where they come from, and each of them."""
    content = {
        "about": (
            "seconds a call: cold and warm cache; ratio: the peer's time over this one's, cold; error: in units of "
            "the tolerance, right if at most 1; floor: the roofline's seconds"
        ),
        "environment": report.environment,
        "means": [asdict(m) for m in means(report)],
        "results": [_plain(r) for r in report.results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for key, value in content.items():
        if isinstance(value, list):  # one line an entry
            entries = ",\n".join(json.dumps(entry, allow_nan=False) for entry in value)
            lines.append(f"{json.dumps(key)}: [\n{entries}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, indent=1, allow_nan=False)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _plain(r: Result) -> dict[str, Any]:
    values = asdict(r)
    values["problem"] = {
        "name": r.problem.name,
        "layers": [layer.name for layer in r.problem.layers],
        "geometry": asdict(r.problem.geometry),
    }
    values["pass"] = values.pop("pass_")
    # JSON knows no NaN, and a wrong result may have one.
    if r.error is not None and not math.isfinite(r.error):
        values["error"] = str(r.error)
    return values


def environment(device: str, torch: Any, cupy: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Where the numbers come from."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "minigan": commit(),
        "cpu": cpu_name(),
        "processors": os.cpu_count(),
        "threads": thread_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": metadata.version("numba"),
        "blas": np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"],
        "options": options,
    }
    if torch is not None:
        found |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    if cupy is not None:
        index = int(device.partition(":")[2] or 0)
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        found |= {
            "gpu": properties["name"].decode(),
            "compute_capability": cupy.cuda.Device(index).compute_capability,
            "gpu_memory_bytes": properties["totalGlobalMem"],
            "l2_bytes": properties["l2CacheSize"],
            "driver": driver_version(),
            "cuda_driver_api": cupy.cuda.runtime.driverGetVersion(),
            "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
            "cupy": cupy.__version__,
            "torch_cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _output(*command: str) -> str | None:
    """What a command prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str:
    """minigan's git commit, and whether its files differ from it."""
    head = _output("git", "--no-optional-locks", "rev-parse", "HEAD")
    if head is None:
        return f"{metadata.version('minigan')}, not in a git checkout"
    changed = _output("git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return head + (" with uncommitted changes" if changed else "")


def driver_version() -> str:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else "unknown: nvidia-smi did not answer"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


# ---- chart -----------------------------------------------------------------------------------------------------------


def plotter() -> Any:
    """matplotlib.pyplot, drawing to files. Raises SystemExit with what to install."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("--chart needs matplotlib: pip install 'minigan[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_chart(path: Path, report: Report) -> None:
    """The ladder: for each rung and pass the geometric mean of the ratio to the peer, each problem as a dot.

    On a CPU, which has one way only, the ratio of each problem.
    """
    pyplot = plotter()
    compared = [r for r in report.results if r.ratio is not None]
    if not compared:
        raise ValueError("draw_chart: expected results that were compared with a peer, got none")
    competitors = list(dict.fromkeys(r.competitor for r in compared))
    ladder = len(competitors) > 1
    places = competitors if ladder else list(dict.fromkeys(r.problem.name for r in compared))
    place_of: Callable[[Result], str] = (lambda r: r.competitor) if ladder else (lambda r: r.problem.name)

    figure, axes = pyplot.subplots(figsize=(max(8.0, 0.34 * len(places) + 2), 5), layout="constrained")
    for shift, pass_ in zip((-0.25, 0.0, 0.25), PASSES, strict=True):
        own = [r for r in compared if r.pass_ == pass_]
        if not own:
            continue
        if ladder:
            xs, ys = [], []
            for i, place in enumerate(places):
                mean = geometric_mean(r.ratio for r in own if place_of(r) == place and r.ratio)
                if mean is not None:
                    xs.append(i + shift)
                    ys.append(mean)
            bars = axes.bar(xs, ys, 0.22, alpha=0.6, label=PASS_TITLES[pass_])
            colour = bars.patches[0].get_facecolor()[:3]
        else:
            colour = None
        mean = geometric_mean(r.ratio for r in own if r.ratio)
        label = None if ladder else f"{PASS_TITLES[pass_]}, geometric mean {mean:.2f}"
        xs = [places.index(place_of(r)) + shift for r in own]
        axes.plot(xs, [r.ratio for r in own], "o", markersize=3 if ladder else 5, color=colour, label=label)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    slanted: dict[str, Any] = {"rotation": 60, "ha": "right"} if len(places) > 10 else {}
    axes.set_xticks(range(len(places)), places, **slanted)
    axes.set_ylabel("speed, times the peer's (cold cache)")
    e = report.environment
    peers = ", ".join(dict.fromkeys(r.peer for r in compared if r.peer))
    machine = e.get("gpu") or f"{e['cpu']}, threads: {e['threads']}"
    axes.set_title(f"minigan's convolutions against {peers}\non {machine}, {e['date'][:10]}", fontsize=10)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def choose_device(named: str) -> str:
    """The device, said aloud. An explicit one that is not there is an error; only auto chooses."""
    try:
        if named != "auto":
            return resolve_device(named)
        chosen = default_device()
    except DeviceError as error:
        raise SystemExit(f"{'MINIGAN_DEVICE' if named == 'auto' else '--device'}: {error}") from None
    note(f"device {chosen}: {chosen.reason}")
    return str(chosen)


def note(text: str) -> None:
    """Progress, beside the table: to the error stream."""
    print(text, file=sys.stderr, flush=True)
