"""Plants bugs in the kernels, one at a time, and reports which ones the checks notice.

    python tests/kernels/mutate.py [FAMILY ...] [--only TEXT] [--part I/N] [--jobs N]

Each mutations_FAMILY.py here has MUTATIONS, a list of Mutation, and check(files), which passes on the kernels as they
are and must fail on each mutation in one of those files: by an AssertionError, a KernelError, a crash, or by not coming
to an end. The kernels are copied; nothing in the repository is changed.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Seconds, many times what one mutation needs: a kernel that never ends has been noticed. The kernels as they are take
# longer, as all of them are built then.
TIMEOUT, TIMEOUT_OF_ALL = 300, 1500
CAUGHT, SURVIVED, BROKEN = 10, 11, 12  # exit status of a child


@dataclass(frozen=True)
class Mutation:
    """In `file` (of kernels/), the first `old` becomes `new`. equivalent: for a survivor, why results cannot differ."""

    name: str
    file: str
    old: str
    new: str
    equivalent: str = ""


def families() -> list[str]:
    return sorted(path.stem.removeprefix("mutations_") for path in HERE.glob("mutations_*.py"))


def copy_kernels(folder: Path, mutation: Mutation | None) -> Path:
    """The kernels in a folder of their own, with the bug."""
    from minigan.kernels import source

    copied = folder / "kernels"
    shutil.copytree(source.FOLDER, copied, ignore=shutil.ignore_patterns("__pycache__", "emulator", "*.py"))
    if mutation:
        path = copied / mutation.file
        text = path.read_text()
        if mutation.old not in text or mutation.old == mutation.new:
            raise SystemExit(f"{mutation.name}: {mutation.file} has no {mutation.old!r}")
        path.write_text(text.replace(mutation.old, mutation.new, 1))
    return copied


def run_child(family: str, index: int, files: set[str]) -> int:
    """In a process of its own, since a planted bug may crash it. index: -1 for the kernels as they are.

    files: what is checked; by itself the file that has the bug.
    """
    from minigan.kernels import KernelError, source

    module = importlib.import_module(f"mutations_{family}")
    mutation = module.MUTATIONS[index] if index >= 0 else None
    with tempfile.TemporaryDirectory() as folder:
        source.FOLDER = copy_kernels(Path(folder), mutation)
        try:
            module.check({mutation.file} if mutation else files)
        except (AssertionError, KernelError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            print(lines[0].strip() if lines else "AssertionError")
            # A bug that does not even compile shows nothing.
            return BROKEN if "does not compile" in str(error) else CAUGHT
    return SURVIVED


def run_one(family: str, index: int, environment: dict[str, str], files: Iterable[str] = ()) -> tuple[int, str, float]:
    """(status, what noticed it, seconds)"""
    began = time.monotonic()
    command = [sys.executable, str(HERE / "mutate.py"), "--child", family, str(index), *files]
    limit = TIMEOUT if index >= 0 else TIMEOUT_OF_ALL
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return CAUGHT, f"not done after {limit} s", time.monotonic() - began
    seconds = time.monotonic() - began
    if done.returncode < 0:
        return CAUGHT, f"crashed, signal {-done.returncode}", seconds
    if done.returncode not in (CAUGHT, SURVIVED):
        return BROKEN, (done.stdout + done.stderr).strip(), seconds
    return done.returncode, done.stdout.strip(), seconds


def part(text: str) -> tuple[int, int]:
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, got {text!r}")
    return int(first), int(step)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("families", nargs="*", help=f"default: all of {', '.join(families())}")
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="every N-th, from the I-th on")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        family, index, *files = arguments.child
        return run_child(family, int(index), set(files))

    counts = dict.fromkeys(("caught", "survived", "equivalent", "broken"), 0)
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(arguments.jobs) as pool:
        alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        # Builds of mutated kernels are of no use to anybody else; those of the kernels as they are, the tests need.
        environment = alone | {"MINIGAN_CACHE": cache}
        for family in arguments.families or families():
            mutations = importlib.import_module(f"mutations_{family}").MUTATIONS
            first, step = arguments.part
            chosen = [i for i, mutation in enumerate(mutations) if arguments.only in mutation.name][first - 1 :: step]
            if not chosen:
                continue
            # The checks have to pass without a bug, or they prove nothing.
            status, message, seconds = run_one(family, -1, alone, sorted({mutations[i].file for i in chosen}))
            passed = status == SURVIVED
            print(f"{family}: the kernels as they are: {'passed' if passed else message} ({seconds:.0f} s)", flush=True)
            if not passed:
                return 2
            run = partial(run_one, family, environment=environment)
            for i, (status, message, seconds) in zip(chosen, pool.map(run, chosen), strict=True):
                mutation = mutations[i]
                word = {CAUGHT: "caught", SURVIVED: "survived"}.get(status, "broken")
                if status == SURVIVED and mutation.equivalent:
                    word, message = "equivalent", mutation.equivalent
                counts[word] += 1
                print(f"{word:10} {mutation.name} ({seconds:.0f} s): {message[:150]}", flush=True)
    if not any(counts.values()):
        print(f"no bug to plant: none is named {arguments.only!r}, or the part is empty")
        return 2
    share = counts["caught"] / max(1, counts["caught"] + counts["survived"])
    print(f"\n{', '.join(f'{n} {word}' for word, n in counts.items())}: {share:.1%} caught")
    return 1 if counts["survived"] or counts["broken"] else 0


if __name__ == "__main__":
    sys.modules["mutate"] = sys.modules["__main__"]  # one class Mutation, for this file and for those that import it
    sys.path.insert(0, str(HERE))
    sys.exit(main())
