"""The choice of the fastest: its logic, with a fake timer, as there is nothing to time here; its candidates are right.

The GPU is the stand-in for CuPy, whose kernels the emulator runs.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import stand_in
import test_conv2d_ladder as ladder

import minigan as mg
import minigan.functional as F
from minigan import backend, capture
from minigan.ops import conv2d_cuda, conv2d_ladder, conv2d_tune
from minigan.ops.conv2d_ladder import RUNGS, candidates
from minigan.ops.conv2d_tune import Choice
from minigan.ops.elu import elu_forward

ENVIRONMENT = {"format": 1, "gpu": "a GPU", "driver": "1", "sources": "abc"}
LAYER = ladder.problem((1, 16, 16, 8), (16, 5, 5, 8), 2, "same")
A, B = Choice(4, 0), Choice(6, 1, 3)


@pytest.fixture
def gpu() -> Iterator[stand_in.Gpu]:
    with stand_in.installed(stand_in.Gpu()) as gpu:
        yield gpu


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """An empty cache of a GPU; kept() is a new process: only what is on disk is known."""
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path))
    monkeypatch.setattr(conv2d_tune, "_environment", lambda device: ENVIRONMENT)

    def restart() -> Path:
        conv2d_tune._known.cache_clear()
        return conv2d_tune.cache_file(ENVIRONMENT)

    restart()
    yield restart
    conv2d_tune._known.cache_clear()


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[Choice, float]:
    """What the fake timer says; "asked" counts."""
    told: dict[Any, float] = {"asked": 0}

    def seconds(device: str, work: Callable[[], Any]) -> float:
        told["asked"] += 1
        return told[work().way]

    monkeypatch.setattr(conv2d_tune, "seconds", seconds)
    return told


class Result(np.ndarray):
    """Of a candidate, `way`."""

    way: Choice


def chosen(
    problem: str = "p",
    ways: tuple[Choice, ...] = (A, B),
    values: Mapping[Choice, Sequence[float]] = MappingProxyType({}),
) -> Choice:
    """values: of the results that are not what they should be."""

    def run(way: Choice, arrays: Any) -> Result:
        result = np.array(values.get(way, [1.0, -2.0])).view(Result)
        result.way = way
        return result

    return conv2d_tune.choose("cpu", problem, ways, run, [])


# ---- logic -----------------------------------------------------------------------------------------------------------


def test_the_fastest_is_timed_once_and_kept(kept: Callable[[], Path], times: dict[Any, float]) -> None:
    times.update({A: 2.0, B: 1.0})
    assert [chosen(), chosen()] == [B, B]
    assert times["asked"] == 2
    assert json.loads(kept().read_text()) == {"environment": ENVIRONMENT, "choices": {"p": [6, 1, 3]}}
    times.update({A: 1.0, B: 2.0})
    assert chosen() == B
    assert times["asked"] == 2
    assert chosen("q") == A


def test_of_equals_the_default(kept: Callable[[], Path], times: dict[Any, float]) -> None:
    times.update({A: 1.0, B: 1.0})
    assert chosen() == A


def test_what_is_no_candidate_any_more_is_timed_anew(kept: Callable[[], Path], times: dict[Any, float]) -> None:
    times.update({A: 2.0, B: 1.0, Choice(5, 0): 1.5})
    assert chosen() == B
    kept()
    assert chosen(ways=(A, Choice(5, 0))) == Choice(5, 0)


def test_a_candidate_that_does_not_run_is_left_out(
    kept: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def seconds(device: str, work: Callable[[], Any]) -> float:
        if work().way == B:
            raise ValueError("too much shared memory\nand more")
        return 1.0

    monkeypatch.setattr(conv2d_tune, "seconds", seconds)
    assert chosen() == A
    assert capsys.readouterr().err == f"MINIGAN_AUTOTUNE: p: {B} is left out: ValueError: too much shared memory\n"
    assert chosen("q", (B,)) == B  # nothing runs: it will say why itself
    assert "q" not in kept().read_text()


@pytest.mark.parametrize("value", [1.5, np.nan, np.inf])
def test_a_candidate_that_is_wrong_is_not_timed(
    value: float, kept: Callable[[], Path], times: dict[Any, float], capsys: pytest.CaptureFixture[str]
) -> None:
    times.update({A: 2.0, B: 1.0})
    assert chosen(values={B: [1.0, value]}) == A
    assert times["asked"] == 1
    wrong = "its result is wrong: on small whole numbers it is not that of the default"
    assert capsys.readouterr().err == f"MINIGAN_AUTOTUNE: p: {B} is left out: ValueError: {wrong}\n"
    assert json.loads(kept().read_text())["choices"] == {"p": [4, 0, None]}


def test_a_default_that_is_not_a_number_makes_nothing_right(kept: Callable[[], Path], times: dict[Any, float]) -> None:
    assert chosen(values={A: [1.0, np.nan], B: [1.0, np.nan]}) == A
    assert times["asked"] == 0
    assert not kept().exists()


def test_what_is_not_written_is_not_right_by_its_memory(kept: Callable[[], Path], times: dict[Any, float]) -> None:
    """B gets the memory in which A's right result was, and does nothing."""
    times.update({A: 2.0, B: 1.0})
    memory = np.empty(2).view(Result)

    def run(way: Choice, arrays: Any) -> Result:
        result = np.ones(2).view(Result) if way == A and not arrays else memory
        if way == A:
            result[...] = 2 if "given" in arrays else 1
            arrays.append("once more")
        result.way = way
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv2d_tune, "_whole_numbers", lambda device, arrays: [])
        assert conv2d_tune.choose("cpu", "p", (A, B), run, ["given"]) == A
    assert times["asked"] == 1


def test_in_a_capture_nothing_is_timed(kept: Callable[[], Path], times: dict[Any, float]) -> None:
    times.update({A: 2.0, B: 1.0})
    chosen("known")
    with stand_in.installed(stand_in.Gpu()), capture.capturing(capture.Capture("cuda")):
        assert [chosen("known"), chosen("new")] == [B, A]
    assert times["asked"] == 2
    assert chosen("new") == B


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"environment": {"gpu": "another"}, "choices": {"p": [4, 0, null]}}',
        json.dumps({"environment": ENVIRONMENT, "choices": {"p": [4]}}),
        json.dumps({"environment": ENVIRONMENT, "choices": {"p": ["4", 0, 0]}}),
        json.dumps({"environment": ENVIRONMENT, "choices": {"p": [4, 0.5, 0]}}),
        json.dumps({"environment": ENVIRONMENT, "choices": ["p"]}),
        json.dumps({"environment": ENVIRONMENT}),
        "\0\xff",
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_a_line(
    content: str, kept: Callable[[], Path], times: dict[Any, float], capsys: pytest.CaptureFixture[str]
) -> None:
    times.update({A: 2.0, B: 1.0})
    path = kept()
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin-1")
    assert chosen() == B
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"MINIGAN_AUTOTUNE: {path} is ignored: ") for line in lines)
    assert 1 <= len(lines) <= 2  # when it is read, and when it is replaced
    kept()
    assert chosen() == B
    assert (times["asked"], capsys.readouterr().err) == (2, "")


def test_a_folder_that_cannot_be_written_is_one_line(
    kept: Callable[[], Path],
    times: dict[Any, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times.update({A: 2.0, B: 1.0})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "file"))
    assert [chosen(), chosen()] == [B, B]
    assert "is not written: " in capsys.readouterr().err


def _write(number: int) -> None:
    for i in range(20):
        conv2d_tune._save("cuda", f"{number} {i}", Choice(number, i))


def test_two_processes_may_write_at_once(kept: Callable[[], Path]) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(number,)) for number in (4, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = json.loads(kept().read_text())["choices"]
    assert found == {f"{number} {i}": [number, i, None] for number in (4, 5) for i in range(20)}


def test_the_key_is_the_text_of_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conv2d").mkdir()
    for name in ("common.cuh", "conv2d/1.cu", "conv2d/ring.cuh"):
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(conv2d_tune, "FOLDER", tmp_path)
    before = conv2d_tune._sources()
    for name in ("common.cuh", "conv2d/1.cu", "conv2d/ring.cuh"):
        (tmp_path / name).write_text("b")
        assert conv2d_tune._sources() != before
        (tmp_path / name).write_text("a")
    assert conv2d_tune._sources() == before
    files = {conv2d_tune.cache_file(ENVIRONMENT | {name: "other"}).name for name in ENVIRONMENT}
    assert len(files) == len(ENVIRONMENT)


def test_the_time_is_that_of_replayed_graphs(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 ms for a graph of eight calls, says the stand-in: nothing is measured here."""
    cuda = backend.cupy().cuda
    monkeypatch.setattr(cuda, "get_elapsed_time", lambda start, end: 8.0, raising=False)
    y, x = (gpu.empty(4, np.float32) for _ in "yx")

    def work() -> None:
        y[...] = x

    assert conv2d_tune.seconds("cuda", work) == pytest.approx(1e-3)
    assert [call.kind for call in gpu.calls] == ["array"] * 2 + ["graph"] * (conv2d_tune.SAMPLES + 1)

    def failing() -> None:
        if gpu.captured is not None:
            raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"):
        conv2d_tune.seconds("cuda", failing)
    assert gpu.captured is None


# ---- on and off ------------------------------------------------------------------------------------------------------


def all_passes(device: str, precision: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": LAYER.x_shape, "w": LAYER.w_shape, "gy": LAYER.y_shape}
    given = {name: mg.tensor(rng.standard_normal(s).astype(np.float32), device=device) for name, s in shapes.items()}
    x, w, gy = (given[name].data for name in ("x", "w", "gy"))
    results = [
        conv2d_cuda.forward(device, x, w, LAYER, precision=precision),
        conv2d_cuda.input_grad(device, gy, w, LAYER, precision=precision),
        conv2d_cuda.weight_grad(device, x, gy, LAYER, precision=precision),
    ]
    return [mg.Tensor(y, device=device).numpy() for y in results]


@pytest.mark.parametrize("asked", [None, "", "0"])
def test_off_unless_asked_for(
    asked: str | None, gpu: stand_in.Gpu, kept: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIGAN_AUTOTUNE", raising=False)
    if asked is not None:
        monkeypatch.setenv("MINIGAN_AUTOTUNE", asked)
    path = kept()
    path.parent.mkdir(parents=True)
    path.write_text("what is there is not looked at")
    first, again = all_passes("cuda", "tf32"), all_passes("cuda", "tf32")
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_value_is_refused(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGAN_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="MINIGAN_AUTOTUNE: expected 0 or 1, got 'yes'"):
        all_passes("cuda", "tf32")


def test_the_emulator_has_nothing_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGAN_AUTOTUNE", "1")
    monkeypatch.setattr(conv2d_tune, "choose", None)
    assert len(all_passes("emulated", "tf32")) == 3


@pytest.mark.parametrize("precision", ladder.ROUNDED)
def test_what_was_chosen_is_launched(
    precision: str, gpu: stand_in.Gpu, kept: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last candidate of each pass, which the fake timer likes best; not the default."""
    monkeypatch.setenv("MINIGAN_AUTOTUNE", "1")
    counter = iter(range(1000, 0, -1))

    def seconds(device: str, work: Callable[[], Any]) -> float:
        work()
        return float(next(counter))

    monkeypatch.setattr(conv2d_tune, "seconds", seconds)
    tuned = all_passes("cuda", precision)
    gpu.calls.clear()
    again = all_passes("cuda", precision)
    for one, other in zip(tuned, again, strict=True):
        np.testing.assert_array_equal(one, other)
    found = json.loads(kept().read_text())["choices"]
    assert [problem.split()[0] for problem in found] == ["forward", "input_grad", "weight_grad"]
    sources = [call.name.partition(":")[0] for call in gpu.calls if ": conv2d_" in call.name]
    assert sources == [RUNGS[rung].source for rung, _, _ in found.values()]
    for what, (rung, tile, slices) in zip(ladder.PASSES, found.values(), strict=True):
        ways = list(candidates(what, LAYER, 90, precision, (4, 4)))
        assert Choice(rung, tile, slices) == ways[-1]
        assert ways[0] == Choice(conv2d_ladder.choose_rung(LAYER, "float32", 90, precision))


def test_copies_in_16_bits_are_shared_by_what_was_chosen_and_not_by_what_is_timed(
    gpu: stand_in.Gpu, kept: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_precision", "bf16")
    monkeypatch.setenv("MINIGAN_AUTOTUNE", "1")

    def seconds(device: str, work: Callable[[], Any]) -> float:
        """Rung 7 is the fastest. Its candidates are timed with the rounding of both operands."""
        gpu.calls.clear()
        work()
        names = [call.name for call in gpu.calls]
        if not any(name.startswith("7_") for name in names):
            return 2.0
        [rounding] = [call for call in gpu.calls if "round_operands" in call.name]
        timed.append(rounding.written)
        return 1.0

    timed: list[int] = []
    monkeypatch.setattr(conv2d_tune, "seconds", seconds)
    rng = np.random.default_rng(0)
    w, b = (rng.standard_normal(s).astype(np.float32) for s in (LAYER.w_shape, LAYER.k))
    w, b = (mg.tensor(a, requires_grad=True, device="cuda") for a in (w, b))
    x = mg.tensor(rng.standard_normal(LAYER.x_shape).astype(np.float32), requires_grad=True, device="cuda")

    def gradients() -> list[np.ndarray]:
        y = F.conv2d(x, w, b, 2, "same")
        return [one.numpy() for one in mg.grad(y, [x, w, b], mg.tensor(np.ones(y.shape, np.float32), device="cuda"))]

    first = gradients()
    sizes = x.size, w.size, int(np.prod(LAYER.y_shape))
    assert set(timed) == {2 * (sizes[0] + sizes[1]), 2 * (sizes[2] + sizes[1]), 2 * (sizes[0] + sizes[2])}
    gpu.calls.clear()
    again = gradients()
    rounded = [call.written for call in gpu.calls if "round_operands" in call.name]
    assert sum(rounded) == 2 * sum(sizes)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_kernels_that_are_wrong_are_left_out(
    gpu: stand_in.Gpu,
    kept: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rung 11 would be the fastest, but one of its outputs lacks one product."""
    monkeypatch.setenv("MINIGAN_AUTOTUNE", "1")
    places, launch = {"conv2d_forward": 3, "conv2d_input_grad": 3, "conv2d_weight_grad": 2}, gpu.launch

    def faulty(source: Any, variant: Any, kernel: str, grid: Any, block: Any, values: Any, shared: int) -> None:
        launch(source, variant, kernel, grid, block, values, shared)
        if source.path.name.startswith("11_") and kernel in places:
            values[places[kernel]].host.flat[5] -= 1

    def seconds(device: str, work: Callable[[], Any]) -> float:
        gpu.calls.clear()
        work()
        assert not any(call.name.startswith("11_") for call in gpu.calls)
        return 1.0

    monkeypatch.setattr(gpu, "launch", faulty)
    monkeypatch.setattr(conv2d_tune, "seconds", seconds)
    all_passes("cuda", "tf32")
    found = json.loads(kept().read_text())["choices"]
    assert {problem.split()[0]: rung for problem, (rung, *_) in found.items()} == dict.fromkeys(ladder.PASSES, 6)
    left_out = [line for line in capsys.readouterr().err.splitlines() if "its result is wrong" in line]
    assert all("Choice(rung=11, " in line for line in left_out)
    assert {line.split()[1] for line in left_out} == set(ladder.PASSES)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_an_elu_makes_a_problem_of_its_own(
    precision: str,
    gpu: stand_in.Gpu,
    kept: Callable[[], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All its candidates are right, those too that launch it by itself, and each is timed with it."""
    monkeypatch.setenv("MINIGAN_AUTOTUNE", "1")
    given = [
        mg.tensor(a, device="cuda").data for a in ladder.random_inputs(ladder.PASSES["forward"], LAYER, bias=False)
    ]
    asked = []

    def seconds(device: str, work: Callable[[], Any]) -> float:
        gpu.calls.clear()
        work()
        asked.append(any(call.name.startswith("elu.cu") for call in gpu.calls))
        return float(len(asked))

    monkeypatch.setattr(conv2d_tune, "seconds", seconds)
    y = conv2d_cuda.forward("cuda", *given, LAYER, None, 0.7, elu=True, precision=precision)
    ways = list(candidates("forward", LAYER, 90, precision, (4, 4)))
    assert asked == [not RUNGS[way.rung].elu for way in ways]
    assert {True, False} <= set(asked)
    plain = conv2d_cuda.forward("cuda", *given, LAYER, precision=precision)
    np.testing.assert_array_equal(*(mg.Tensor(a, device="cuda").numpy() for a in (y, elu_forward("cuda", plain, 0.7))))
    problems = list(json.loads(kept().read_text())["choices"])
    assert problems == [f"{problems[1]} elu", problems[1]]
    assert "left out" not in capsys.readouterr().err


def test_it_is_judged_on_small_whole_numbers(gpu: stand_in.Gpu) -> None:
    x = mg.tensor(np.zeros((3, 500), np.float32), device="cuda").data
    drawn, bias, none, slope = conv2d_tune._whole_numbers("cuda", [x, x, None, 0.2])
    assert (none, slope) == (None, 0.2)
    values = [mg.Tensor(one, device="cuda").numpy() for one in (drawn, bias)]
    assert not np.array_equal(*values)
    assert all(one.shape == x.shape and set(one.flat) == {-2, -1, 0, 1, 2} for one in values)


def test_operands_are_put_in_order_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rung with both: operands in 16 bits, and the weight gradient the other way round."""
    tile = replace(RUNGS[9].tiles[0], vectors=((8, 4),))
    monkeypatch.setitem(RUNGS, 12, replace(RUNGS[9], tiles=(tile,), transposed=True))
    g = ladder.problem((1, 16, 16, 8), (3, 5, 5, 8), 1, "same")
    assert 12 in {way.rung for way in candidates("weight_grad", g, 90, "bf16", (4, 1))}
    monkeypatch.setitem(RUNGS, 12, replace(RUNGS[9], tiles=(tile,)))
    assert 12 not in {way.rung for way in candidates("weight_grad", g, 90, "bf16", (4, 1))}


# ---- every candidate is right ----------------------------------------------------------------------------------------

# Layers of the five systems with fewer channels, and sizes that straddle tiles.
SHAPES = [
    ladder.problem((1, 32, 32, 3), (8, 5, 5, 3), 2, "same"),
    ladder.problem((2, 8, 8, 16), (32, 4, 4, 16), 2, "same"),
    ladder.problem((1, 16, 16, 12), (3, 5, 5, 12), 1, "same"),
    ladder.problem((1, 7, 9, 20), (68, 3, 3, 20), 1, "same"),
    ladder.problem((1, 9, 11, 13), (21, 5, 4, 13), (2, 1), "same"),
]


@pytest.mark.parametrize("what", ladder.PASSES)
@pytest.mark.parametrize("precision", ladder.ROUNDED)
def test_every_candidate_is_right(what: str, precision: str) -> None:
    """Each rung as exact as its own arithmetic; none coarser than the precision that was asked for."""
    pass_, checked = ladder.PASSES[what], set()
    for g in SHAPES:
        arrays = ladder.random_inputs(pass_, g, bias=what != "weight_grad")
        for way in candidates(what, g, 90, precision, [4 if a.shape[-1] % 4 == 0 else 1 for a in arrays[:2]]):
            split = {} if way.slices is None else {"slices": way.slices}
            result = ladder.run(pass_, g, arrays, precision=precision, rung=way.rung, tile=way.tile, **split)
            own = RUNGS[way.rung].precision if way.rung else "float32"
            assert own in ("float32", precision)
            ladder.assert_right(pass_, g, arrays, result, own)
            checked.add((way.rung, way.tile))
    assert len(checked) > 4
