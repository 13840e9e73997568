"""What data-parallel training costs: the sums over the ranks, how much of them backward hides, and weak scaling.

    python benchmarks/distributed.py                                  # 2 ranks with 1 thread each, on this machine
    python benchmarks/distributed.py --systems cats --seconds 10 --out distributed.json
    python benchmarks/distributed.py --model distributed.json         # the cost model again, from a file

Right before fast: every sum is compared with what it must be, and three steps of each system by all ranks, with
synchronised statistics, with the same three by one process; what is wrong is named, not timed, and makes the command
fail. Each variant of a step is then timed once a round, in random order, from a barrier to the slowest rank's end.

The model at the end is a PREDICTION for numbers of ranks that nobody has measured here.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import report as reports
from example_modules import EXAMPLES
from timing import Spread

import minigan as mg
from minigan import distributed, models
from minigan.tensor import Tensor
from minigan.training import System
from minigan.training.parallel import average_buffers, spread

BYTES = [1 << shift for shift in range(10, 27, 2)]
# How often a system's step updates its discriminator; its generator once.
DISCRIMINATOR_UPDATES = {"anime": 2}
ALONE, AT_END, OVERLAPPED, SYNCHRONISED = "no sums", "sums at the end", "sums while backward runs", "synchronised too"
# Three float32 steps: Adam turns the rounding of tiny gradients into steps, so only the losses can be compared, and
# those of the third step see what that does to the weights.
LOSS_TOLERANCE = 2e-2
# Of the model: GB/s of one direction of a rank's link, nominal rates that nobody measured here.
LINKS = (1.25, 12.5, 50.0)
RANKS = (8, 64)


# ---- on each rank ----------------------------------------------------------------------------------------------------


def time_sums(seconds: float) -> list[dict[str, Any]]:
    """Seconds of a sum over the ranks by its bytes, of one alone, from a barrier to the slowest rank's end."""
    world = distributed.world()
    found = []
    for size in BYTES:
        array = np.full(size // 4, world.rank + 1, np.float32)
        world.start(array)()
        if not np.array_equal(array, np.full(size // 4, world.size * (world.size + 1) / 2, np.float32)):
            raise RuntimeError(f"a sum of {size} bytes is wrong: got {array[:3]} ...")
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while world.most(len(samples) < 5 or (time.perf_counter() < end and len(samples) < 500)):
            samples.append(timed(lambda: world.start(array)()))  # noqa: B023 - called at once
        found.append({"bytes": size, "seconds": asdict(Spread.of(samples))})
    return found


class SumsAtEnd(distributed.GradientMeans):
    """The same sums, but none before the backward pass is over."""

    def start(self, leaf: Tensor, gradient: Tensor) -> None:
        self._waiting.append((leaf, gradient))


def timed(act: Callable[[], Any]) -> float:
    world = distributed.world()
    world.most(0)
    start = time.perf_counter()
    act()
    mine = time.perf_counter() - start
    return mine if world.comm is None else max(world.comm.allgather(mine))


def make(name: str, batch: int) -> tuple[System, np.ndarray]:
    """A system of preset small, and a batch for all ranks together."""
    module = __import__(EXAMPLES[name])
    mg.manual_seed(0)
    settings = module.PRESETS["small"]
    system = getattr(module, name.capitalize())(settings, "cpu")
    black, white = system.generator.pixels
    real = np.random.default_rng(0).uniform(black, white, (batch, *settings.image_size, 3)).astype(np.float32)
    return system, real


def first_losses(name: str, batch: int) -> list[dict[str, float]]:
    """Of three steps, with synchronised statistics."""
    world = distributed.world()
    system, real = make(name, batch)
    rows = world.share(batch)
    spread(system, world, True)
    return [world.means(one_step(system, real[rows], rows, batch)) for _ in range(3)]


def one_step(system: System, real: np.ndarray, rows: slice, batch: int) -> Any:
    with mg.random.share_of_batch(rows, batch):
        losses = system.step(Tensor(real))
    average_buffers(system, distributed.world())
    return losses


def time_steps(name: str, batch: int, variants: Sequence[str], seconds: float) -> dict[str, Any]:
    """Seconds of a step in each variant, and what it sends: bytes, and number of sums."""
    world = distributed.world()
    rows = world.share(batch)
    acts, sent = {}, {}
    original = world.start
    for variant in variants:
        system, real = make(name, batch)
        spread(system, world, variant == SYNCHRONISED)
        kind = SumsAtEnd if variant == AT_END else distributed.GradientMeans
        reducer = None if variant == ALONE else kind(world)
        for network in (system.generator, system.discriminator):  # type: ignore[attr-defined]
            for p in network.parameters():
                p.reducer = reducer

        def act(system: System = system, real: np.ndarray = real[rows], alone: bool = variant == ALONE) -> None:
            if alone:
                with mg.random.share_of_batch(rows, batch):
                    system.step(Tensor(real))
            else:
                one_step(system, real, rows, batch)

        sizes: list[int] = []

        def counted(array: np.ndarray, sizes: list[int] = sizes) -> Any:
            sizes.append(array.nbytes)
            return original(array)

        act()
        world.start = counted  # type: ignore[method-assign]
        act()
        world.start = original  # type: ignore[method-assign]
        acts[variant], sent[variant] = act, {"bytes": sum(sizes), "sums": len(sizes)}
    samples: dict[str, list[float]] = {variant: [] for variant in variants}
    order, turns = random.Random(0), list(variants)
    end = time.perf_counter() + seconds
    while world.most(len(samples[variants[0]]) < 3 or time.perf_counter() < end):
        order.shuffle(turns)
        for variant in turns:
            samples[variant].append(timed(acts[variant]))
    return {v: {**sent[v], "seconds": asdict(Spread.of(samples[v]))} for v in variants}


def work(task: dict[str, Any]) -> Any:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    if task["what"] == "sums":
        return time_sums(task["seconds"])
    if task["what"] == "losses":
        return {name: first_losses(name, batch) for name, batch in task["batches"].items()}
    variants, seconds = task["variants"], task["seconds"]
    return {name: time_steps(name, batch, variants, seconds) for name, batch in task["batches"].items()}


# ---- the whole -------------------------------------------------------------------------------------------------------


def run(ranks: int, threads: int, **task: Any) -> Any:
    """What `work` returns on rank 0 of so many ranks; with 0, of a process without a launcher."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "found.json")
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(task), "--out", str(path)]
        if ranks:
            beside = Path(sys.executable).with_name("mpiexec")
            command = [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks), *command]
        subprocess.run(command, check=True, env=os.environ | {"MINIGAN_NUM_THREADS": str(threads)})
        return json.loads(path.read_text())


def wrong_losses(many: dict[str, Any], one: dict[str, Any]) -> list[str]:
    """In words, where steps of many ranks are not those of one process."""
    found = []
    for name, steps in one.items():
        for i, (expected, got) in enumerate(zip(steps, many[name], strict=True)):
            for key, value in expected.items():
                if not abs(got[key] - value) <= LOSS_TOLERANCE * max(abs(value), 0.1):
                    found.append(f"{name}: step {i + 1}: {key}: expected {value:.6g}, got {got[key]:.6g}")
    return found


def fit(sums: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """(latency in seconds, bandwidth in bytes a second): t = latency + bytes / bandwidth, least relative squares.

    Of sums up to a bucket: no larger ones are sent.
    """
    sums = [one for one in sums if one["bytes"] <= distributed.BUCKET_BYTES]
    sizes = np.array([one["bytes"] for one in sums], float)
    times = np.array([one["seconds"]["median"] for one in sums])
    (latency, slope), *_ = np.linalg.lstsq(np.stack([1 / times, sizes / times], 1), np.ones(len(times)), rcond=None)
    return max(float(latency), float(times.min()) / 10), 1 / float(slope)


def ring(ranks: int, size: float, latency: float, bandwidth: float) -> float:
    """Seconds of a sum of `size` bytes around a ring: each rank sends 2 (n - 1) times the n-th part of it.

    latency: of one message. bandwidth: of a rank's link. Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms
    for clusters of workstations", 2009.
    """
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def hidden_share(times: dict[str, Any]) -> float | None:
    """How much of what the sums cost at the end is saved by sending them while backward runs; None: they cost nothing.

    That is less than the scatter of the steps' times.
    """
    alone, at_end, overlapped = (times[v]["seconds"] for v in (ALONE, AT_END, OVERLAPPED))
    cost = at_end["median"] - alone["median"]
    if cost <= alone["high"] - alone["low"]:
        return None
    return min(1.0, max(0.0, (at_end["median"] - overlapped["median"]) / cost))


def gradient_bytes(name: str) -> int:
    """What a step of the published system sends a rank's sums: four bytes for each parameter at each update."""
    generator, discriminator = models.build(name)
    counts = [sum(p.size for p in network.parameters()) for network in (generator, discriminator)]
    return 4 * (counts[0] + DISCRIMINATOR_UPDATES.get(name, 1) * counts[1])


def tables(found: dict[str, Any]) -> str:
    lines = ["| bytes | sum, microseconds (quartiles) | GB/s |", "|---|---|---|"]
    for one in found["sums"]:
        s = one["seconds"]
        spread_ = f"{s['low'] * 1e6:.0f} to {s['high'] * 1e6:.0f}"
        rate = one["bytes"] / s["median"] / 1e9
        lines.append(f"| {one['bytes']:,} | {s['median'] * 1e6:.0f} ({spread_}) | {rate:.2f} |")
    latency, bandwidth = fit(found["sums"])
    lines += ["", f"fitted, up to a bucket: {latency * 1e6:.0f} microseconds + bytes / {bandwidth / 1e9:.2f} GB/s", ""]
    heads = ["system, images", "MB a step", "sums", ALONE, AT_END, OVERLAPPED, SYNCHRONISED, "hidden"]
    heads += ["1 rank, 1 thread, half the images", "1 process, 2 threads, all images", "weak", "strong"]
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, times in found["steps"].items():
        medians = [times[v]["seconds"]["median"] * 1e3 for v in (ALONE, AT_END, OVERLAPPED, SYNCHRONISED)]
        half, whole = (found[key][name][ALONE]["seconds"]["median"] * 1e3 for key in ("half", "whole"))
        hidden = hidden_share(times)
        sent = times[OVERLAPPED]
        cells = [f"{name}, {found['batches'][name]}", f"{sent['bytes'] / 1e6:.1f}", str(sent["sums"])]
        cells += [f"{value:.1f} ms" for value in medians]
        cells += ["in the noise" if hidden is None else f"{hidden:.0%}", f"{half:.1f} ms", f"{whole:.1f} ms"]
        cells += [f"{half / medians[2]:.0%}", f"{whole / medians[2]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def prediction(found: dict[str, Any]) -> str:
    latency, bandwidth = fit(found["sums"])
    message = latency / 2  # of two ranks a ring sends two messages
    links = [(bandwidth / 1e9, "fitted here"), *((link, "assumed") for link in LINKS)]
    heads = [f"{ranks} ranks, {link:.3g} GB/s ({why})" for link, why in links for ranks in RANKS]
    lines = [
        "PREDICTION, not a measurement: by how many milliseconds the sums make a step of the published systems longer,",
        "from all but the last bucket hidden behind backward to nothing hidden; a bucket takes",
        f"2 (n - 1) ({message * 1e6:.0f} microseconds, fitted here, + bytes / n / link). Weak scaling is then",
        "compute / (compute + that): at least 90 % where a step computes for nine times as long.",
        "",
        f"| system | MB a step | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(heads),
    ]
    for name in found["steps"]:
        size = gradient_bytes(name)
        buckets = math.ceil(size / distributed.BUCKET_BYTES)
        cells = []
        for link, _ in links:
            for ranks in RANKS:
                ms = 1e3 * ring(ranks, size / buckets, message, link * 1e9)
                cells.append(f"{ms:.2g} to {buckets * ms:.3g}")
        lines.append(f"| {name} | {size / 1e6:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(EXAMPLES), help="of cats, simpsons, anime, maxpool, began (all)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="images of all ranks together (that of the preset)")
    parser.add_argument("--seconds", type=float, default=6.0, help="for the steps of one system (6)")
    parser.add_argument("--out", type=Path, help="where to write what was found, as JSON")
    parser.add_argument("--model", type=Path, metavar="JSON", help="measure nothing: tables and model of such a file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        found = work(json.loads(given.worker))
        if distributed.world().is_first:
            given.out.write_text(json.dumps(found))
        return 0
    if given.model:
        found = json.loads(given.model.read_text())
        print(f"{tables(found)}\n\n{prediction(found)}")
        return 0
    names = given.systems.split(",")
    if not set(names) <= EXAMPLES.keys() or given.ranks < 2:
        parser.error(
            f"expected --systems of {', '.join(EXAMPLES)} and --ranks from 2, got {given.systems}, {given.ranks}"
        )
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    sizes = {name: given.batch_size or __import__(EXAMPLES[name]).PRESETS["small"].batch_size for name in names}
    wrong = wrong_losses(
        run(given.ranks, 1, what="losses", batches=sizes), run(0, given.ranks, what="losses", batches=sizes)
    )
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    if wrong:
        return 1
    variants = [ALONE, AT_END, OVERLAPPED, SYNCHRONISED]
    half = {name: size // given.ranks for name, size in sizes.items()}
    steps: dict[str, Any] = {"what": "steps", "seconds": given.seconds}
    one: dict[str, Any] = {**steps, "variants": [ALONE]}
    found = {
        "environment": reports.environment("cpu", None, None, {"ranks": given.ranks, "seconds": given.seconds}),
        "batches": sizes,
        "sums": run(given.ranks, 1, what="sums", seconds=given.seconds / len(BYTES)),
        "steps": run(given.ranks, 1, **steps, variants=variants, batches=sizes),
        "half": run(0, 1, **one, batches=half),
        "whole": run(0, given.ranks, **one, batches=sizes),
    }
    print(f"{tables(found)}\n\n{prediction(found)}")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
