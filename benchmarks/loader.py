"""minigan's loader: images a second from JPEG files on the disk, batches a second from the images.

    python benchmarks/loader.py                             # 500 files, five repeats
    python benchmarks/loader.py --count 2000 --repeats 9 --out loader.json

JPEG files of 250 x 250 pixels are made in a temporary folder, with a zip and a tgz of the same. Measured are

- the first start: the files decoded to 64 x 64 and to 128 x 128, with one thread and with all, and put into the cache;
- the second start: the images found in the cache, and each of their bytes read once;
- batches: gathered, flipped and scaled, for training on the CPU.

First all of it is judged: images against `decode` called file by file, batches against plain NumPy. What is wrong is
not timed, and makes the command fail. README.md beside this file says more.
"""

import argparse
import json
import os
import random
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import report as reports
from PIL import Image
from report import note
from timing import Spread

from minigan.cpu import thread_count
from minigan.data import Batches, decode, load_images, toys

FILE_SIDE = 250
SIDES = (64, 128)
SOURCES = ("folder", "zip", "tgz")
BATCH_SIDE = 64
BATCHES_A_SAMPLE = 50
# Drawing takes longer than all the rest, so few pictures are drawn; noise makes each file another one.
DRAWN = 16
NOISE = 4
QUALITY = 80
# A byte scaled to [-1, 1] is rounded once, by half a unit in the last place of 1: 2^-24.
BATCH_TOLERANCE = 2.0**-24


@dataclass(frozen=True)
class Case:
    """Something to time. amount: how many of `unit` a call gives. prepare: made before each call, and not timed."""

    name: str
    unit: str
    amount: int
    call: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Result:
    """seconds: of a call, which gives `amount` of `unit`; None for what is wrong, for the `reason`."""

    name: str
    unit: str
    amount: int
    seconds: Spread | None
    reason: str = ""

    def rates(self) -> tuple[float, float, float]:
        """The median, the lower and the upper quartile of what a second gives."""
        assert self.seconds is not None
        return self.amount / self.seconds.median, self.amount / self.seconds.high, self.amount / self.seconds.low


# ---- the files -------------------------------------------------------------------------------------------------------


def make_files(root: Path, count: int) -> dict[str, Path]:
    """The same JPEG files as a folder, a zip and a tgz, by the name of the source."""
    drawn = toys.draw("faces", min(count, DRAWN), FILE_SIDE, seed=0).astype(np.float32)
    folder = root / "folder"
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).standard_normal((FILE_SIDE, FILE_SIDE, 3), np.float32)
        picture = np.clip(drawn[i % len(drawn)] + NOISE * noise, 0, 255).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i:06d}.jpg", quality=QUALITY)
    paths = {"folder": folder, "zip": root / "images.zip", "tgz": root / "images.tgz"}
    with zipfile.ZipFile(paths["zip"], "w", zipfile.ZIP_DEFLATED) as zipped, tarfile.open(paths["tgz"], "w:gz") as tar:
        for file in sorted(folder.iterdir()):
            zipped.write(file, file.name)
            tar.add(file, file.name)
    return paths


# ---- judged ----------------------------------------------------------------------------------------------------------


def decoded(folder: Path, side: int) -> np.ndarray:
    """The judge of images: (N, side, side, 3), uint8, file by file."""
    return np.stack([decode(file.read_bytes(), side, side) for file in sorted(folder.iterdir())])


def load(path: Path, side: int, threads: int) -> np.ndarray:
    return load_images(path, (side, side), threads=threads, progress=False).images


def load_and_read(path: Path, side: int) -> None:
    """From the cache the images are only mapped into memory; the largest byte is known when all have been read."""
    load(path, side, 1).max()


def wrong_images(found: np.ndarray, expected: np.ndarray) -> str:
    """What is wrong with images; nothing if they are right."""
    if found.shape != expected.shape:
        return f"expected images of shape {expected.shape}, got {found.shape}"
    differ = (found != expected).any((1, 2, 3))
    return f"{differ.sum()} of {len(expected)} images are not those that decode gives" if differ.any() else ""


def wrong_batches(images: np.ndarray, batch_size: int, steps: int) -> str:
    """What is wrong with some batches of `images`; nothing if they are right."""
    batches, draws = (Batches(images, batch_size, seed=0, flip=True) for _ in range(2))
    for step in range(steps):
        indices, flips = draws.draw()
        expected = np.stack([images[i][:, ::-1] if f else images[i] for i, f in zip(indices, flips, strict=True)])
        error = np.abs(next(batches) - (expected / 127.5 - 1)).max()
        if not (error <= BATCH_TOLERANCE):
            return f"batch {step} is off by {error:.3g}, expected at most {BATCH_TOLERANCE:.3g}"
    return ""


# ---- timed -----------------------------------------------------------------------------------------------------------


class Bench:
    """All cases over one set of files; those that are wrong become results at once."""

    def __init__(self, root: Path, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size
        self.cache = root / "cache"
        self.paths = make_files(root / "files", count)
        self.cases: list[Case] = []
        self.results: list[Result] = []
        for side in SIDES:
            self._add_images(side)
        self._add_batches()

    def file_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.paths["folder"].iterdir())

    def _empty_cache(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def _add(self, case: Case, wrong: str) -> None:
        if wrong:
            self.results.append(Result(case.name, case.unit, case.amount, None, wrong))
        else:
            self.cases.append(case)

    def _add_images(self, side: int) -> None:
        expected = decoded(self.paths["folder"], side)
        for source in SOURCES:
            path = self.paths[source]
            for threads in sorted({1, thread_count()}):
                first = Case(
                    f"first start, {source}, {side} x {side}, {threads} thread{'s' if threads > 1 else ''}",
                    "images",
                    self.count,
                    partial(load, path, side, threads),
                    self._empty_cache,
                )
                self._empty_cache()
                self._add(first, wrong_images(first.call(), expected))
            # Another case may have emptied the cache: `prepare` fills it again.
            again = partial(load_and_read, path, side), partial(load, path, side, 1)
            second = Case(f"second start, {source}, {side} x {side}", "images", self.count, *again)
            self._add(second, self._wrong_second(path, side, expected))

    def _wrong_second(self, path: Path, side: int, expected: np.ndarray) -> str:
        load(path, side, 1)
        with mock.patch("minigan.data.images.decode", side_effect=AssertionError):
            try:
                found = load(path, side, 1)
            except AssertionError:
                return "the images are decoded again instead of read from the cache"
        return wrong_images(found, expected)

    def _add_batches(self) -> None:
        images = load(self.paths["folder"], BATCH_SIDE, 1)
        batches = Batches(images, self.batch_size, seed=0, flip=True)

        def some() -> None:
            for _ in range(BATCHES_A_SAMPLE):
                next(batches)

        name = f"batches, {self.batch_size} x {BATCH_SIDE} x {BATCH_SIDE} x 3, flipped"
        steps = 2 * batches.batches_per_epoch  # into a second epoch, which has another order
        self._add(Case(name, "batches", BATCHES_A_SAMPLE, some), wrong_batches(images, self.batch_size, steps))

    def run(self, repeats: int) -> None:
        """Times each case once a round, in random order, so that a slow moment of the machine meets all of them."""
        samples: dict[str, list[float]] = {case.name: [] for case in self.cases}
        order = random.Random(0)
        for i in range(repeats):
            note(f"round {i + 1} of {repeats}")
            for case in order.sample(self.cases, len(self.cases)):
                case.prepare()
                start = time.perf_counter()
                case.call()
                samples[case.name].append(time.perf_counter() - start)
        for case in self.cases:
            self.results.append(Result(case.name, case.unit, case.amount, Spread.of(samples[case.name])))


# ---- the command -----------------------------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> str:
    """A line a case, in Markdown: the median and, in brackets, the distance of the quartiles in percent of it."""
    lines = ["| | a second | spread |", "|---|---|---|"]
    for r in results:
        if r.seconds is None:
            lines.append(f"| {r.name} | wrong: {r.reason} | |")
        else:
            rate, low, high = r.rates()
            lines.append(f"| {r.name} | {float(f'{rate:.3g}'):,g} {r.unit} | {100 * (high - low) / rate:.0f} % |")
    return "\n".join(lines)


def write_json(path: Path, environment: dict[str, Any], results: Sequence[Result]) -> None:
    entries = []
    for r in results:
        entry: dict[str, Any] = asdict(r)
        if r.seconds is not None:
            entry["per_second"] = dict(zip(("median", "low", "high"), r.rates(), strict=True))
        entries.append(entry)
    about = "seconds of a call, which gives `amount` of `unit`: median, quartiles, best, and of how many samples"
    content = {"about": about, "environment": environment, "results": entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--count", type=int, default=500, metavar="N", help="how many files (500)")
    add("--repeats", type=int, default=5, metavar="N", help="how often each case is timed (5)")
    add("--batch-size", type=int, default=64, metavar="N", help="images in a batch (64)")
    add("--out", type=Path, metavar="PATH", help="write everything to this JSON file")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """0 if everything was right, 1 if something was wrong."""
    given = parser().parse_args(argv)
    if given.repeats < 1 or not 1 <= given.batch_size <= given.count:
        raise SystemExit(
            "expected --repeats from 1 and --count from --batch-size, which is from 1, got "
            f"{given.repeats}, {given.count} and {given.batch_size}"
        )
    options = {name: value for name, value in vars(given).items() if name != "out"}
    environment = reports.environment("cpu", None, None, options) | {"pillow": metadata.version("pillow")}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="minigan-loader-") as folder:
        own_cache = {"MINIGAN_CACHE": str(Path(folder) / "cache"), "MINIGAN_CACHE_GIB": "8"}
        with mock.patch.dict(os.environ, own_cache):
            note(f"making and judging {given.count:,} files")
            bench = Bench(Path(folder), given.count, given.batch_size)
            environment["mean_file_bytes"] = round(bench.file_bytes() / given.count)
            bench.run(given.repeats)
    environment["run_seconds"] = round(time.perf_counter() - start, 1)
    if given.out:
        write_json(given.out, environment, bench.results)
    wrong = sum(r.seconds is None for r in bench.results)
    print(table(bench.results))
    print(f"\n{given.count:,} files of {environment['mean_file_bytes']:,} bytes; the cache is in a temporary folder")
    print(f"{len(bench.results) - wrong} of {len(bench.results)} right, {environment['run_seconds']} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
