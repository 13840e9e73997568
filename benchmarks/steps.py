"""Whole training steps of the five systems: minigan's examples against PyTorch, on a CPU or a GPU.

    python benchmarks/steps.py                                # the GPU if there is one, else the CPU
    python benchmarks/steps.py --quick                        # small networks, briefly, and without torch.compile
    python benchmarks/steps.py --preset paper --batch-size 16 --systems cats,began --threads 1,all
    python benchmarks/steps.py --preset small --batches 1,2,4,8,16,32,64,128 --chart growth.png
    python benchmarks/steps.py --device cuda --precision tf32 --out steps.json --chart steps.png

Each number of threads is measured in a process of its own. In it, for each system: minigan takes two steps, PyTorch has
to come to the same losses from the same weights, noise and images, and then both are timed in turns; on a GPU minigan's
step twice, as Python runs it and as one CUDA graph ("minigan graphed"). What each side needs of memory is measured in
processes where it is alone. README.md beside this file says how to read the table.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import report as reports
import roofline
import step_report
from example_modules import EXAMPLES
from report import OK, SKIPPED, WRONG, choose_device, note
from step_cases import Case, Record, build, judge, loss_tolerance, make_case, operations, record
from step_report import CaseResult, SideResult
from timing import CudaTimer, HostTimer, Spread, Work, interleave

import minigan as mg
from minigan.backend import cuda_index, cupy, is_cuda, memory_errors
from minigan.cpu import keep_memory, thread_count
from minigan.training.graph import WARM_UP, GraphedStep

SECONDS, QUICK_SECONDS = 20.0, 0.5
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
# A sample is the mean of so many steps in a row as take about so long.
SAMPLE_SECONDS = 0.2
# The other side's threads spin for a while after its last step: they get this time to go to sleep.
PAUSE = 0.05
# Before each sample a step goes untimed, so that caches hold this side's data; not where a step takes longer than this,
# and so replaces all that is in them anyway.
UNTIMED_BELOW = 0.5
COMPILE_SECONDS = 600
MEMORY_STEPS = 3
# Rows of the square float32 matrices whose product NumPy's BLAS is measured by.
PRODUCT_ROWS = 4096
THREAD_VARIABLES = ("MINIGAN_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


# ---- sides -----------------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """A competitor that is ready: `call` does one training step, and returns its losses without waiting for them."""

    name: str
    call: Callable[[], Mapping[str, Any]]


OURS, GRAPHED = "minigan", "minigan graphed"


def minigan_side(system: Any, real: mg.Tensor) -> Side:
    return Side(OURS, lambda: system.step(real))


def graphed_side(case: Case, real: mg.Tensor, one: SideResult) -> Side | None:
    """The step as a CUDA graph, which first has to come to the losses of the step itself; None if it does not.

    `one` notes how near they are, or why there is none.
    """
    said: list[str] = []
    step = GraphedStep(build(case), case.device, said.append)
    found = _losses(step, real)
    if not step.replayed:
        one.fail(SKIPPED, "; ".join(said))
        return None
    expected = _losses(build(case).step, real)  # `build` seeds the random numbers
    tolerance = loss_tolerance(case, untouched=False)
    errors = [
        abs(losses[name] - value) / (tolerance * abs(value))
        for losses, right in zip(found, expected, strict=True)
        for name, value in right.items()
    ]
    one.error = float(np.max(errors))  # NaN is the largest
    if not (one.error <= 1):
        one.fail(WRONG, f"the losses of {len(found)} steps are {found}, those of the step itself {expected}")
        return None
    return Side(GRAPHED, lambda: step(real))


def _losses(step: Callable[[mg.Tensor], Mapping[str, Any]], real: mg.Tensor) -> list[dict[str, float]]:
    """Of so many steps that the last ones of a graph are replayed."""
    return [{name: float(value) for name, value in step(real).items() if "loss" in name} for _ in range(WARM_UP + 2)]


def torch_side(case: Case, variant: str, numbers: Mapping[str, float]) -> tuple[Any, Any]:
    """(step, real images) of PyTorch's side; its weights are its own."""
    import torch_steps

    step = torch_steps.STEPS[case.system](
        case.system, case.settings, numbers, case.batch, case.device, case.precision, variant
    )
    real = torch_steps.to_torch(case.real()).to(case.device)
    if step.graphed:
        step.capture(real)
    return step, real


def drawn_and_run(step: Any, real: Any) -> Mapping[str, Any]:
    step.draw()
    return step.run(real)


class TookTooLong(BaseException):
    """Not an Exception: torch.compile catches those, and tells another story about them."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TookTooLong inside after so many seconds; only the main thread can have it."""

    def stop(*_: Any) -> None:
        raise TookTooLong(f"more than {seconds:g} s, see --compile-seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


# ---- time ------------------------------------------------------------------------------------------------------------


def wait_for(device: str) -> Callable[[], None]:
    """A function that returns when the device has done all that it was given, by both libraries."""
    if not is_cuda(device):
        return lambda: None
    index = cuda_index(device)

    def wait() -> None:
        with cupy().cuda.Device(index):
            cupy().cuda.runtime.deviceSynchronize()

    return wait


def time_steps(
    sides: Sequence[Side], seconds: float, wait: Callable[[], None], order: random.Random
) -> dict[str, Spread]:
    """Seconds a step, by side; in each round all sides are timed, in random order."""

    def sample(side: Side, repeats: int, untimed: bool) -> float:
        time.sleep(PAUSE)
        if untimed:
            side.call()
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            side.call()
        wait()
        return (time.perf_counter() - start) / repeats

    estimates = {side.name: sample(side, 1, untimed=True) for side in sides}
    samples: dict[str, list[float]] = {side.name: [] for side in sides}
    end = time.perf_counter() + seconds
    for rounds in range(MOST_ROUNDS):
        if rounds >= LEAST_ROUNDS and time.perf_counter() >= end:
            break
        for side in order.sample(sides, len(sides)):
            estimate = estimates[side.name]
            repeats = max(1, round(SAMPLE_SECONDS / estimate))
            samples[side.name].append(sample(side, repeats, estimate < UNTIMED_BELOW))
    return {name: Spread.of(values) for name, values in samples.items()}


@contextmanager
def other_work(result: CaseResult) -> Iterator[None]:
    """Notes how many processors other processes kept busy inside; nothing where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        yield
        return

    def now() -> tuple[float, float]:
        user, nice, system, _, _, *interrupts = map(int, stat.read_text().splitlines()[0].split()[1:9])
        busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return busy - time.process_time(), time.perf_counter()

    others, start = now()
    yield
    others_after, end = now()
    result.others = max(0.0, (others_after - others) / (end - start))


# ---- memory ----------------------------------------------------------------------------------------------------------


def resident(kind: str) -> int:
    """Bytes of this process in memory, as Linux tells: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == kind:
            return int(value.split()[0]) * 1024
    raise OSError(f"expected {kind} in /proc/self/status")


class GpuBytes:
    """Counts what CuPy's memory pools hand out; `peak` is the most at any time."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        counter = self

        class Hook(cupy().cuda.MemoryHook):  # type: ignore[misc]  # no types are published for CuPy
            name = "minigan's benchmark"

            def malloc_postprocess(self, **given: Any) -> None:
                counter.add(given["mem_size"])

            def free_postprocess(self, **given: Any) -> None:
                counter.add(-given["mem_size"])

        with Hook():
            yield

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def memory_of(case: Case, side: str) -> dict[str, int]:
    """What one side needs, in this process, where nothing else ran: bytes before its first tensor, and at most.

    On a CPU those of the process, libraries and all; on a GPU those of the side's tensors and workspaces.
    """
    counter = GpuBytes()
    counting = counter.counting() if is_cuda(case.device) and side in (OURS, GRAPHED) else nullcontext()
    ours = side in (OURS, GRAPHED)
    if not ours:
        import torch

        import_torch(case.device)
    before = resident("VmRSS")
    with counting:
        if ours:
            keep_memory()
            system, images = build(case), mg.tensor(case.real(), device=case.device)
            call = partial(GraphedStep(system, case.device, note) if side == GRAPHED else system.step, images)
        else:
            step, real = torch_side(case, side, RUN_NUMBERS)

            def call() -> Mapping[str, Any]:
                return drawn_and_run(step, real)

        for _ in range(MEMORY_STEPS + (WARM_UP if side == GRAPHED else 0)):
            call()
        wait_for(case.device)()
    if not is_cuda(case.device):
        return {"before": before, "peak": resident("VmHWM")}
    peak = counter.peak if ours else torch.cuda.max_memory_allocated(cuda_index(case.device))
    return {"before": 0, "peak": peak}


# What the example of simpsons draws for a run; memory does not depend on it.
RUN_NUMBERS = {"smooth": 0.95, "noise": 0.05}


def memory_in_own_process(case: Case, side: str) -> dict[str, int]:
    """`memory_of` in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", side, "--systems", case.system]
    command += ["--preset", case.preset, "--batch-size", str(case.batch)]
    command += ["--device", case.device, "--precision", case.precision]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- one case --------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all cases have in common. rate: operations a second of a matrix product, in this run."""

    variants: tuple[str, ...]
    seconds: float
    compile_seconds: float
    memory: bool
    rate: float
    results: list[CaseResult] = field(default_factory=list)

    def run(self, case: Case) -> CaseResult:
        result = CaseResult(case.system, case.preset, case.batch, case.precision, thread_count(), operations(case))
        self.results.append(result)
        try:
            self._run(case, result)
        except self.out_of_memory() as error:
            result.sides = [SideResult("minigan", SKIPPED, f"{first_line(error)}; try a smaller --batch-size")]
        result.compare(self.rate)
        return result

    @staticmethod
    def out_of_memory() -> tuple[type[BaseException], ...]:
        import torch

        return (*memory_errors(), torch.cuda.OutOfMemoryError)

    def _run(self, case: Case, result: CaseResult) -> None:
        real = mg.tensor(case.real(), device=case.device)
        system = build(case)
        known = record(system, real)
        ours = SideResult("minigan")
        result.sides.append(ours)
        sides = [minigan_side(system, real)]
        if not all(np.isfinite(value) for losses in known.losses for value in losses.values()):
            ours.fail(WRONG, f"losses that are not finite: {known.losses}")
            return
        if is_cuda(case.device):
            one = SideResult(GRAPHED)
            result.sides.append(one)
            graphed = graphed_side(case, real, one)
            if graphed is not None:
                sides.append(graphed)
        for variant in self.variants:
            one = SideResult(f"PyTorch {variant}")
            result.sides.append(one)
            step_and_real = self._judged(case, variant, known, one)
            if one.status == OK:
                step, images = step_and_real
                sides.append(Side(one.name, partial(drawn_and_run, step, images)))
            elif variant == "eager" and one.status == WRONG:
                # Both sides do something else, and nobody knows which of them is right.
                ours.fail(SKIPPED, "not timed: PyTorch's step does something else")
                return
        by_name = {one.name: one for one in result.sides}
        with other_work(result):
            times = time_steps(sides, self.seconds, wait_for(case.device), random.Random(case.name))
        for name, spread in times.items():
            by_name[name].seconds = spread
        for side in sides:
            last = {name: float(value) for name, value in side.call().items() if "loss" in name}
            if not all(np.isfinite(value) for value in last.values()):
                by_name[side.name].fail(WRONG, f"after the timing the losses are {last}")
        if self.memory:
            self._measure_memory(case, by_name)

    def _judged(self, case: Case, variant: str, known: Record, one: SideResult) -> tuple[Any, Any]:
        """PyTorch's side; whether it is right is noted in `one`."""
        special = variant != "eager"
        try:
            with time_limit(self.compile_seconds) if special else nullcontext():
                step, real = torch_side(case, variant, known.numbers)
                verdict = judge(case, step, real, known)
        except (Exception, TookTooLong) as error:
            if not special:
                raise
            # torch.compile and captures fail in many ways (no compiler, an operation, time): one line says which.
            one.fail(SKIPPED, first_line(error))
            return None, None
        one.error = verdict.error
        if not (verdict.error <= 1):
            one.fail(WRONG, f"error of {verdict.error:.3g} times the tolerance: {verdict.worst}")
        return step, real

    def _measure_memory(self, case: Case, by_name: Mapping[str, SideResult]) -> None:
        for name, one in by_name.items():
            if one.status == OK:
                found = memory_in_own_process(case, name.removeprefix("PyTorch "))
                one.peak_bytes, one.bytes_before = found["peak"], found["before"]


def product_rate(device: str, precision: str, torch: Any) -> dict[str, float]:
    """The most operations a second of a large matrix product: by PyTorch, and on a CPU by NumPy's BLAS too."""
    if is_cuda(device):
        timer = CudaTimer(cupy(), torch, cuda_index(device))
        with timer.active():
            return {"PyTorch": roofline.measure(timer, torch, device, [precision]).operations_per_second[precision]}
    host = HostTimer()
    rates = {"PyTorch": roofline.measure(host, torch, device, ["float32"]).operations_per_second["float32"]}
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((PRODUCT_ROWS, PRODUCT_ROWS), np.float32) for _ in "ab")
    out = np.empty_like(a)
    spread = interleave(host, [Work("product", lambda: np.matmul(a, b, out=out))], 0.5)["product"]
    best = min(one.best for one in (spread.cold, spread.warm) if one is not None)
    return rates | {"NumPy": 2 * PRODUCT_ROWS**3 / best}


# ---- the command -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = options.add_argument
    add("--systems", type=words, default=list(EXAMPLES), metavar="A,B", help="default: all five")
    add("--preset", choices=("paper", "small"), help="default: paper on cuda, small on cpu")
    add("--batch-size", type=int, metavar="N", help="default: the preset's")
    add("--batches", type=numbers, metavar="1,2,4", help="several batch sizes: how the cost grows")
    add("--threads", type=words, default=["all"], metavar="1,all", help="of the CPU, each in its own process (all)")
    add("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--precision", choices=("float32", "tf32", "bf16"), help="default: tf32 on cuda, float32 on cpu")
    add("--variants", type=words, metavar="A,B", help="PyTorch's: eager, compiled; on cuda graphed as well")
    add("--seconds-per-case", type=float, metavar="S", help=f"all sides together ({SECONDS:g}; quick {QUICK_SECONDS})")
    add("--compile-seconds", type=float, default=COMPILE_SECONDS, metavar="S", help="at most, for a variant (600)")
    add("--memory", action=argparse.BooleanOptionalAction, help="measure peak memory; default: with one batch size")
    add("--out", type=Path, metavar="PATH", help="write everything to this JSON file")
    add("--chart", type=Path, metavar="PATH", help="draw ratios, or growth, to this file (needs the extra 'plot')")
    add("--quick", action="store_true", help="preset small, timed briefly, no torch.compile, no memory")
    add("--here", action="store_true", help="measure in this process, with the threads that it has")
    add("--memory-of", metavar="SIDE", help=argparse.SUPPRESS)
    return options


def words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    return [int(part) for part in words(text)]


def complete(given: argparse.Namespace) -> None:
    """Fills in defaults that depend on the device; raises SystemExit for what makes no sense."""
    given.device = choose_device(given.device)
    if given.device == "emulated":
        raise SystemExit("--device emulated: its times say nothing about a GPU; expected cpu or cuda")
    on_gpu = is_cuda(given.device)
    given.preset = given.preset or ("paper" if on_gpu and not given.quick else "small")
    given.precision = given.precision or ("tf32" if on_gpu else "float32")
    if not on_gpu and given.precision != "float32":
        raise SystemExit(f"--precision: the CPU computes in float32, got {given.precision}")
    if on_gpu:
        try:
            mg.set_matmul_precision(given.precision)
        except ValueError as error:  # one that minigan does not have
            raise SystemExit(f"--precision: {error}") from None
    known = ("eager", "graphed", "compiled", "compiled, graphed") if on_gpu else ("eager", "compiled")
    if given.variants is None:
        given.variants = [one for one in known if not (given.quick and "compiled" in one)]
    else:  # "compiled+graphed" on the command line, where a comma separates
        given.variants = [one.replace("+", ", ") for one in given.variants]
    for name, values, expected in (("systems", given.systems, EXAMPLES), ("variants", given.variants, known)):
        if not values or not set(values) <= set(expected):
            raise SystemExit(f"--{name}: expected some of {'; '.join(expected)}, got {', '.join(values) or 'none'}")
    if not given.threads or not all(one == "all" or (one.isdecimal() and int(one)) for one in given.threads):
        raise SystemExit(f"--threads: expected numbers from 1, or all, got {','.join(given.threads)}")
    if on_gpu and given.threads != ["all"]:
        raise SystemExit("--threads: only for the CPU")
    batches = [given.batch_size] if given.batches is None else given.batches
    if (given.batches is not None and given.batch_size is not None) or not batches:
        raise SystemExit("--batches, --batch-size: expected one of them, with at least one number")
    if not all(one is None or one >= 1 for one in batches):
        raise SystemExit(f"expected batch sizes from 1, got {batches}")
    given.batches = batches
    if given.memory is None:
        given.memory = len(batches) == 1 and not given.quick
    if given.seconds_per_case is None:
        given.seconds_per_case = QUICK_SECONDS if given.quick else SECONDS
    if not (given.seconds_per_case > 0 and given.compile_seconds > 0):
        raise SystemExit("--seconds-per-case, --compile-seconds: expected numbers above 0")
    if given.chart:
        reports.plotter()  # before the work, not after it


def import_torch(device: str) -> Any:
    """PyTorch with as many threads as minigan. Raises SystemExit with what to install."""
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit("the peer is PyTorch, which is not installed: pip install 'minigan[bench]'") from None
    if is_cuda(device):
        if not torch.cuda.is_available():
            raise SystemExit(f"--device {device}: this PyTorch ({torch.__version__}) sees no GPU; install one for CUDA")
        torch.cuda.set_device(cuda_index(device))
    torch.set_num_threads(thread_count())
    return torch


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All cases in this process: the environment and the results, as plain values."""
    torch = import_torch(given.device)
    options = {name: value for name, value in vars(given).items() if name not in ("out", "chart", "memory_of")}
    gpu = cupy() if is_cuda(given.device) else None
    environment = reports.environment(given.device, torch, gpu, options)
    environment["openblas_coretype"] = os.environ.get("OPENBLAS_CORETYPE")
    keep_memory()  # as minigan's training does; PyTorch has the good of it, too
    start = time.perf_counter()
    rates = product_rate(given.device, given.precision, torch)
    environment["product_operations_per_second"] = rates
    bench = Bench(
        tuple(given.variants), given.seconds_per_case, given.compile_seconds, given.memory, max(rates.values())
    )
    cases = [
        make_case(system, given.preset, batch, given.device, given.precision)
        for system in given.systems
        for batch in given.batches
    ]
    for i, case in enumerate(cases, 1):
        note(f"[{i}/{len(cases)}] {case.name}, {thread_count()} threads")
        result = bench.run(case)
        for one in result.sides:
            if one.reason:
                note(f"    {one.name}: {one.status}: {one.reason}")
    environment["run_seconds"] = round(time.perf_counter() - start, 1)
    return {"environment": environment, "results": [asdict(one) for one in bench.results]}


def measure_in_own_process(argv: Sequence[str], threads: str) -> dict[str, Any]:
    """`measure` with so many threads: libraries read their number when they are loaded."""
    environment = dict(os.environ)
    if threads != "all":
        environment |= dict.fromkeys(THREAD_VARIABLES, threads)
    with tempfile.TemporaryDirectory(prefix="minigan-steps-") as folder:
        path = Path(folder) / "out.json"
        command = [sys.executable, str(Path(__file__).resolve()), *argv, "--here", "--out", str(path)]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
        if not path.exists():
            raise SystemExit(f"the process with {threads} threads failed with exit code {done.returncode}")
        return json.loads(path.read_text())["runs"][0]


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every result was right, 1 if one was wrong."""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = parser().parse_args(argv)
    complete(given)
    if given.memory_of:
        [system], [batch] = given.systems, given.batches
        case = make_case(system, given.preset, batch, given.device, given.precision)
        print(json.dumps(memory_of(case, given.memory_of)))
        return 0
    if os.environ.get("OPENBLAS_CORETYPE"):
        note(
            f"warning: OPENBLAS_CORETYPE={os.environ['OPENBLAS_CORETYPE']} chooses NumPy's BLAS kernels by hand; "
            "minigan's times are not those that others see"
        )
    if given.here:
        runs = [measure(given)]
    else:
        # The chart is drawn here, of all of them.
        plain = without_paths(argv)
        runs = [measure_in_own_process(plain, threads) for threads in given.threads]
    if given.out:
        step_report.write_json(given.out, runs)
    print(step_report.text(runs))
    if given.chart:
        step_report.draw_chart(given.chart, runs)
    return 1 if step_report.is_wrong(runs) else 0


def without_paths(argv: Sequence[str]) -> list[str]:
    """The command line without --out and --chart."""
    kept: list[str] = []
    skip = False
    for one in argv:
        if skip:
            skip = False
        elif one in ("--out", "--chart"):
            skip = True
        elif not one.startswith(("--out=", "--chart=")):
            kept.append(one)
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
