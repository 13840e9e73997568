"""minigan's convolutions against PyTorch's (cuDNN on a GPU, oneDNN on a CPU): every layer of the five systems.

    python benchmarks/kernels.py                              # on the GPU if there is one, else on the CPU
    python benchmarks/kernels.py --quick                      # one layer a system
    python benchmarks/kernels.py --layer "cats G3" --pass forward --rung 4 6
    python benchmarks/kernels.py --device emulated --quick    # the GPU's code without a GPU: right or wrong, no times

Each layer, in its three passes: first every competitor is judged against float64, then all of them are timed in turns.
README.md beside this file says how to read the table and why the comparison is fair.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import convolutions as conv
import report as reports
import roofline
from layers import PUBLISHED_BATCH, Problem, problems
from minigan.kernels import KernelError
from peer import Peer
from report import OK, SKIPPED, WRONG, Report, Result, choose_device, note
from timing import CudaTimer, HostTimer, Timer, Work, interleave

from minigan.backend import Array, cuda_index, cupy, is_cuda
from minigan.cpu import thread_count
from minigan.ops.conv2d_ladder import RUNGS, THREE_COLUMNS, suits_three_columns
from minigan.ops.conv2d_launch import architecture

CPU_BATCH = 2
SECONDS = {"cpu": 0.6, "cuda": 0.6}
QUICK_SECONDS = 0.2
# On a CPU the float64 judge would take longer than all the rest: so many operations for each pass.
JUDGED_OPERATIONS = 1e9
# Fast algorithms (Winograd's, FFT) lose digits that a sum of products keeps. A peer that chooses one may be off by so
# many times of what is allowed minigan; beyond that it computes something else, and there is nothing to compare with.
PEER_SLACK = 30


@dataclass
class Competitor:
    name: str
    precision: conv.Precision
    call: Callable[[], Any]
    framework: str
    peer: str | None
    result: Callable[[Any], Array]
    chosen: bool = False


@dataclass
class Bench:
    """What all cases have in common."""

    device: str
    torch: Any
    timer: Timer | None  # None on the emulator: nothing is timed
    rungs: tuple[int, ...]
    seconds: float
    ceilings: roofline.Ceilings | None = None

    @property
    def out_of_memory(self) -> tuple[type[BaseException], ...]:
        if is_cuda(self.device):
            return cupy().cuda.memory.OutOfMemoryError, self.torch.cuda.OutOfMemoryError
        return (MemoryError,)

    # ---- who takes part ----

    def competitors(
        self, problem: Problem, name: str, drawn: conv.Operands, skipped: Callable[..., None]
    ) -> list[Competitor]:
        """minigan's side and the peers; `skipped` is told who does not take part, and why."""
        g = problem.geometry
        found = []
        if self.device == "cpu":
            single = conv.PRECISIONS["float32"]
            call = conv.on_cpu(g, name, drawn)
            ours = conv.cpu_precision(g, name)
            found.append(Competitor("minigan", ours, call, "numpy", "PyTorch", lambda y: y))
            return [*found, self._peer(problem, name, single, drawn, "PyTorch")]
        needed = []
        for rung in self.rungs:
            precision = conv.PRECISIONS[RUNGS[rung].precision]
            if not RUNGS[rung].supports(architecture(self.device)):
                reason = f"runs {RUNGS[rung].architectures}, this is sm_{architecture(self.device)}"
                skipped(f"rung {rung}", precision.name, reason)
                continue
            given = conv.upload({one: conv.rounded(a, precision) for one, a in drawn.items()}, self.device)
            call = conv.on_rung(g, name, given, self.device, rung)
            peer = f"cuDNN {precision.name}" if self.torch is not None else None
            chosen = rung == conv.chosen_rung(g, name, self.device, precision.name)
            found.append(Competitor(f"rung {rung}", precision, call, "cupy", peer, lambda y: y, chosen))
            if precision not in needed:
                needed.append(precision)
        if suits_three_columns(name, g):
            for precision in needed:
                given = conv.upload({one: conv.rounded(a, precision) for one, a in drawn.items()}, self.device)
                call = conv.on_rung(g, name, given, self.device, THREE_COLUMNS)
                peer = f"cuDNN {precision.name}" if self.torch is not None else None
                found.append(Competitor("three columns", precision, call, "cupy", peer, lambda y: y, chosen=True))
        if self.torch is not None:
            found += [self._peer(problem, name, p, drawn, f"cuDNN {p.name}") for p in needed]
        return found

    def _peer(
        self, problem: Problem, name: str, precision: conv.Precision, drawn: conv.Operands, label: str
    ) -> Competitor:
        values = {one: conv.rounded(a, precision) for one, a in drawn.items()}
        given = conv.upload(values, self.device)
        side = Peer(self.torch, problem.geometry, precision, given)
        return Competitor(label, precision, side.runner(name), "torch", None, lambda y: side.result(y, name))

    # ---- one case ----

    def case(self, problem: Problem, name: str, drawn: conv.Operands) -> list[Result]:
        """All competitors on one pass of one problem: judged, and those that are right timed."""
        results: list[Result] = []
        try:
            self._case(problem, name, drawn, results)
        except self.out_of_memory as error:  # not one competitor's output, but the judge, a graph, or the peer's input
            for result in results:
                if result.status == OK and result.timing is None:
                    result.status, result.reason = SKIPPED, f"out of memory before it was timed: {_first_line(error)}"
            if not results:
                reason = f"out of memory: {_first_line(error)}; try a smaller --batch"
                results.append(Result(problem, name, "all", "float32", None, 0, 0, SKIPPED, reason))
        if is_cuda(self.device):  # the two libraries do not know of each other's memory pools
            cupy().get_default_memory_pool().free_all_blocks()
            self.torch.cuda.empty_cache()
        return results

    def _case(self, problem: Problem, name: str, drawn: conv.Operands, results: list[Result]) -> None:
        g = problem.geometry

        def entry(competitor: str, precision: str, peer: str | None = None, **more: Any) -> Result:
            itemsize = 2 if precision in ("bf16", "fp16") else 4
            sizes = conv.operations(g), conv.traffic(g, name, itemsize)
            results.append(Result(problem, name, competitor, precision, peer, *sizes, **more))
            return results[-1]

        def skipped(competitor: str, precision: str, reason: str) -> None:
            entry(competitor, precision, status=SKIPPED, reason=reason)

        judges: dict[str, conv.Judge] = {}
        works, timed = [], {}
        for one in self.competitors(problem, name, drawn, skipped):
            by_winograd = one.precision.transforms > 0
            result = entry(one.name, one.precision.name, one.peer, chosen=one.chosen, winograd=by_winograd)
            # float32 and TF32 are given the same values, so one judge serves both.
            key = one.precision.torch_dtype
            if key not in judges:
                values = {n: conv.rounded(a, one.precision) for n, a in drawn.items()}
                given = conv.upload(values, self.device)
                judges[key] = conv.judge(g, name, given, JUDGED_OPERATIONS if self.device == "cpu" else None)
            self.judge(one, judges[key], result)
            if result.status == OK and self.timer is not None:
                works.append(Work(one.name, one.call, one.framework))
                timed[one.name] = result
        judges.clear()
        if works and self.timer is not None:
            for label, timing in interleave(self.timer, works, self.seconds, random.Random(name)).items():
                timed[label].timing = timing
        for result in results:
            if self.ceilings is not None and result.timing is not None:
                result.floor = self.ceilings.floor(result.operations, result.traffic, result.precision)

    def judge(self, one: Competitor, judge: conv.Judge, result: Result) -> None:
        """Runs a competitor once with poisoned outputs, and notes whether it is right."""
        try:
            if one.framework == "torch":
                output = one.call()
            else:
                if self.device == "cpu":
                    one.call()  # Numba compiles at the first call, which must not see poison
                with conv.poisoned(self.device):
                    output = one.call()
            result.error = judge.worst(one.result(output), one.precision, one.framework == "torch")
            result.judged = judge.described
        except self.out_of_memory as error:
            result.status, result.reason = SKIPPED, f"out of memory: {_first_line(error)}"
            return
        except ValueError as error:  # a size that the kernels refuse
            result.status, result.reason = SKIPPED, str(error)
            return
        except KernelError as error:
            result.status, result.reason = WRONG, str(error)
            return
        limit = PEER_SLACK if one.framework == "torch" else 1
        if not (result.error <= limit):
            result.status = WRONG
            result.reason = f"error of {result.error:.3g} times the tolerance, expected at most {limit}"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# ---- the command -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, or emulated: correctness only")
    add("--system", nargs="+", choices=PUBLISHED_BATCH, default=list(PUBLISHED_BATCH), help="default: all five")
    add("--layer", help='one layer, "cats G3", or "G3" of each system: the third convolution of the generator')
    add("--pass", dest="passes", nargs="+", choices=conv.PASSES, default=list(conv.PASSES), help="default: all three")
    add("--rung", nargs="+", type=int, choices=RUNGS, help="rungs of the ladder, on cuda and emulated; default: all")
    add("--batch", type=int, help=f"batch size; default: as published on cuda, {CPU_BATCH} on cpu")
    add("--full-size", action="store_true", help="on the emulator: the published networks; minutes, with --batch 1")
    add("--seconds-per-case", type=float, help="how long a pass of a layer is timed, all competitors together")
    add("--json", type=Path, metavar="PATH", help="write everything to this file")
    add("--chart", type=Path, metavar="PATH", help="draw the ratios to this file (needs the extra 'plot')")
    add("--quick", action="store_true", help="the largest layer of each system only, timed briefly")
    return options


def import_torch(device: str) -> Any:
    """PyTorch, the peer; None on the emulator, where nothing is compared. Raises SystemExit with what to install."""
    if device == "emulated":
        return None
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit("the peer is PyTorch, which is not installed: pip install 'minigan[bench]'") from None
    if is_cuda(device) and not torch.cuda.is_available():
        raise SystemExit(
            f"--device {device}: CuPy sees the GPU, but this PyTorch ({torch.__version__}) does not; install one for "
            "CUDA, or pass --device cpu"
        )
    torch.set_num_threads(thread_count())
    return torch


def select(arguments: argparse.Namespace, device: str) -> list[Problem]:
    batch = arguments.batch or (CPU_BATCH if device == "cpu" else None)
    found = problems(arguments.system, batch, arguments.layer, reduced=device == "emulated" and not arguments.full_size)
    if arguments.quick:
        largest: dict[str, Problem] = {}
        for problem in sorted(found, key=lambda p: conv.operations(p.geometry)):
            for system in problem.systems:
                largest[system] = problem
        found = [p for p in found if p in largest.values()]
    return found


def check(arguments: argparse.Namespace, device: str) -> None:
    if arguments.rung and device == "cpu":
        raise SystemExit("--rung: the CPU has no ladder; expected --device cuda or emulated")
    if device == "emulated" and (arguments.chart or arguments.seconds_per_case):
        raise SystemExit("--chart, --seconds-per-case: the emulator's times say nothing about a GPU; none are taken")
    if arguments.full_size and device != "emulated":
        raise SystemExit(f"--full-size: expected --device emulated; on {device} the networks are the published ones")
    if arguments.batch is not None and arguments.batch < 1:
        raise SystemExit(f"--batch: expected a number from 1, got {arguments.batch}")
    if arguments.seconds_per_case is not None and not arguments.seconds_per_case > 0:
        raise SystemExit(f"--seconds-per-case: expected a number above 0, got {arguments.seconds_per_case}")
    if arguments.chart:
        reports.plotter()  # before the work, not after it


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every result was right, 1 if one was wrong."""
    arguments = parser().parse_args(argv)
    device = choose_device(arguments.device)
    check(arguments, device)
    torch = import_torch(device)
    timer: Timer | None = None
    context: Any = nullcontext()
    if device == "cpu":
        timer = HostTimer()
    elif is_cuda(device):
        timer = cuda_timer = CudaTimer(cupy(), torch, cuda_index(device))
        context = cuda_timer.active()
    seconds = QUICK_SECONDS if arguments.quick else SECONDS.get(device.partition(":")[0], 0.0)
    bench = Bench(device, torch, timer, tuple(arguments.rung or RUNGS), arguments.seconds_per_case or seconds)
    options = {name: value for name, value in vars(arguments).items() if name not in ("json", "chart")}
    gpu = cupy() if is_cuda(device) else None
    report = Report(reports.environment(device, torch, gpu, options | {"seconds": bench.seconds}))
    start = time.perf_counter()
    with context:
        try:
            run(bench, select(arguments, device), arguments.passes, report)
        finally:  # what is there is worth keeping, also if a later case crashes
            report.compare()
            report.environment["run_seconds"] = round(time.perf_counter() - start, 1)
            if arguments.json and report.results:
                reports.write_json(arguments.json, report)
    show(report, timed=timer is not None)
    if arguments.chart:
        reports.draw_chart(arguments.chart, report)
    return 1 if any(r.status == WRONG for r in report.results) else 0


def run(bench: Bench, cases: Sequence[Problem], passes: Sequence[str], report: Report) -> None:
    if bench.timer is not None:
        used = {"float32"} if bench.device == "cpu" else {RUNGS[rung].precision for rung in bench.rungs}
        bench.ceilings = roofline.measure(bench.timer, bench.torch, bench.device, sorted(used))
        report.environment["ceilings"] = {
            "bytes_per_second": bench.ceilings.bytes_per_second,
            "operations_per_second": bench.ceilings.operations_per_second,
        }
    for i, problem in enumerate(cases, 1):
        g = problem.geometry
        members = ", ".join(layer.name for layer in problem.layers)
        note(f"[{i}/{len(cases)}] {members}: x {g.x_shape}, w {g.w_shape}, y {g.y_shape}, stride {g.stride_h}")
        drawn = conv.draw(g, seed=i)
        for name in passes:
            report.results += bench.case(problem, name, drawn)


def show(report: Report, timed: bool) -> None:
    """The tables; the summary last."""
    e = report.environment
    print(reports.table(report.results, timed))
    print()
    print(
        f"error: the largest, in units of the tolerance: at most 1; {PEER_SLACK} for a peer, which may use Winograd's"
    )
    if any(r.winograd for r in report.results):
        print("W: minigan used Winograd's, and the tolerance is that of its transforms")
    if timed:
        ceilings = e["ceilings"]
        products = ceilings["operations_per_second"].items()
        rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in products)
        print("x peer: the peer's time over minigan's, above 1 is faster")
        if any(r.chosen for r in report.results):
            print("*: the rung that minigan takes when none is named")
        print(f"roofline of this run: copy {ceilings['bytes_per_second'] / 1e9:.3g} GB/s, matrix product {rates}")
        print()
        print(reports.means_table(report))
    else:
        print("the emulator's times say nothing about a GPU: none were taken")
    reasons = [r for r in report.results if r.status != OK]
    right = sum(r.status == OK for r in report.results)
    print(f"\n{right} of {len(report.results)} right, {len(reasons)} skipped or wrong, {e['run_seconds']} s")
    for r in reasons:
        print(f"  {r.status}: {r.problem.name} {r.pass_} {r.competitor}: {r.reason}")
    for r in report.results:
        if r.timing is not None and r.timing.note:
            print(f"  note: {r.problem.name} {r.pass_} {r.competitor}: {r.timing.note}")


if __name__ == "__main__":
    raise SystemExit(main())
