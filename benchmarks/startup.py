"""How long minigan takes to start: `import minigan`, and the first training step of cats, preset small, on the CPU.

    python benchmarks/startup.py                  # five processes with an empty Numba cache, five with a warm one
    python benchmarks/startup.py --repeats 9 --out startup.json

Each sample is a fresh process. An empty cache is a temporary NUMBA_CACHE_DIR, so that everything is compiled; the warm
one was filled by a process before. Python's own compiled files (.pyc) are there, as after any first run. The toy
pictures are drawn beforehand and read from a file: drawing them is NOT part of these times, though a first
`python examples/dcgan_cats.py` draws them too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What a sample starts must not be loaded before it is timed: NumPy and minigan are imported inside functions.

EXAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "examples"
# In seconds; `to the first step` is all of it, from the start of the process to the end of the first step.
PARTS = ("import minigan", "build", "first step", "second step", "to the first step")
CACHES = ("empty", "warm")


def sample(pictures: Path) -> dict[str, float]:
    """In a fresh process: the seconds of all PARTS but the last, and the clock at the end of the first step."""
    clock = time.monotonic
    start = clock()
    import minigan as mg

    imported = clock()
    sys.path.insert(0, str(EXAMPLE_FOLDER))
    import dcgan_cats
    import numpy as np

    mg.manual_seed(0)
    system = dcgan_cats.Cats(dcgan_cats.PRESETS["small"], "cpu")
    real = mg.tensor(np.load(pictures).astype(np.float32) / 127.5 - 1, device="cpu")
    built = clock()
    marks = []
    for _ in range(2):
        losses = system.step(real)
        if not all(np.isfinite(float(value)) for value in losses.values()):
            raise RuntimeError(f"expected finite losses, got {losses}")
        marks.append(clock())
    seconds = imported - start, built - imported, marks[0] - built, marks[1] - marks[0]
    return {**dict(zip(PARTS, seconds, strict=False)), "clock": marks[0]}


def sample_in_own_process(pictures: Path, cache: Path) -> dict[str, float]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "MINIGAN_DEVICE": "cpu"}
    command = [sys.executable, str(Path(__file__).resolve()), "--sample", str(pictures)]
    start = time.monotonic()  # the same clock in all processes
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["to the first step"] = found.pop("clock") - start
    return found


def draw_pictures(path: Path) -> None:
    """One batch of the toy cats that the example draws."""
    sys.path.insert(0, str(EXAMPLE_FOLDER))
    import dcgan_cats
    import numpy as np

    from minigan.data import toys

    settings = dcgan_cats.PRESETS["small"]
    np.save(path, toys.draw("cats", settings.batch_size, settings.image_size[0], seed=0))


def measure(repeats: int) -> dict[str, dict[str, Any]]:
    """{"empty": {part: Spread, ...}, "warm": ...}; the two in turns."""
    from timing import Spread

    samples: dict[str, list[dict[str, float]]] = {cache: [] for cache in CACHES}
    with tempfile.TemporaryDirectory(prefix="minigan-startup-") as folder:
        root = Path(folder)
        draw_pictures(root / "pictures.npy")
        sample_in_own_process(root / "pictures.npy", root / "warm")  # fills the warm cache
        for i in range(repeats):
            for cache, path in (("empty", root / f"empty-{i}"), ("warm", root / "warm")):
                samples[cache].append(sample_in_own_process(root / "pictures.npy", path))
    return {
        cache: {part: Spread.of([one[part] for one in found]) for part in PARTS} for cache, found in samples.items()
    }


def table(found: dict[str, dict[str, Any]], repeats: int) -> str:
    lines = [
        f"| median of {repeats}, seconds (lowest quartile to highest) | empty cache | warm cache |",
        "|---|---|---|",
    ]
    for part in PARTS:
        cells = (found[cache][part] for cache in CACHES)
        lines.append(
            " | ".join([f"| {part}", *(f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})" for s in cells)]) + " |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5, metavar="N", help="processes with each cache (5)")
    options.add_argument("--out", type=Path, metavar="PATH", help="write everything to this JSON file")
    options.add_argument("--sample", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args(argv)
    if given.sample:
        print(json.dumps(sample(given.sample)))
        return 0
    if given.repeats < 1:
        raise SystemExit(f"--repeats: expected a number from 1, got {given.repeats}")
    from dataclasses import asdict

    import report

    environment = report.environment("cpu", None, None, {"repeats": given.repeats})
    found = measure(given.repeats)
    print(table(found, given.repeats))
    print("The toy pictures were drawn beforehand: their drawing is not part of it.")
    if given.out:
        seconds = {cache: {part: asdict(one) for part, one in parts.items()} for cache, parts in found.items()}
        about = "seconds in fresh processes, with an empty and a warm Numba cache; without the drawing of toy pictures"
        content = {"about": about, "environment": environment, "seconds": seconds}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
