"""The benchmark judges rightly, times what it says, and compares like with like; its GPU part on a fake of CuPy."""

import importlib.util
import json
import random
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

# The benchmarks are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import convolutions as conv
import layers
import peer as peers
import report as reports
import stand_in
from timing import CudaTimer, HostTimer, Prepared, Spread, Timing, Work, interleave

from minigan import backend
from minigan.ops import conv2d_winograd
from minigan.ops.geometry import Geometry, convolution

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SINGLE = conv.PRECISIONS["float32"]


def load_command() -> Any:
    """benchmarks/kernels.py by its path: the name `kernels` may also be that of the folder of CUDA sources."""
    spec = importlib.util.spec_from_file_location("kernels_benchmark", BENCHMARKS / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


command = load_command()

GEOMETRIES = [
    convolution("test", (2, 8, 8, 3), (5, 5, 5, 3), 2, "same"),  # pads 1 before, 2 after
    convolution("test", (2, 9, 7, 4), (6, 4, 4, 4), 2, "same"),
    convolution("test", (3, 8, 6, 8), (2, 3, 3, 8), 2, "same"),  # pads 0 before, 1 after
    convolution("test", (1, 6, 6, 2), (3, 3, 3, 2), 1, ((3, 1), (0, 2))),  # more before than after
    convolution("test", (2, 4, 4, 7), (5, 4, 4, 7), 1, "valid"),
]


# ---- cases -----------------------------------------------------------------------------------------------------------


def test_layers_are_those_of_the_networks() -> None:
    found = {one.name: one for one in layers.layers("anime")}
    assert [one.network for one in found.values()] == ["G"] * 6 + ["D"] * 4
    first, image = found["anime G1"].geometry, found["anime D1"].geometry
    assert (first.y_shape, first.x_shape) == ((64, 1, 1, 100), (64, 4, 4, 512))
    assert found["anime G1"].transposed
    assert not found["anime G5"].transposed
    assert (image.x_shape, image.w_shape, image.y_shape) == ((64, 64, 64, 3), (64, 4, 4, 3), (64, 32, 32, 64))
    assert found["anime G6"].geometry == image  # the last layer of G transposes the first of D


def test_a_geometry_is_measured_once() -> None:
    found = layers.problems(["cats", "simpsons"], reduced=True)
    assert all(problem.systems == ("cats", "simpsons") for problem in found)
    assert sum(len(problem.layers) for problem in found) == 20
    assert len({problem.geometry for problem in found}) == len(found) == 9
    [one] = layers.problems(["cats"], layer="cats G1", reduced=True)
    assert [layer.name for layer in one.layers] == ["cats G1", "cats D5"]
    with pytest.raises(ValueError, match=r"cats D5, got 'cats G9'"):
        layers.problems(["cats"], layer="cats G9", reduced=True)


# ---- the judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", conv.PASSES)
@pytest.mark.parametrize("g", GEOMETRIES)
@pytest.mark.parametrize("precision", conv.PRECISIONS.values(), ids=lambda p: p.name)
def test_minigan_and_the_peer_are_right(g: Geometry, name: str, precision: conv.Precision) -> None:
    torch = pytest.importorskip("torch")
    values = {one: conv.rounded(a, precision) for one, a in conv.draw(g).items()}
    judge = conv.judge(g, name, values)
    assert judge.worst(conv.on_cpu(g, name, values)(), SINGLE) <= 1
    side = peers.Peer(torch, g, precision, values)
    result = side.result(side.runner(name)(), name)
    if precision.output:  # on a CPU, PyTorch also rounds partial sums to 16 bits
        assert np.linalg.norm(result - judge.exact) <= 2**-7 * np.linalg.norm(judge.exact)
    else:
        assert judge.worst(result, precision, is_peer=True) <= 1


@pytest.mark.parametrize("name", conv.PASSES)
def test_the_judge_sees_what_is_wrong(name: str) -> None:
    g = convolution("test", (6, 8, 8, 3), (5, 5, 5, 3), 2, "same")
    drawn = conv.draw(g)
    right = conv.on_cpu(g, name, drawn)()
    judge = conv.judge(g, name, drawn, conv.operations(g) / 2)
    assert judge.described in ("3 of 6 images", "2 of 5 filters")
    assert judge.worst(right, SINGLE) <= 1
    for spoilt in (right * np.float32(1.001), right + np.float32(1e-3), -right):
        assert not (judge.worst(spoilt, SINGLE) <= 1)
    one = right.copy()
    one[1, 0, 0, 0] = np.nan  # not in the judged part
    assert not (judge.worst(one, SINGLE) <= 1)
    shifted = conv.on_cpu(replace(g, top=0), name, drawn)()
    assert not (judge.worst(shifted, SINGLE) <= 1)
    with pytest.raises(ValueError, match="expected a result of shape"):
        judge.worst(right[:-1], SINGLE)


WINOGRAD = convolution("test", (5, 31, 29, 64), (90, 4, 4, 64), 2, "same")


@pytest.mark.parametrize("name", conv.PASSES)
def test_winograds_filtering_has_a_tolerance_of_its_own(name: str) -> None:
    """Where the CPU's leaf takes it, and nowhere else; what is wrong is still seen."""
    assert conv2d_winograd.suits(WINOGRAD)
    assert conv.cpu_precision(GEOMETRIES[0], name) is SINGLE
    own = conv.cpu_precision(WINOGRAD, name)
    assert own == replace(SINGLE, transforms=24 * conv.winograd_error(WINOGRAD, name)[1] * 2**-24)
    drawn = conv.draw(WINOGRAD)
    judge = conv.judge(WINOGRAD, name, drawn)
    right = conv.on_cpu(WINOGRAD, name, drawn)()
    assert judge.worst(right, own) <= 1
    size = float(judge.size.max())
    for spoilt in (right + np.float32(2e-3 * size), right * np.float32(1.01), -right):
        assert not (judge.worst(spoilt, own) <= 1)
    # One product too few, in the sum of one output.
    one = right.copy()
    one.flat[one.size // 2] -= size / judge.terms**0.5
    assert not (judge.worst(one, own) <= 1)
    one.flat[one.size // 2] = np.nan
    assert not (judge.worst(one, own) <= 1)
    # im2col does not need it, and the tolerance of plain sums is the smaller one.
    assert judge.worst(right, SINGLE) > judge.worst(right, own)


@pytest.mark.parametrize("name", conv.PASSES)
def test_the_error_of_winograds_filtering_grows_with_the_sums(name: str) -> None:
    """As the root of what is added up at a point, once that is much: channels, or images for the weight gradient."""
    few, many = (
        conv.winograd_error(replace(WINOGRAD, n=64 * times, c=2000 * times, k=2000 * times), name) for times in (1, 4)
    )
    assert many[0] / few[0] == pytest.approx(2, rel=0.02)
    assert few[0] < few[1]


def test_what_is_not_written_is_seen() -> None:
    with conv.poisoned("cpu"):
        assert np.isnan(np.empty((2, 3), np.float32)).all()
    g = GEOMETRIES[0]
    judge = conv.judge(g, "forward", conv.draw(g))
    with conv.poisoned("cpu"):
        assert not (judge.worst(np.empty(g.y_shape, np.float32), SINGLE) <= 1)


def test_a_result_that_is_rounded_to_16_bits_is_a_peers() -> None:
    g = GEOMETRIES[0]
    for name in ("bf16", "fp16"):
        precision = conv.PRECISIONS[name]
        values = {one: conv.rounded(a, precision) for one, a in conv.draw(g).items()}
        judge = conv.judge(g, "forward", values)
        result = conv.rounded(conv.on_cpu(g, "forward", values)(), precision)
        assert judge.worst(result, precision, is_peer=True) <= 1
        assert not (judge.worst(result, precision) <= 1)


def test_bf16_is_rounded_to_nearest_and_ties_to_even() -> None:
    bf16 = conv.PRECISIONS["bf16"]
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.14159], np.float32)
    expected = np.array([1.0, 1.0, 1 + 4 * 2**-8, 1 + 2**-7, -3.140625], np.float32)
    assert np.array_equal(conv.rounded(values, bf16), expected)


@pytest.mark.parametrize("precision", conv.PRECISIONS.values(), ids=lambda p: p.name)
def test_the_peers_settings_are_explicit_and_put_back(precision: conv.Precision) -> None:
    torch = pytest.importorskip("torch")

    def read() -> tuple[Any, ...]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        reduced = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
        return cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, *map(bool, reduced)

    before = read()
    with peers.settings(torch, precision):
        assert read() == (precision.name == "tf32", True, False, False, False)
    assert read() == before


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((128, 5, 64, 2, 1), (1, 0, 1)),
        ((64, 3, 32, 2, 0), (0, 0, 1)),
        ((64, 4, 32, 2, 1), (1, 0, 0)),
        ((6, 3, 6, 1, 2), (0, 2, 0)),
    ],
)
def test_padding_of_one_axis(sizes: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    assert peers.axis_padding(*sizes) == expected


# ---- timing on the host ----------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, log: list[str] | None = None) -> Work:
        def call() -> None:
            self.now += seconds
            if log is not None:
                log.append(name)

        return Work(name, call)


def test_host_timer_gives_seconds_a_call() -> None:
    clock = Clock()
    works = [clock.work("fast", 0.001), clock.work("slow", 0.25)]
    times = interleave(HostTimer(clock, 64), works, seconds=1e9, least=5)
    assert times["fast"].cold.median == pytest.approx(0.001)
    assert times["fast"].warm is not None
    assert times["fast"].warm.median == pytest.approx(0.001)  # of twenty calls
    assert times["slow"].warm is not None
    assert times["slow"].warm.median == pytest.approx(0.25)


def test_all_take_part_in_each_round_in_changing_order() -> None:
    steps: list[tuple[str, str]] = []

    def measured(kind: str, one: Prepared) -> float:
        steps.append((kind, one.note))
        return 1.0

    timer = SimpleNamespace(
        prepare=lambda work, limit: Prepared(work.call, work.call, 1, 0.1, work.name),
        cold=lambda one: measured("cold", one),
        warm=lambda one: measured("warm", one),
    )
    interleave(timer, [Work("a", list), Work("b", list)], seconds=1.0, order=random.Random(3), least=8)
    rounds = [tuple(steps[i : i + 4]) for i in range(0, 4 * 8, 4)]
    assert all(set(one) == {(kind, name) for kind in ("cold", "warm") for name in "ab"} for one in rounds)
    assert len(set(rounds)) > 3


def test_a_long_call_is_timed_once_and_says_so() -> None:
    clock = Clock()
    times = interleave(HostTimer(clock, 64), [clock.work("long", 9.0), clock.work("short", 0.1)], seconds=1.0)
    assert times["long"].cold == Spread(9.0, 9.0, 9.0, 9.0, 1)
    assert times["long"].warm is None
    assert "longer than the budget" in times["long"].note
    assert times["short"].cold.count >= 3


def test_a_spread_refuses_what_is_no_time() -> None:
    for samples in ([], [0.0], [float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="positive finite"):
            Spread.of(samples)


# ---- timing on a fake GPU --------------------------------------------------------------------------------------------


class FakeGpu:
    """What CudaTimer uses of CuPy and PyTorch, with a clock: a kernel takes 1 ms, 3 ms with a cold cache."""

    def __init__(self) -> None:
        self.now, self.warm_cache = 0.0, False
        self.log: list[str] = []
        self.recording: list[Any] | None = None
        self.allocator = "default"
        gpu = self

        class Stream:
            ptr = 4711

            def __init__(self, non_blocking: bool = False) -> None:
                assert non_blocking

            def __enter__(self) -> None:
                gpu.log.append("stream")

            def __exit__(self, *_: object) -> None: ...

            def synchronize(self) -> None: ...

            def begin_capture(self) -> None:
                assert gpu.recording is None
                gpu.recording = []

            def end_capture(self) -> Any:
                kernels, gpu.recording = gpu.recording, None
                assert kernels is not None
                return SimpleNamespace(launch=lambda stream: gpu.replay("cupy", kernels))

        class Event:
            def record(self, stream: Any) -> None:
                assert stream.ptr == 4711
                self.time = gpu.now

            def synchronize(self) -> None: ...

        class Device:
            def __init__(self, index: int) -> None:
                self.attributes = {"L2CacheSize": 1 << 20}

            def __enter__(self) -> "Device":
                return self

            def __exit__(self, *_: object) -> None: ...

        @contextmanager
        def using_allocator(allocator: str) -> Any:
            before, gpu.allocator = gpu.allocator, allocator
            yield
            gpu.allocator = before

        def flush(value: int, size: int, stream: Any) -> None:
            assert size >= 4 << 20
            gpu.log.append("flush")
            gpu.warm_cache = False

        buffer = SimpleNamespace(nbytes=256 << 20, data=SimpleNamespace(memset_async=flush))
        self.cupy = SimpleNamespace(
            empty=lambda size, dtype: buffer,
            cuda=SimpleNamespace(
                Stream=Stream,
                Event=Event,
                Device=Device,
                MemoryPool=lambda: SimpleNamespace(malloc="private"),
                using_allocator=using_allocator,
                get_elapsed_time=lambda start, stop: 1e3 * (stop.time - start.time),
            ),
        )

        class Graph:
            def replay(self) -> None:
                gpu.replay("torch", self.kernels)

        @contextmanager
        def graph(one: Any) -> Any:
            gpu.recording = []
            yield
            one.kernels, gpu.recording = gpu.recording, None

        def stream_of(pointer: int, device: int) -> int:
            assert pointer == Stream.ptr
            return pointer

        self.torch = SimpleNamespace(
            cuda=SimpleNamespace(
                CUDAGraph=Graph,
                graph=graph,
                ExternalStream=stream_of,
                device=lambda index: nullcontext(),
                stream=lambda stream: nullcontext(),
            )
        )

    def kernel(self) -> None:
        self.log.append(f"call {self.allocator}" + (" captured" if self.recording is not None else ""))
        if self.recording is not None:
            self.recording.append(1)
            return
        self.now += 0.001 if self.warm_cache else 0.003
        self.warm_cache = True

    def replay(self, framework: str, kernels: list[Any]) -> None:
        self.log.append(f"replay {framework} {len(kernels)}")
        for _ in kernels:
            self.now += 0.001 if self.warm_cache else 0.003
            self.warm_cache = True


@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_cuda_timer_replays_graphs_and_flushes(framework: str) -> None:
    gpu = FakeGpu()
    timer = CudaTimer(gpu.cupy, gpu.torch)
    prepared = timer.prepare(Work("one", gpu.kernel, framework), limit=1.0)
    captured = [line for line in gpu.log if line.endswith("captured")]
    assert prepared.repeats == 2  # of 1 ms each, for 2 ms
    assert len(captured) == 1 + 2
    assert all(line.startswith("call private" if framework == "cupy" else "call default") for line in captured)
    gpu.log.clear()
    assert timer.cold(prepared) == pytest.approx(0.003)
    assert gpu.log == ["stream", "flush", f"replay {framework} 1"]
    gpu.log.clear()
    assert timer.warm(prepared) == pytest.approx(0.001)
    assert gpu.log == ["stream", f"replay {framework} 1", f"replay {framework} 2"]


def test_a_work_that_cannot_be_captured_is_timed_without_a_graph_and_says_so() -> None:
    gpu = FakeGpu()

    def call() -> None:
        if gpu.recording is not None:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")
        gpu.kernel()

    timer = CudaTimer(gpu.cupy)
    times = interleave(timer, [Work("odd", call, "cupy"), Work("good", gpu.kernel, "cupy")], seconds=0.01)
    assert gpu.recording is None  # the capture was ended
    assert times["odd"].note == "without a graph: cudaErrorStreamCaptureUnsupported"
    assert times["odd"].cold.median == pytest.approx(0.003)
    assert times["odd"].warm is not None
    assert times["odd"].warm.median == pytest.approx(0.001)
    assert times["good"].note == ""


def test_a_long_kernel_is_not_captured() -> None:
    gpu = FakeGpu()
    prepared = CudaTimer(gpu.cupy).prepare(Work("long", gpu.kernel, "cupy"), limit=1e-4)
    assert not any("captured" in line for line in gpu.log)
    assert prepared.estimate > 1e-4


# ---- reports ---------------------------------------------------------------------------------------------------------


def spread(seconds: float) -> Spread:
    return Spread(seconds, seconds, seconds, seconds, 3)


def made_report() -> reports.Report:
    """Two problems, forward; minigan is twice as fast in one and half as fast in the other."""
    found = []
    for problem, ours in zip(layers.problems(["cats"], reduced=True)[:2], (1e-3, 4e-3), strict=True):
        for name, other, seconds in (("minigan", "PyTorch", ours), ("PyTorch", None, 2e-3)):
            result = reports.Result(problem, "forward", name, "float32", other, 10**9, 10**6, error=0.5, floor=5e-4)
            result.timing = Timing(spread(seconds), spread(seconds / 2))
            found.append(result)
    report = reports.Report({"cpu": "test", "date": "2026-01-01", "threads": 2, "run_seconds": 1.0}, found)
    report.compare()
    return report


def test_ratios_and_their_geometric_mean() -> None:
    report = made_report()
    assert [r.ratio for r in report.results] == [2.0, None, 0.5, None]
    mean = {m.group: m.mean for m in reports.means(report)}
    assert mean["all"] == pytest.approx(1.0)
    # cats G1 is D5 as well, so it counts twice in its system: (2 * 2 / 2) ^ (1/3)
    assert mean["cats"] == pytest.approx(2 ** (1 / 3))
    text = reports.table(report.results, timed=True)
    assert "1 ms (0 %)" in text
    assert "50 %" in text  # of the roofline
    assert "0.50 W" not in text
    report.results[0].winograd = True
    assert reports.table(report.results, timed=True).count("0.50 W") == 1  # it has a tolerance of its own


def test_json_says_everything_and_knows_no_nan(tmp_path: Path) -> None:
    report = made_report()
    report.results[0].error, report.results[0].status = float("nan"), reports.WRONG
    reports.write_json(tmp_path / "new" / "out.json", report)
    content = json.loads((tmp_path / "new" / "out.json").read_text())
    assert content["results"][0]["error"] == "nan"
    assert content["results"][2]["timing"]["cold"]["median"] == 4e-3
    assert content["results"][0]["problem"]["layers"] == ["cats G1", "cats D5"]
    assert content["results"][0]["pass"] == "forward"


def test_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    reports.draw_chart(tmp_path / "chart.png", made_report())
    assert (tmp_path / "chart.png").stat().st_size > 1000


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_gpu_code_on_the_emulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    arguments = ["--device", "emulated", "--system", "maxpool", "--layer", "G1", "--rung", "1", "4", "6", "7", "8"]
    assert command.main([*arguments, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "15 of 15 right" in out
    assert "TFLOP/s" not in out
    results = json.loads(path.read_text())["results"]
    assert {r["competitor"] for r in results} == {f"rung {n}" for n in (1, 4, 6, 7, 8)}
    assert all(r["timing"] is None and r["error"] <= 1 for r in results)


def test_a_published_layer_on_the_emulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    arguments = ["--device", "emulated", "--full-size", "--batch", "1", "--layer", "anime D4", "--rung", "7"]
    assert command.main([*arguments, "--system", "anime", "--json", str(path)]) == 0
    assert "3 of 3 right" in capsys.readouterr().out
    geometry = json.loads(path.read_text())["results"][0]["problem"]["geometry"]
    assert [geometry[size] for size in "nhwck"] == [1, 8, 8, 256, 512]


def test_a_wrong_kernel_is_named_and_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(g: Geometry, name: str, operands: Any, device: str, rung: int) -> Any:
        return lambda: np.empty(g.y_shape, np.float32)  # writes nothing

    monkeypatch.setattr(conv, "on_rung", wrong)
    layer = ["--system", "maxpool", "--layer", "G1", "--pass", "forward", "--rung", "3"]
    assert command.main(["--device", "emulated", *layer]) == 1
    assert "wrong: maxpool G1 forward rung 3: error of nan times the tolerance" in capsys.readouterr().out


def test_a_case_that_runs_out_of_memory_says_so_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(g: Geometry, name: str, *_: Any) -> Any:
        if name == "forward":
            raise MemoryError("unable to allocate 7 TiB")
        return judge(g, name, *_)

    judge = conv.judge
    monkeypatch.setattr(conv, "judge", no_memory)
    layer = ["--system", "maxpool", "--layer", "G1", "--pass", "forward", "input_grad", "--rung", "3"]
    assert command.main(["--device", "emulated", *layer]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 right" in out
    assert "skipped: maxpool G1 forward rung 3: out of memory before it was timed: unable to allocate 7 TiB" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--rung", "3"], "the CPU has no ladder"),
        (["--device", "tpu"], "--device: unknown device 'tpu'"),
        (["--device", "emulated", "--chart", "x.png"], "say nothing about a GPU"),
        (["--device", "cpu", "--batch", "0"], "expected a number from 1"),
        (["--device", "cpu", "--full-size"], "on cpu the networks are the published ones"),
        (["--device", "cpu", "--seconds-per-case", "-1"], "expected a number above 0"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command.main(arguments)


def test_an_explicit_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigan.backend.cuda_problem", lambda: "there is none")
    with pytest.raises(RuntimeError, match="there is none"):
        command.main(["--device", "cuda"])


def test_the_cpu_against_the_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    layer = ["--system", "anime", "--layer", "G1", "--batch", "1", "--seconds-per-case", "0.01"]
    assert command.main(["--device", "cpu", *layer, "--json", str(tmp_path / "cpu.json")]) == 0
    content = json.loads((tmp_path / "cpu.json").read_text())
    assert {m["group"] for m in content["means"]} >= {"all", "anime", "forward"}
    assert content["environment"]["torch_threads"] == content["environment"]["threads"]
    assert "x peer" in capsys.readouterr().out


@pytest.mark.parametrize("name", conv.PASSES)
def test_pytest_benchmarks_call_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rung that minigan chooses for the pass, and a wait for its end."""
    pytest.importorskip("torch", reason="what it compares with is PyTorch")
    import test_kernels

    [problem] = layers.problems(["anime"], layer="anime D2", reduced=True)
    with stand_in.installed(stand_in.Gpu(computing=False)) as gpu:
        monkeypatch.setattr(test_kernels, "cupy", backend.cupy)
        given = conv.upload(conv.draw(problem.geometry), "cuda")
        test_kernels.minigan_call(problem, name, "cuda", given)()
        launched = [call.name for call in gpu.calls if call.kind == "kernel"]
    assert len(launched) == 1
    assert launched[0].endswith(f": conv2d_{name}")
