"""The benchmark of training steps compares like with like, refuses what is wrong, and counts rightly."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from common import compute_in_double

# The benchmarks are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import stand_in
import startup
import step_cases
import step_report
import steps
from example_modules import EXAMPLES, load_example
from report import OK, SKIPPED, WRONG
from step_cases import Case, judge, record
from step_report import CaseResult, SideResult
from timing import Spread

import minigan as mg
from minigan import models

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
torch_steps = pytest.importorskip("torch_steps")

SYSTEMS = list(EXAMPLES)


def tiny(system: str, **changes: Any) -> Case:
    """Not square, so that height and width cannot be confused."""
    settings = load_example(system).PRESETS["small"]
    sizes = {"image_size": (32, 16), "base_channels": 4, "z_size": 7, "batch_size": 6}
    return Case(system, "small", dataclasses.replace(settings, **(sizes | changes)))


def recorded(case: Case) -> step_cases.Record:
    return record(step_cases.build(case), mg.tensor(case.real(), device="cpu"))


def theirs(case: Case, known: step_cases.Record, **keywords: Any) -> torch_steps.Step:
    return torch_steps.STEPS[case.system](case.system, case.settings, known.numbers, case.batch, **keywords)


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both sides compute in float64."""
    compute_in_double(monkeypatch)
    for name in ("uniform", "normal"):
        original = getattr(mg.random, name)
        double = lambda *args, original=original, **given: mg.tensor(original(*args, **given).numpy(), device="cpu")  # noqa: E731
        monkeypatch.setattr(mg.random, name, double)
    monkeypatch.setattr(step_cases, "loss_tolerance", lambda case, untouched: 1e-9)
    # Adam moves a bias before batch norm by the rounding of its gradient, where that is above its epsilon.
    monkeypatch.setattr(step_cases, "moves_tolerance", lambda case: 1e-3)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---- PyTorch's steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_in_float64_both_sides_do_the_same_to_nine_digits(system: str, in_double: None) -> None:
    """In the mirror, with all learning rates, noises and targets: rounding is out of the way here."""
    case = tiny(system)
    known = recorded(case)
    side = theirs(case, known)
    assert judge(case, side, torch_steps.to_torch(case.real()).double(), known).error <= 1


@pytest.mark.parametrize("system", SYSTEMS)
def test_operations_are_those_that_pytorch_counts(system: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = tiny(system)
    known = recorded(case)
    side, real = theirs(case, known), torch_steps.to_torch(case.real())
    verdict = judge(case, side, real, known)
    assert verdict.error <= 1, verdict
    with FlopCounterMode(display=False) as counter:
        side.run(real)
    assert step_cases.operations(case) == counter.get_total_flops()


def test_weights_come_back_from_the_mirror() -> None:
    case = tiny("maxpool")
    rng = np.random.default_rng(0)
    for ours, network in zip(
        (step_cases.build(case).generator, step_cases.build(case).discriminator),
        torch_steps.NETWORKS["maxpool"](case.settings),
        strict=True,
    ):
        arrays = [rng.standard_normal(p.shape).astype(np.float32) for p in ours.parameters()]
        torch_steps.load_weights(network, arrays)
        for back, array in zip(torch_steps.weights(network), arrays, strict=True):
            np.testing.assert_array_equal(back, array)


def test_everything_stays_in_channels_last_memory() -> None:
    case = tiny("cats")
    side = theirs(case, recorded(case))
    seen = []
    for network in side.networks:
        for layer in network.modules():
            layer.register_forward_hook(lambda _, __, y: seen.append(y))
    side.run(torch_steps.to_torch(case.real()))
    images = [y for y in seen if y.ndim == 4]
    assert len(images) > 30
    filters = [p for network in side.networks for p in network.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in images)


def test_a_batch_in_bf16_stays_near() -> None:
    """autocast runs on a CPU too; minigan's own side is float32 here."""
    case = dataclasses.replace(tiny("began"), precision="bf16")
    known = recorded(case)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        side = theirs(case, known, precision="bf16")
        verdict = judge(case, side, torch_steps.to_torch(case.real()), known)
        assert 1e-3 < verdict.error <= 1, verdict
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_capture_leaves_no_trace(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake of torch.cuda, whose graph does the step again: warm-up and capture have to be undone."""
    made: list[Any] = []

    class Graph:
        def __init__(self) -> None:
            made.append(self)

        def replay(self) -> None:
            for name, value in side.step(real).items():
                captured[name].copy_(value)

    captured: dict[str, Any] = {}

    @contextmanager
    def capturing(graph: Any) -> Iterator[None]:
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fake = {"Stream": lambda device: stream, "current_stream": lambda device: stream, "CUDAGraph": Graph}
    for name, value in {**fake, "stream": lambda s: nullcontext(), "graph": capturing}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setitem(torch_steps.VARIANTS, "cpu", torch_steps.VARIANTS["cuda"])
    case = tiny(system)
    known = recorded(case)
    side, real = theirs(case, known, variant="graphed"), torch_steps.to_torch(case.real())
    # In the case itself weights are loaded after the capture; here before, to see that it puts them back.
    torch_steps.load_weights(side.generator, known.before[0])
    torch_steps.load_weights(side.discriminator, known.before[1])
    before = [t.clone() for t in side._state()]
    step = side.step
    monkeypatch.setattr(side, "step", lambda real: captured.setdefault("all", step(real)) if made else step(real))
    side.capture(real)
    captured = captured.pop("all")
    monkeypatch.setattr(side, "step", step)
    for t, values in zip(side._state(), before, strict=True):
        assert torch.equal(t, values)
    verdict = judge(case, side, real, known)
    assert verdict.error <= 1, verdict
    assert len(made) == 1


# ---- the judge -------------------------------------------------------------------------------------------------------


def plant(side: torch_steps.Step, fault: str) -> None:
    if fault == "targets":
        side.one, side.high = side.high, side.one
    elif fault == "no update of D":
        side.adam_d.step = lambda: None  # type: ignore[method-assign]
    elif fault == "learning rate":
        side.adam_g.param_groups[0]["lr"] = side.rates[1] * 2
    elif fault == "last update of G":  # which no loss of these steps shows
        update, calls = side.adam_g.step, iter((True, False))
        side.adam_g.step = lambda: update() if next(calls) else None  # type: ignore[method-assign]
    elif fault == "fresh noise":
        side.load_draws = lambda arrays: side.draw()  # type: ignore[method-assign]
    elif fault == "statistics":
        side.discriminator[4].eps = 1e-2
    elif fault == "not mirrored":
        side.discriminator[0].padding = 1, 1
        torch.nn.Module.register_forward_pre_hook(
            side.discriminator[0], lambda _, x: (torch.nn.functional.pad(x[0], (0, 1, 0, 1)),)
        )
    elif fault == "nan":
        side.one[0, 0] = float("nan")


FAULTS = ("targets", "no update of D", "learning rate", "last update of G", "fresh noise")
FAULTS += ("statistics", "not mirrored", "nan")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_step_is_seen(fault: str) -> None:
    case = tiny("cats", halve_every=None)
    known = recorded(case)
    side = theirs(case, known)
    plant(side, fault)
    verdict = judge(case, side, torch_steps.to_torch(case.real()), known)
    assert not (verdict.error <= 1), verdict


def test_other_noise_than_expected_is_an_error() -> None:
    case = tiny("anime")
    side = theirs(case, recorded(case))
    with pytest.raises(ValueError, match="expected noise of shapes"):
        side.load_draws([np.zeros((6, 7), np.float32)])


# ---- the command -----------------------------------------------------------------------------------------------------

HERE = ["--here", "--quick", "--device", "cpu", "--batch-size", "2", "--seconds-per-case", "0.05"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the large products, with short samples, and with tiny networks."""
    monkeypatch.setattr(steps, "product_rate", lambda device, precision, torch: {"PyTorch": 1e11, "NumPy": 2e11})
    monkeypatch.setattr(steps, "SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(steps, "PAUSE", 0.0)
    for system in SYSTEMS:
        module = load_example(system)
        preset = dataclasses.replace(module.PRESETS["small"], image_size=(16, 16), base_channels=2)
        monkeypatch.setitem(module.PRESETS, "small", preset)
    monkeypatch.setattr(steps, "import_torch", lambda device: torch)


def test_the_command_times_both_sides_and_says_so(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "out.json"
    assert steps.main([*HERE, "--systems", "anime,maxpool", "--out", str(path)]) == 0
    said = capsys.readouterr().out
    assert "4 of 4 right and measured" in said
    [run] = json.loads(path.read_text())["runs"]
    assert [r["system"] for r in run["results"]] == ["anime", "maxpool"]
    for r in run["results"]:
        ours, eager = r["sides"]
        assert (ours["name"], eager["name"]) == ("minigan", "PyTorch eager")
        assert eager["error"] <= 1
        assert ours["seconds"]["count"] >= 3
        assert r["ratio"] == pytest.approx(eager["seconds"]["median"] / ours["seconds"]["median"])
        assert ours["images_per_second"] == pytest.approx(2 / ours["seconds"]["median"])
        assert ours["share"] == pytest.approx(r["operations"] / ours["seconds"]["median"] / 2e11)
        assert r["best_peer"] == "PyTorch eager"
    mean = np.exp(np.mean(np.log([r["ratio"] for r in run["results"]])))
    assert json.loads(path.read_text())["means"][0]["mean"] == pytest.approx(mean)
    assert {"torch", "load", "threads", "openblas_coretype"} <= set(run["environment"])


def test_a_wrong_step_is_named_not_timed_and_makes_the_command_fail(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Planted(torch_steps.Maxpool):
        def step(self, real: Any) -> Any:
            self.both = 1 - self.both
            return super().step(real)

    monkeypatch.setitem(torch_steps.STEPS, "maxpool", Planted)
    assert steps.main([*HERE, "--systems", "maxpool,anime"]) == 1
    said = capsys.readouterr().out
    assert "wrong: maxpool small 2, PyTorch eager: error of " in said
    assert "step 1: d_loss is " in said
    assert "skipped: maxpool small 2, minigan: not timed" in said
    assert "2 of 4 right and measured" in said


def test_nan_on_minigans_side_is_wrong(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Case.real
    monkeypatch.setattr(Case, "real", lambda case: real(case) * np.float32(np.nan))
    assert steps.main([*HERE, "--systems", "maxpool"]) == 1
    assert "wrong: maxpool small 2, minigan: losses that are not finite" in capsys.readouterr().out


def test_a_variant_that_cannot_be_made_is_one_line(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **given: Any) -> Any:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", refuse)
    assert steps.main([*HERE, "--systems", "maxpool", "--variants", "eager,compiled"]) == 0
    said = capsys.readouterr().out
    assert "  skipped: maxpool small 2, PyTorch compiled: RuntimeError: no compiler\n" in said + "\n"
    assert "and much more" not in said
    assert "2 of 3 right and measured" in said


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in.Gpu]:
    monkeypatch.setattr("minigan.backend._precision", "float32")
    monkeypatch.setattr(steps, "wait_for", lambda device: lambda: None)
    with stand_in.installed(stand_in.Gpu()) as gpu:
        yield gpu


def on_gpu(case: Case) -> CaseResult:
    return steps.Bench((), 0.01, 1.0, memory=False, rate=1e12).run(dataclasses.replace(case, device="cuda"))


@pytest.mark.parametrize("system", ["maxpool", "anime"])
def test_on_a_gpu_minigans_step_is_timed_as_a_graph_too(system: str, gpu: stand_in.Gpu) -> None:
    """On the stand-in for CuPy; PyTorch, which sees no GPU, is left out."""
    ours, graphed = on_gpu(tiny(system, image_size=(16, 16), base_channels=2, batch_size=2)).sides
    assert (ours.name, graphed.name) == ("minigan", "minigan graphed")
    assert (ours.status, graphed.status) == (OK, OK), graphed.reason
    assert graphed.error == 0
    assert graphed.seconds is not None
    assert sum(call.kind == "graph" for call in gpu.calls) > 2


def test_a_graph_that_computes_something_else_is_wrong(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful = lambda graph: [work() for call, work in graph.captured if "adam" not in call.name]  # noqa: E731
    monkeypatch.setattr(stand_in.Graph, "_run", forgetful)
    _, graphed = on_gpu(tiny("maxpool", image_size=(16, 16), base_channels=2, batch_size=2)).sides
    assert (graphed.status, graphed.seconds) == (WRONG, None)
    assert "those of the step itself" in graphed.reason


def test_a_step_that_cannot_be_captured_is_one_line(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigan.capture.WORDS", 1)
    ours, graphed = on_gpu(tiny("maxpool", image_size=(16, 16), base_channels=2, batch_size=2)).sides
    assert (ours.status, graphed.status) == (OK, SKIPPED)
    assert "without a CUDA graph: CaptureError: a graph has 1 numbers that change" in graphed.reason


def test_the_ratio_is_that_of_minigans_best() -> None:
    result = CaseResult("cats", "paper", 64, "tf32", 2, 10)
    for name, seconds in (("minigan", 3), ("minigan graphed", 2), ("PyTorch eager", 8), ("PyTorch graphed", 5)):
        result.sides.append(SideResult(name, seconds=Spread(seconds, seconds, seconds, seconds, 3)))
    result.compare(1e12)
    assert (result.ratio, result.best_own, result.best_peer) == (2.5, "minigan graphed", "PyTorch graphed")


def test_a_time_limit_ends_what_catches_every_exception() -> None:
    with pytest.raises(steps.TookTooLong, match="see --compile-seconds"), steps.time_limit(0.05):
        while True:
            try:
                sum(range(1000))
            except Exception:
                raise AssertionError("it must not be an Exception") from None


def test_memory_is_measured_where_a_side_is_alone() -> None:
    case = step_cases.make_case("maxpool", "small", 2, "cpu", "float32")
    found = steps.memory_in_own_process(case, "minigan")
    parameters = sum(
        p.size for one in models.build("maxpool", image_size=32, base_channels=16, z_size=64) for p in one.parameters()
    )
    assert found["before"] + 4 * 4 * parameters < found["peak"]  # weights, gradients, two moments
    assert found["peak"] < steps.resident("VmHWM")  # this process has PyTorch besides


def test_bytes_on_a_gpu_are_counted_at_their_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: list[Any] = []

    class MemoryHook:
        def __enter__(self) -> None:
            hooks.append(self)

        def __exit__(self, *_: Any) -> None:
            hooks.remove(self)

    monkeypatch.setattr(steps, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(MemoryHook=MemoryHook)))
    counter = steps.GpuBytes()
    with counter.counting():
        [hook] = hooks
        hook.malloc_postprocess(mem_size=512, size=500)
        hook.malloc_postprocess(mem_size=1024, size=1000)
        hook.free_postprocess(mem_size=1024)
        hook.malloc_postprocess(mem_size=512, size=1)
    assert (counter.now, counter.peak) == (1024, 1536)
    assert not hooks


def test_each_number_of_threads_has_its_own_process(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> Any:
        started.append({name: env.get(name) for name in steps.THREAD_VARIABLES})
        assert command[2:-3] == ["--systems", "anime", "--threads", "1,all", "--device", "cpu"]
        environment = {"threads": len(started), "load": None, "openblas_coretype": None}
        environment["product_operations_per_second"] = {"NumPy": 1e11}
        result = CaseResult("anime", "small", 2, "float32", len(started), 10)
        result.sides = [SideResult("minigan", seconds=Spread(1, 1, 1, 1, 3))]
        result.sides.append(SideResult("PyTorch eager", seconds=Spread(2, 2, 2, 2, 3)))
        result.compare(1e11)
        runs = [{"environment": environment, "results": [dataclasses.asdict(result)]}]
        Path(command[-1]).write_text(json.dumps({"runs": runs}))
        return SimpleNamespace(returncode=0)

    for name in steps.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setattr(steps.subprocess, "run", run)
    path = tmp_path / "all.json"
    assert steps.main(["--systems", "anime", "--threads", "1,all", "--device", "cpu", f"--out={path}"]) == 0
    assert started == [dict.fromkeys(steps.THREAD_VARIABLES, "1"), dict.fromkeys(steps.THREAD_VARIABLES)]
    said = capsys.readouterr()
    assert "1 threads: geometric mean 2.00, least 2.00, of 1" in said.out
    assert "2 threads: geometric mean 2.00" in said.out
    assert "warning: OPENBLAS_CORETYPE=Haswell" in said.err
    assert len(json.loads(path.read_text())["runs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "cats,dogs"], "--systems: expected some of cats"),
        (["--threads", "0"], "--threads: expected numbers from 1, or all, got 0"),
        (["--batches", "1,0"], "expected batch sizes from 1"),
        (["--batches", "1,2", "--batch-size", "4"], "expected one of them"),
        (["--precision", "tf32"], "the CPU computes in float32"),
        (["--variants", "graphed"], "--variants: expected some of eager; compiled, got graphed"),
        (["--seconds-per-case", "0"], "expected numbers above 0"),
        (["--device", "emulated"], "expected cpu or cuda"),
        (["--device", "tpu"], "--device: unknown device 'tpu'"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        steps.main(["--device", "cpu", *arguments])
    assert message in str(caught.value)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def a_run(threads: int, batches: list[int], others: float = 0.0) -> dict[str, Any]:
    results = []
    for batch in batches:
        result = CaseResult("cats", "small", batch, "float32", threads, 100, others=others)
        for name, seconds in (("minigan", 0.1), ("PyTorch eager", 0.3), ("PyTorch compiled", 0.2)):
            spread = Spread(seconds * batch, seconds * batch, seconds * batch, seconds * batch, 3)
            result.sides.append(SideResult(name, error=0.5, seconds=spread, peak_bytes=10**9, bytes_before=10**8))
        result.compare(1000)
        results.append(dataclasses.asdict(result))
    environment = {"threads": threads, "load": None, "openblas_coretype": None, "cpu": "some", "date": "2020-01-01T00"}
    return {"environment": environment | {"product_operations_per_second": {"NumPy": 1000}}, "results": results}


def test_the_ratio_is_that_of_pytorchs_best() -> None:
    [result] = a_run(1, [1])["results"]
    assert result["ratio"] == pytest.approx(2)
    assert result["best_peer"] == "PyTorch compiled"
    assert result["ratio_memory"] == 1
    assert [one["share"] for one in result["sides"]] == pytest.approx([1, 1 / 3, 1 / 2])


def test_the_table_says_when_others_worked_meanwhile() -> None:
    quiet, busy = step_report.text([a_run(2, [1])]), step_report.text([a_run(2, [1], others=0.7)])
    assert "100 ms (0 %)" in quiet
    assert "1,000 (100)" in quiet
    assert "not to be trusted" not in quiet
    assert "not to be trusted: cats small 1, 2 threads: meanwhile others kept 0.7 processors busy" in busy


@pytest.mark.parametrize("batches", [[4], [1, 2, 4]])
def test_charts(batches: list[int], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "chart.png"
    step_report.draw_chart(path, [a_run(1, batches), a_run(2, batches)])
    assert path.read_bytes().startswith(b"\x89PNG")


# ---- startup ---------------------------------------------------------------------------------------------------------


def test_startup_gives_each_empty_cache_its_own_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    caches = []

    def sample(pictures: Path, cache: Path) -> dict[str, float]:
        assert np.load(pictures).shape == (32, 32, 32, 3)
        caches.append(cache.name)
        return dict.fromkeys(startup.PARTS, 1.0 if cache.name == "warm" else 3.0)

    monkeypatch.setattr(startup, "sample_in_own_process", sample)
    path = tmp_path / "startup.json"
    assert startup.main(["--repeats", "2", "--out", str(path)]) == 0
    assert caches == ["warm", "empty-0", "warm", "empty-1", "warm"]
    said = capsys.readouterr().out
    assert "| first step | 3.00 (3.00 to 3.00) | 1.00 (1.00 to 1.00) |" in said
    assert "drawn beforehand" in said
    assert json.loads(path.read_text())["seconds"]["empty"]["import minigan"]["count"] == 2


def test_a_start_is_a_fresh_process(tmp_path: Path) -> None:
    startup.draw_pictures(tmp_path / "pictures.npy")
    found = startup.sample_in_own_process(tmp_path / "pictures.npy", tmp_path / "numba")
    assert set(found) == set(startup.PARTS)
    assert list((tmp_path / "numba").rglob("*.nbi"))
    parts = sum(found[part] for part in ("import minigan", "build", "first step"))
    assert parts < found["to the first step"] < parts + 30
    assert found["second step"] < found["first step"]
