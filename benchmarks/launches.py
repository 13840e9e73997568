"""What a training step asks of a GPU, counted without one: launches, copies, bytes; minigan's and PyTorch's.

    python benchmarks/launches.py                               # the five systems as published
    python benchmarks/launches.py --precision bf16              # PyTorch's under autocast
    python benchmarks/launches.py --systems cats --detail       # which kernels, how often, how many bytes
    python benchmarks/launches.py --out launches.json

minigan's side runs the step on device "cuda" with a stand-in for CuPy (stand_in.py) that notes every call. PyTorch's
side runs torch_steps.py on tensors without memory and notes every operation that is dispatched; an operation that is
not a view counts as one kernel, a convolution's backward as one for each gradient. That is the least that PyTorch can
do: some operations take more (the logistic loss, sums, cuDNN's changes of layout). Bytes: each array of a call once, on
both sides, though batch norm, for one, has to read its input twice; a floor for the traffic, not a measurement of it.
"""

import argparse
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import stand_in
from example_modules import EXAMPLES
from stand_in import ON_DEVICE, Call
from step_cases import Case, build, make_case

import minigan as mg

PRECISIONS = ("float32", "tf32", "bf16")
# Operations that write an array without reading what was there.
OVERWRITES = ("fill_", "zero_", "uniform_", "normal_", "copy_")
# Operations that hand out memory, or nothing, and so launch nothing.
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "is_same_size")
# The example of simpsons draws these for a run; no count depends on them.
RUN_NUMBERS = {"smooth": 0.95, "noise": 0.05}


def minigan_calls(case: Case) -> list[Call]:
    """All calls of the fourth training step of a system; the first ones prepare what later ones reuse."""
    with stand_in.installed(stand_in.Gpu(computing=False)) as gpu:
        system, real = build(case), mg.tensor(case.real(), device=case.device)
        for _ in range(3):
            system.step(real)
        gpu.calls.clear()
        system.step(real)
        return gpu.calls


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_calls(case: Case) -> list[Call]:
    """The same of PyTorch's eager step, noise included."""
    import torch
    import torch_steps
    from torch._subclasses.fake_tensor import FakeTensorMode

    def to(module: Any, device: str, memory_format: Any) -> None:
        """nn.Module.to, which cannot change tensors without memory in place."""
        for part in module.modules():
            for one, p in part.named_parameters(recurse=False):
                if p.ndim == 4:
                    setattr(part, one, torch.nn.Parameter(p.detach().to(memory_format=memory_format)))

    with FakeTensorMode(), mock.patch.object(torch.nn.Module, "to", to):
        make = torch_steps.STEPS[case.system]
        step = make(case.system, case.settings, RUN_NUMBERS, case.batch, precision=case.precision)
        real = torch_steps.to_torch(case.real())
        for _ in range(2):
            with noted() as calls:
                step.draw()
                step.run(real)
    return calls


@contextmanager
def noted() -> Iterator[list[Call]]:
    """Inside, each of PyTorch's operations is noted."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: list[Call] = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = op(*args, **(kwargs or {}))
            calls.extend(_as_calls(op, args, kwargs or {}, result))
            return result

    with Note():
        yield calls


def _as_calls(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Iterator[Call]:
    name = op.overloadpacket.__name__
    if op.namespace != "aten" or name in FREE or op.is_view:  # "prim" asks, "profiler" notes
        return
    if name == "convolution_backward":
        gy, x, w = (_bytes(one) for one in args[:3])
        masks = args[-1]
        reads = (gy + w, x + gy, gy)
        for what, read, gradient, wanted in zip(("x", "w", "b"), reads, result, masks, strict=True):
            if wanted:
                yield Call("op", f"{name} {what}", read, _bytes(gradient))
        return
    given = [*zip(op._schema.arguments, args, strict=False)]
    given += [(a, kwargs[a.name]) for a in op._schema.arguments if a.name in kwargs]
    read = written = 0
    for argument, value in given:
        size = _bytes(value)
        changed = argument.alias_info is not None and argument.alias_info.is_write
        written += size if changed else 0
        read += 0 if changed and name in OVERWRITES else size
    returns = result if isinstance(result, (tuple, list)) else [result]
    for described, value in zip(op._schema.returns, returns, strict=False):
        written += _bytes(value) if described.alias_info is None else 0
    yield Call("op", name, read, written)


def _bytes(value: Any) -> int:
    """Of all tensors in a value; of what is broadcast, once."""
    import torch

    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    if not isinstance(value, torch.Tensor):
        return 0
    count = 1
    for length, stride in zip(value.shape, value.stride(), strict=True):
        count *= length if stride or not length else 1
    return count * value.element_size()


# ---- the command -----------------------------------------------------------------------------------------------------

SIDES: dict[str, Callable[[Case], list[Call]]] = {"minigan": minigan_calls, "PyTorch, eager": torch_calls}


def summary(calls: Sequence[Call]) -> dict[str, int]:
    kinds = Counter(call.kind for call in calls)
    launched = [call for call in calls if call.kind in (*ON_DEVICE, "op")]
    return {
        "launches": len(launched),
        "own_kernels": kinds["kernel"],
        "uploads": kinds["upload"],
        "downloads": kinds["download"],
        "bytes": sum(call.bytes for call in launched),
    }


def detail(calls: Sequence[Call]) -> list[tuple[str, int, int]]:
    """(what, how often, bytes) by name, the most bytes first."""
    names = Counter(f"{call.kind} {call.name}" for call in calls)
    sizes: Counter[str] = Counter()
    for call in calls:
        sizes[f"{call.kind} {call.name}"] += call.bytes
    return [(name, names[name], size) for name, size in sizes.most_common()]


def main(argv: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--systems", default=",".join(EXAMPLES), metavar="A,B", help="default: all five")
    add("--preset", choices=("paper", "small"), default="paper")
    add("--batch-size", type=int, metavar="N", help="default: the preset's")
    add("--precision", choices=PRECISIONS, default="tf32", help="of convolutions: it chooses minigan's kernels")
    add("--without-torch", action="store_true", help="count minigan's side only")
    add("--detail", action="store_true", help="each kernel by itself")
    add("--out", type=Path, metavar="PATH", help="write the counts to this JSON file")
    given = options.parse_args(argv)
    systems = given.systems.split(",")
    if not set(systems) <= set(EXAMPLES):
        raise SystemExit(f"--systems: expected some of {', '.join(EXAMPLES)}, got {given.systems}")
    if not given.without_torch and importlib.util.find_spec("torch") is None:
        raise SystemExit("PyTorch is not installed: pip install 'minigan[bench]', or count without it: --without-torch")
    mg.set_matmul_precision(given.precision)
    results = []
    print(f"{'system':10}{'side':18}{'launches':>9}{'own kernels':>13}{'uploads':>9}{'downloads':>11}{'GB moved':>10}")
    for system in systems:
        case = make_case(system, given.preset, given.batch_size, "cuda", given.precision)
        for side, count in SIDES.items():
            if side != "minigan" and given.without_torch:
                continue
            calls = count(case)
            found = summary(calls)
            results.append({"system": system, "batch": case.batch, "preset": given.preset, "side": side, **found})
            own = str(found["own_kernels"]) if side == "minigan" else "-"
            copies = [str(found[name]) if side == "minigan" else "-" for name in ("uploads", "downloads")]
            print(
                f"{system:10}{side:18}{found['launches']:9}{own:>13}{copies[0]:>9}{copies[1]:>11}"
                f"{found['bytes'] / 1e9:10.2f}"
            )
            if given.detail:
                for name, often, size in detail(calls):
                    print(f"{'':12}{often:5} x {name:55}{size / 1e6:12.2f} MB")
    if given.out:
        given.out.write_text(json.dumps({"precision": given.precision, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
