"""What to run first on a GPU: everything that needs one, in one call of less than ten minutes.

    python benchmarks/gpu_session.py                  # results/gpu-DATE-TIME/: a log a part, JSON, session.json
    python benchmarks/gpu_session.py --dry-run        # the same parts without a GPU, nothing about speed

All kernels compiled, the tests that need a GPU, the kernels in brief, training steps in TF32 and in bf16 (by Python and
as a graph), the same with MINIGAN_AUTOTUNE=1, compute-sanitizer, and ncu on the two kernels that come off worst. A part
that fails, takes too long, or whose tool is not there, is noted, and the next one runs; the end says which. The exit
status is 1 if one failed. compute-sanitizer and ncu come with the CUDA toolkit, and have to be on the PATH:

    PATH=$PATH:/usr/local/cuda/bin python benchmarks/gpu_session.py

minigan need not be installed. Where it is not, or from elsewhere than this repository, a folder with links makes what
setup.cfg maps: the package `minigan`, in which `kernels` is the folder kernels/ of the repository; PYTHONPATH names it.
By hand:

    mkdir -p /tmp/alias/minigan && ln -s $PWD/minigan/* $PWD/kernels /tmp/alias/minigan/
    PYTHONPATH=/tmp/alias python -P -m pytest -m cuda         # -P: the current folder is not searched first
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels" / "__init__.py"
SECONDS = 570.0  # for all parts together
LEAST = 5.0  # with less time left, a part is not begun
LAST_WORDS = 5.0  # for a part that took too long
OK, FAILED, SKIPPED = "ok", "failed", "skipped"
PYTHON = [sys.executable, "-P"]
# On all cores at once; the other parts find the kernels in the cache, instead of compiling them one by one.
COMPILE = "from minigan.kernel_launch import compile_all; print(compile_all(), 'compiled')"
# pytest without CuPy's memory pool, in which one array's end lies in the block of another, and nobody notices.
UNPOOLED = "import sys, cupy, pytest; cupy.cuda.set_allocator(None); raise SystemExit(pytest.main(sys.argv[1:]))"


@dataclass
class Part:
    """seconds: the most that it may take; afterwards those that it took. reason: of whatever is not `ok`."""

    name: str
    command: list[str]
    seconds: float
    status: str = SKIPPED
    reason: str = ""


def parts(folder: Path, dry_run: bool) -> list[Part]:
    """All but ncu, whose kernels follow from what was measured."""
    bench, quiet = [sys.executable, "benchmarks/kernels.py"], ["-q", "-p", "no:cacheprovider"]
    pytest = [*PYTHON, "-m", "pytest", *quiet]
    steps, tuned = [sys.executable, "benchmarks/steps.py"], ["env", "MINIGAN_AUTOTUNE=1"]
    json_out = ["--json", str(folder / "kernels.json")]
    if dry_run:
        brief = [*steps, "--quick", "--device", "cpu", "--systems", "anime", "--variants", "eager", "--batch-size", "2"]
        return [
            Part("tests", [*pytest, "tests/kernels/test_batch.py"], 120),
            Part("kernels", [*bench, "--device", "emulated", "--layer", "anime D4", *json_out], 120),
            Part("steps-tf32", [*brief, "--out", str(folder / "steps-tf32.json")], 120),
            Part("steps-bf16", [*brief, "--out", str(folder / "steps-bf16.json")], 120),
            Part("tuned-tf32", [*tuned, *brief, "--out", str(folder / "tuned-tf32.json")], 120),
            Part("tuned-bf16", [*tuned, *brief, "--out", str(folder / "tuned-bf16.json")], 120),
            Part("sanitizer", ["compute-sanitizer", *pytest, "tests/kernels/test_batch.py"], 60),
        ]
    # One of float32, then of TF32 and of bf16 that of sm_80 and that of sm_90a.
    rungs = ["--rung", "5", "6", "11", "7", "9"]
    step = [*steps, "--device", "cuda", "--systems", "cats,anime", "--variants", "eager,graphed", "--no-memory"]
    step += ["--seconds-per-case", "4"]
    checked = [*PYTHON, "-c", UNPOOLED, *quiet, "-m", "cuda", "-k", "test_on_cuda and forward"]
    checked.append("tests/kernels/test_conv2d_ladder.py")
    return [
        Part("compile", [*PYTHON, "-c", COMPILE], 90),
        # What matters most first, in case that the time does not suffice.
        Part("tests", [*pytest, "-m", "cuda", "tests/kernels", "tests/training", "tests/engine"], 110),
        Part("kernels", [*bench, "--device", "cuda", "--quick", *rungs, *json_out], 95),
        Part("steps-tf32", [*step, "--precision", "tf32", "--out", str(folder / "steps-tf32.json")], 65),
        Part("steps-bf16", [*step, "--precision", "bf16", "--out", str(folder / "steps-bf16.json")], 65),
        # The same by the fastest rungs that are right: do those of sm_90a pay in whole steps?
        Part("tuned-tf32", [*tuned, *step, "--precision", "tf32", "--out", str(folder / "tuned-tf32.json")], 50),
        Part("tuned-bf16", [*tuned, *step, "--precision", "bf16", "--out", str(folder / "tuned-bf16.json")], 50),
        Part("sanitizer", ["compute-sanitizer", "--error-exitcode", "1", *checked], 45),
    ]


def worst_kernels(path: Path, count: int = 2) -> list[dict[str, Any]]:
    """Of the rungs that minigan chooses, those whose time is the longest beside the peer's."""
    results = json.loads(path.read_text())["results"] if path.exists() else []
    timed = [one for one in results if one["timing"]]

    def key(one: Mapping[str, Any]) -> tuple[str, str, str]:
        return one["problem"]["layers"][0], one["pass"], one["precision"]

    peers = {key(one): one["timing"]["cold"]["median"] for one in timed if one["competitor"].startswith("cuDNN")}
    ours = [one for one in timed if one["chosen"] and one["competitor"].startswith("rung") and key(one) in peers]
    return sorted(ours, key=lambda one: peers[key(one)] / one["timing"]["cold"]["median"])[:count]


def profiles(folder: Path) -> list[Part]:
    """ncu on the worst kernels."""
    found = []
    for number, one in enumerate(worst_kernels(folder / "kernels.json"), 1):
        command = ["ncu", "--set", "full", "--kernel-name", f"regex:conv2d_{one['pass']}", "--launch-count", "1"]
        command += [
            "--export",
            str(folder / f"ncu-{number}"),
            sys.executable,
            "benchmarks/kernels.py",
            "--device",
            "cuda",
        ]
        command += ["--layer", one["problem"]["layers"][0], "--pass", one["pass"]]
        command += ["--rung", one["competitor"].split()[1]]
        found.append(Part(f"ncu-{number}", command, 60))
    return found or [Part("ncu", [], 0, SKIPPED, "no kernel was timed beside cuDNN's")]


def run(part: Part, folder: Path, environment: Mapping[str, str], left: float) -> None:
    """Runs a part, if its program is there; all that it says goes to its log."""
    if not part.command:
        return
    if shutil.which(part.command[0]) is None:
        part.seconds, part.reason = 0.0, f"{part.command[0]} is not on the PATH"
        return
    if left < LEAST:
        part.seconds, part.reason = 0.0, "no time was left"
        return
    limit, start = min(part.seconds, left), time.perf_counter()
    log = folder / f"{part.name}.log"
    with log.open("w") as out:
        out.write(" ".join(part.command) + "\n")
        out.flush()
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            part.status, part.reason = (OK, "") if code == 0 else (FAILED, f"exit status {code}, see {log.name}")
        except subprocess.TimeoutExpired:
            # Its own session: with all that it started. pytest, interrupted, still tells what failed so far.
            with suppress(subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGINT)
                process.wait(LAST_WORDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            part.status, part.reason = FAILED, f"not done after {limit:.0f} s, see {log.name}"
    part.seconds = round(time.perf_counter() - start, 1)


def environment_of(folder: Path) -> dict[str, str]:
    """That of the parts; with an alias of the package where it is not installed, or not from this repository."""
    found = dict(os.environ)
    ours = f"import os, minigan.kernels as k; raise SystemExit(os.path.realpath(k.__file__) != {str(KERNELS)!r})"
    installed = subprocess.run([*PYTHON, "-c", ours], cwd=ROOT, capture_output=True)
    if installed.returncode:
        package = folder / "minigan"
        package.mkdir()
        for path in (ROOT / "minigan").iterdir():
            (package / path.name).symlink_to(path)
        (package / "kernels").symlink_to(ROOT / "kernels")
        found["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [found.get("PYTHONPATH")])])
    return found


def versions() -> dict[str, Any]:
    """What the numbers depend on; null for what is not there."""

    def says(*command: str) -> str | None:
        if shutil.which(command[0]) is None:
            return None
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None

    def version(*names: str) -> str | None:
        for name in names:
            try:
                return f"{name} {metadata.version(name)}"
            except metadata.PackageNotFoundError:
                continue
        return None

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": says("git", "describe", "--always", "--dirty"),
        "gpu, driver": says("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "cuda": says("nvcc", "--version"),
        "cupy": version("cupy-cuda12x", "cupy-cuda13x", "cupy"),
        "nvrtc": version("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc"),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every part that could run did well."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--dry-run", action="store_true", help="small parts that need no GPU: does the session itself work?")
    add("--out", type=Path, metavar="FOLDER", help="default: benchmarks/results/gpu-DATE-TIME")
    add("--seconds", type=float, default=SECONDS, metavar="S", help=f"for all parts together ({SECONDS:g})")
    given = options.parse_args(argv)
    folder = (given.out or ROOT / "benchmarks/results" / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + given.seconds
    done: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="minigan-alias-") as alias:
        environment, said = environment_of(Path(alias)), versions()
        waiting = parts(folder, given.dry_run)
        while waiting:
            part = waiting.pop(0)
            print(f"{part.name} ...", flush=True)
            run(part, folder, environment, end - time.perf_counter())
            print(f"{part.name}: {part.status} ({part.seconds} s) {part.reason}", flush=True)
            done.append(part)
            if part.name == "sanitizer":
                waiting = profiles(folder)
            # After each part, so that a session that is cut off has told what it found.
            content = {"dry_run": given.dry_run, "versions": said, "parts": [asdict(one) for one in done]}
            (folder / "session.json").write_text(json.dumps(content, indent=1) + "\n")
    failed = [one.name for one in done if one.status == FAILED]
    skipped = [one.name for one in done if one.status == SKIPPED]
    print(f"{folder}: {len(done) - len(failed) - len(skipped)} parts ok; ", end="")
    print(f"failed: {', '.join(failed) or 'none'}; skipped: {', '.join(skipped) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
