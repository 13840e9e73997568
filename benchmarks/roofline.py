"""Floors in time, from bytes and operations and two ceilings of a machine: how fast it copies and multiplies matrices.

    python benchmarks/roofline.py                                     # an H200's published-size steps and layers, TF32
    python benchmarks/roofline.py --systems cats --precision bf16
    python benchmarks/roofline.py --copy 3.3e12 --product 990e12      # another machine: bytes, operations a second
    python benchmarks/roofline.py --kernels kernels.json --steps steps.json     # with the share of the floor reached

As a command: computed, nothing is measured here. The ceilings are inputs, and so is the result whose share is shown,
the JSON of kernels.py or steps.py. A layer's floor is its arithmetic or its bytes (each operand once), whichever takes
longer. A step's is the sum of its layers' passes, no result made twice, and of the bytes of all else that minigan's
step does today (launches.py counts them); launches cost nothing in it, and nothing overlaps.

As a module: `measure` finds a machine's ceilings in the run that needs them. A ceiling is the best that was seen, not
the median.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import step_cases
from convolutions import PRECISIONS
from example_modules import EXAMPLES
from timing import Timer, Work, interleave

import minigan as mg
from minigan import backend

# Bytes of the array that is copied, rows of the square matrices.
SIZES = {"cpu": (256 << 20, 2048), "cuda": (1 << 30, 8192)}


# What is taken for an H200's: bytes a second of a copy, operations a second of a matrix product.
H200_COPY = 4.3e12
H200_PRODUCT = {"tf32": 395e12, "bf16": 790e12}


@dataclass(frozen=True)
class Ceilings:
    bytes_per_second: float
    operations_per_second: dict[str, float]  # by precision

    def floor(self, operations: int, traffic: int, precision: str) -> float:
        """The seconds below which no kernel can get: its arithmetic or its bytes, whichever takes longer."""
        return max(operations / self.operations_per_second[precision], traffic / self.bytes_per_second)


def measure(timer: Timer, torch: Any, device: str, precisions: Sequence[str], seconds: float = 0.5) -> Ceilings:
    """Both ceilings by PyTorch: a copy (bytes read and written), and a product of random matrices in each precision."""
    kind = "cpu" if device == "cpu" else "cuda"
    size, rows = SIZES[kind]
    target = "cpu" if kind == "cpu" else "cuda"
    source = torch.rand(size // 4, device=target)
    copy = torch.empty_like(source)
    works = [Work("copy", lambda: copy.copy_(source), "torch")]
    for name in precisions:
        a, b = (torch.randn(rows, rows, device=target).to(getattr(torch, PRECISIONS[name].torch_dtype)) for _ in "ab")
        works.append(Work(name, _product(torch, a, b, PRECISIONS[name].allow_tf32), "torch"))
    times = interleave(timer, works, seconds)
    best = {name: (one.warm or one.cold).best for name, one in times.items()}
    return Ceilings(2 * size / best.pop("copy"), {name: 2 * rows**3 / time for name, time in best.items()})


def _product(torch: Any, a: Any, b: Any, allow_tf32: bool) -> Callable[[], Any]:
    out = torch.empty_like(a)

    def run() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        try:
            torch.mm(a, b, out=out)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run


# ---- floors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerFloor:
    """One pass of one layer, and how often a training step does it."""

    layer: str
    pass_: str
    times: int
    operations: int
    bytes: int
    seconds: float
    limited_by: str


def layer_floors(case: step_cases.Case, ceilings: Ceilings) -> list[LayerFloor]:
    """All convolutions and dense layers of a step, in each pass that it does."""
    itemsize = bytes_each(case.precision)
    found = []
    for product in step_cases.products(case):
        for name, times in product.times.items():
            if times:
                traffic = product.elements[name] * itemsize
                seconds = ceilings.floor(product.operations, traffic, case.precision)
                by = "bytes" if traffic / ceilings.bytes_per_second >= seconds else "arithmetic"
                found.append(LayerFloor(product.name, name, times, product.operations, traffic, seconds, by))
    return found


def bytes_each(precision: str) -> int:
    return 2 if PRECISIONS[precision].torch_dtype in ("bfloat16", "float16") else 4


@dataclass(frozen=True)
class StepFloor:
    """Seconds of a training step: of its layers, of the bytes of all else that minigan does; and what that counts."""

    layers: float
    rest: float
    operations: int
    rest_bytes: int
    launches: int

    @property
    def seconds(self) -> float:
        return self.layers + self.rest


def step_floor(case: step_cases.Case, ceilings: Ceilings) -> StepFloor:
    import launches

    calls = [call for call in launches.minigan_calls(case) if call.kind in launches.ON_DEVICE]
    rest = sum(call.bytes for call in calls if not is_layer(call))
    layers = sum(one.times * one.seconds for one in layer_floors(case, ceilings))
    return StepFloor(layers, rest / ceilings.bytes_per_second, step_cases.operations(case), rest, len(calls))


def is_layer(call: Any) -> bool:
    """Whether a call belongs to a convolution or a dense layer, whose floor counts it; also its workspace."""
    return call.kind == "product" or ": conv2d_" in call.name


# ---- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--systems", default=",".join(EXAMPLES), metavar="A,B", help="default: all five")
    add("--preset", choices=("paper", "small"), default="paper")
    add("--batch-size", type=int, metavar="N", help="default: the preset's")
    add("--precision", choices=tuple(PRECISIONS), default="tf32")
    add(
        "--copy",
        type=float,
        default=H200_COPY,
        metavar="BYTES",
        help=f"bytes a second, read and written ({H200_COPY:g})",
    )
    add(
        "--product", type=float, metavar="OPERATIONS", help="operations a second of a matrix product, in this precision"
    )
    add("--layers", action=argparse.BooleanOptionalAction, default=True, help="each layer, too")
    add("--kernels", type=Path, metavar="JSON", help="what kernels.py measured on that machine")
    add("--steps", type=Path, metavar="JSON", help="what steps.py measured on that machine")
    given = options.parse_args(argv)
    systems = given.systems.split(",")
    if not set(systems) <= set(EXAMPLES):
        raise SystemExit(f"--systems: expected some of {', '.join(EXAMPLES)}, got {given.systems}")
    product = given.product or H200_PRODUCT.get(given.precision)
    if product is None or not (product > 0 and given.copy > 0):
        raise SystemExit(f"--product: expected operations a second in {given.precision}, got {given.product}")
    ceilings = Ceilings(given.copy, {given.precision: product})
    # Bytes outside of the layers are float32's in any precision that only the layers know.
    mg.set_matmul_precision(given.precision if given.precision in backend.PRECISIONS else "tf32")
    kernels, steps = measured_kernels(given.kernels), measured_steps(given.steps)
    cases = [
        step_cases.make_case(system, given.preset, given.batch_size, "cuda", given.precision) for system in systems
    ]
    print(
        f"floors, computed for {given.copy / 1e12:.3g} TB/s and {product / 1e12:.4g} TFLOP/s in {given.precision}; "
        "not measured"
    )
    if given.layers:
        print(f"\n{'layer':14}{'pass':13}{'a step':>7}{'GFLOP':>9}{'MB':>9}{'floor, us':>11}  {'limit':12}reached")
        for case in cases:
            for one in layer_floors(case, ceilings):
                seconds = kernels.get((one.layer, one.pass_, case.precision, case.batch))
                print(
                    f"{one.layer:14}{one.pass_:13}{one.times:>7}{one.operations / 1e9:9.2f}{one.bytes / 1e6:9.1f}"
                    f"{one.seconds * 1e6:11.1f}  {one.limited_by:12}{reached(one.seconds, seconds)}"
                )
    print(
        f"\n{'step':11}{'batch':>6}{'GFLOP':>9}{'layers, ms':>12}{'rest, GB':>10}{'rest, ms':>10}{'floor, ms':>11}"
        f"{'launches':>10}  reached"
    )
    for case in cases:
        floor = step_floor(case, ceilings)
        seconds = steps.get((case.system, case.preset, case.batch, case.precision))
        print(
            f"{case.system:11}{case.batch:6}{floor.operations / 1e9:9.1f}{floor.layers * 1e3:12.3f}"
            f"{floor.rest_bytes / 1e9:10.2f}{floor.rest * 1e3:10.3f}{floor.seconds * 1e3:11.3f}{floor.launches:10}"
            f"  {reached(floor.seconds, seconds)}"
        )
    return 0


def reached(floor: float, seconds: float | None) -> str:
    return "-" if seconds is None else f"{floor / seconds:.0%} of {seconds * 1e6:,.1f} us"


def measured_kernels(path: Path | None) -> Mapping[tuple[str, str, str, int], float]:
    """Seconds by layer, pass, precision and batch: of minigan's own choice, with a cold cache."""
    return dict(_kernel_times(path)) if path else {}


def _kernel_times(path: Path) -> Iterator[tuple[tuple[str, str, str, int], float]]:
    for one in json.loads(path.read_text())["results"]:
        if one["timing"] and (one["chosen"] or one["competitor"] == "minigan"):
            for layer in one["problem"]["layers"]:
                key = layer, one["pass"], one["precision"], one["problem"]["geometry"]["n"]
                yield key, one["timing"]["cold"]["median"]


def measured_steps(path: Path | None) -> Mapping[tuple[str, str, int, str], float]:
    """Seconds by system, preset, batch and precision; of several runs, with and without a graph, the fastest."""
    found: dict[tuple[str, str, int, str], float] = {}
    for run in json.loads(path.read_text())["runs"] if path else ():
        for one in run["results"]:
            key = one["system"], one["preset"], one["batch"], one["precision"]
            for side in one["sides"]:
                if side["name"].startswith("minigan") and side["seconds"]:
                    found[key] = min(side["seconds"]["median"], found.get(key, float("inf")))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
