"""The stand-in for CuPy computes what the emulator computes, refuses what CuPy refuses, and counts rightly."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The benchmarks are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import launches
import roofline
import stand_in
import step_cases
from example_modules import EXAMPLES, load_example
from step_cases import Case

import minigan as mg
import minigan.functional as F
from minigan import backend, half, nn, optim

SYSTEMS = list(EXAMPLES)


def tiny(system: str, device: str) -> Case:
    settings = load_example(system).PRESETS["small"]
    sizes = {"image_size": (16, 32), "base_channels": 4, "z_size": 7, "batch_size": 3}
    return Case(system, "small", dataclasses.replace(settings, **sizes), device, "float32")


def trained(case: Case) -> tuple[list[float], list[np.ndarray]]:
    """The losses of two steps, and all weights and running statistics after them."""
    system, real = step_cases.build(case), mg.tensor(case.real(), device=case.device)
    losses = []
    for _ in range(2):
        losses += [float(value) for name, value in system.step(real).items() if "loss" in name]
    networks = system.generator, system.discriminator
    return losses, [value for network in networks for value in network.state_dict().values()]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_code_for_cuda_computes_what_the_emulator_computes(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigan.backend._precision", "float32")
    monkeypatch.setenv("MINIGAN_DEVICE", "cpu")  # where simpsons draws its numbers for a run
    expected = trained(tiny(system, "emulated"))
    with stand_in.installed(stand_in.Gpu()) as gpu:
        found = trained(tiny(system, "cuda"))
    # The same kernels; sums of CuPy's are in float32 here, and Adam's first steps turn roundings of zero gradients
    # (biases before batch norm) into whole steps, so the weights as a whole are compared.
    np.testing.assert_allclose(found[0], expected[0], rtol=5e-3)
    difference = sum(float(np.square(a - b).sum()) for a, b in zip(found[1], expected[1], strict=True))
    size = sum(float(np.square(a).sum()) for a in expected[1])
    assert (difference / size) ** 0.5 < 2e-3
    assert gpu.count("kernel") > 50


def call_of(gpu: stand_in.Gpu, work: Any) -> list[tuple[str, str, int, int]]:
    gpu.calls.clear()
    work()
    return [(call.kind, call.name, call.read, call.written) for call in gpu.calls]


def test_bytes_of_calls_that_are_known() -> None:
    with stand_in.installed(stand_in.Gpu()) as gpu:
        x = mg.tensor(np.ones((5, 7), np.float32), device="cuda")
        assert call_of(gpu, lambda: x * x) == [("array", "multiply", 280, 140)]
        assert call_of(gpu, lambda: F.leaky_relu(x)) == [("kernel", "leaky_relu.cu: scale_negative", 280, 140)]
        assert call_of(gpu, lambda: x.transpose()) == []
        # What is broadcast is read once.
        row = mg.tensor(np.ones((1, 7), np.float32), device="cuda")
        assert call_of(gpu, lambda: x + F.broadcast_to(row, (5, 7))) == [("array", "add", 168, 140)]
        assert call_of(gpu, lambda: x @ x.transpose()) == [("product", "matmul", 280, 100)]
        assert call_of(gpu, lambda: x.numpy()) == [("download", "download", 140, 0)]
        assert call_of(gpu, lambda: mg.tensor(np.ones(3), device="cuda")) == [("upload", "upload", 0, 24)]


def test_numbers_are_arguments() -> None:
    """No array is filled with a number that is an operand or a target: forward, backward, in the gradient of that."""
    with stand_in.installed(stand_in.Gpu()) as gpu:
        x = mg.tensor(np.linspace(0.5, 2, 7, dtype=np.float32), requires_grad=True, device="cuda")
        assert call_of(gpu, lambda: 1 - x) == [("array", "subtract", 28, 28)]

        def twice() -> None:
            y = F.binary_cross_entropy_with_logits((3 * x - 1) ** 2 / 2, 0.25)
            (gx,) = mg.grad(y, x, create_graph=True)
            assert gx is not None
            F.sum(gx * gx).backward()

        twice()  # makes the counters of blocks, once for all
        names = [name for _, name, *_ in call_of(gpu, twice)]
        assert "upload" not in names
        assert names.count("fill") == 2  # the gradients to begin with


def test_gradients_of_a_dense_layer_are_not_copied() -> None:
    """What arrives at a parameter is what was computed for it."""
    with stand_in.installed(stand_in.Gpu()) as gpu:
        x = mg.tensor(np.ones((5, 7), np.float32), device="cuda")
        layers = nn.Sequential(nn.Linear(7, 3), nn.ReLU(), nn.Linear(3, 1))
        layers.to("cuda")
        y, gy = layers(x), mg.tensor(np.ones((5, 1), np.float32), device="cuda")
        names = [name for _, name, *_ in call_of(gpu, lambda: y.backward(gy))]
        assert "copy" not in names
        assert names.count("matmul") == 3
        assert names.count("sums.cu: column_sums") == 2
        assert len(call_of(gpu, lambda: layers(x))) == 4  # two products, and to each its bias and activation


def test_bytes_of_adam_are_those_of_its_arrays() -> None:
    """They stand in a table: w, g, m, v are read, w, m, v are written."""
    with stand_in.installed(stand_in.Gpu()) as gpu:
        p = mg.tensor(np.ones(1000, np.float32), requires_grad=True, device="cuda")
        p.grad = mg.tensor(np.ones(1000, np.float32), device="cuda")
        adam = optim.Adam([p], 0.1)
        calls = call_of(gpu, adam.step)
        assert [one for one in calls if one[0] == "kernel"] == [("kernel", "adam.cu: adam", 16_000, 12_000)]
        np.testing.assert_allclose(p.numpy(), 0.9, rtol=1e-6)


def test_what_cupy_refuses_is_refused() -> None:
    with stand_in.installed(stand_in.Gpu()) as gpu:
        x = gpu.empty(3, np.float32)
        with pytest.raises(TypeError, match=r"numpy\.ndarray"):
            x + np.ones(3)
        with pytest.raises(TypeError, match="implicit conversion"):
            np.asarray(x)
        with pytest.raises(NotImplementedError):
            x[np.array([0, 1])]


@pytest.mark.parametrize("dtype", ["uint16", "float16"])
def test_16_bits_are_for_kernels_alone(dtype: str) -> None:
    """CuPy would compute with bf16's bits as integers, and not say a word."""
    with stand_in.installed(stand_in.Gpu()) as gpu:
        x, y = gpu.empty((2, 8), dtype), gpu.empty((2, 8), np.float32)
        assert np.isnan(half.widened("cuda", x).gpu_to_host()).all()  # nobody has written there
        assert x.copy("C").dtype == x.dtype
        for work in (
            lambda: np.exp(x),
            lambda: y + x,
            lambda: x.sum(),
            lambda: x.astype(np.float32),
            lambda: backend.cupy().concatenate([x, x]),
            lambda: y.__setitem__(..., x),
            lambda: backend.to_numpy(x),
        ):
            with pytest.raises(TypeError, match=f"an array of {dtype}, which only kernels read"):
                work()


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_computing_the_calls_are_the_same(system: str) -> None:
    def calls(computing: bool) -> list[stand_in.Call]:
        with stand_in.installed(stand_in.Gpu(computing)) as gpu:
            case = tiny(system, "cuda")
            step_cases.build(case).step(mg.tensor(case.real(), device="cuda"))
            return gpu.calls

    assert calls(True) == calls(False)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_training_step_copies_nothing_between_host_and_device(system: str) -> None:
    """Noise, targets, numbers: all of it is made on the device; Adam's table was sent in earlier steps."""
    with stand_in.installed(stand_in.Gpu(computing=False)) as gpu:
        case = tiny(system, "cuda")
        trained_system, real = step_cases.build(case), mg.tensor(case.real(), device="cuda")
        for _ in range(3):
            trained_system.step(real)
        gpu.calls.clear()
        trained_system.step(real)
        assert gpu.count("kernel") > 50
        assert gpu.count("upload", "download") == 0


def test_counts_of_pytorch_that_are_known() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.LeakyReLU(0.2, inplace=True))
    x = torch.ones(2, 3, 8, 8)
    with launches.noted() as calls:
        net(x).backward(torch.ones(2, 4, 8, 8))
    image, weight, y = 2 * 3 * 64 * 4, 4 * 3 * 9 * 4, 2 * 4 * 64 * 4
    found = {call.name: (call.read, call.written) for call in calls}
    assert found["convolution"] == (image + weight + 4 * 4, y)
    assert found["leaky_relu_"] == (y, y)
    assert found["leaky_relu_backward"] == (2 * y, y)
    # The image needs no gradient.
    assert "convolution_backward x" not in found
    assert found["convolution_backward w"] == (image + y, weight)
    assert found["convolution_backward b"] == (y, 16)
    assert all(call.kind == "op" for call in calls)


def test_pytorch_casts_under_autocast_and_then_moves_less() -> None:
    pytest.importorskip("torch")
    found = {}
    for precision in ("tf32", "bf16"):
        calls = launches.torch_calls(dataclasses.replace(tiny("cats", "cuda"), precision=precision))
        casts = [call for call in calls if call.name == "_to_copy"]
        convolutions = [call for call in calls if call.name == "convolution"]
        found[precision] = len(convolutions), sum(call.written for call in convolutions), bool(casts)
    assert found["tf32"][0] == found["bf16"][0] == 20
    assert found["tf32"][1] == 2 * found["bf16"][1]
    assert (found["tf32"][2], found["bf16"][2]) == (False, True)


@pytest.mark.parametrize(("system", "precision"), [("cats", "tf32"), ("anime", "bf16")])
def test_no_published_layer_is_read_for_its_moments(
    system: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All convolutions before a batch norm leave them, also of real and generated images together."""
    monkeypatch.setattr(mg.backend, "_precision", precision)
    case = step_cases.make_case(system, "paper", None, "cuda", precision)
    names = [call.name for call in launches.minigan_calls(case)]
    assert sum("conv2d_" in name and name.endswith("_moments") for name in names) == 14
    assert names.count("batch_norm.cu: combine_moments") == 14
    assert "batch_norm.cu: moments" not in names


def test_batches_twice_as_large_move_more_with_as_many_launches() -> None:
    """But those that add up slices of a weight gradient's sum: the more pixels, the more of these sums are cut."""
    small, large = (launches.minigan_calls(resized(n)) for n in (4, 8))
    one, two = ([call.name for call in calls if not call.name.endswith("sum_slices")] for calls in (small, large))
    assert one == two
    few, many = (launches.summary(calls)["bytes"] for calls in (small, large))
    assert few < many < 2 * few


def resized(batch: int) -> Case:
    case = tiny("cats", "cuda")
    return dataclasses.replace(case, settings=dataclasses.replace(case.settings, batch_size=batch))


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "counts.json"
    arguments = ["--systems", "anime", "--preset", "small", "--without-torch", "--detail", "--out", str(out)]
    before = mg.backend._precision
    try:
        assert launches.main(arguments) == 0
    finally:
        mg.backend._precision = before
    [result] = json.loads(out.read_text())["results"]
    assert result["launches"] > result["own_kernels"] > 0
    assert f"{result['launches']}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="expected some of"):
        launches.main(["--systems", "dogs"])


def test_without_pytorch_it_says_how_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--without-torch"):
        launches.main([])


def test_modules_without_a_gpu_still_see_none() -> None:
    """The stand-in leaves nothing behind."""
    with stand_in.installed(stand_in.Gpu()):
        assert nn.Linear(2, 3).to("cuda").weight.device == "cuda"
    assert mg.default_device() != "cuda" or mg.backend.cuda_problem() is None


# ---- floors ----------------------------------------------------------------------------------------------------------


def test_floors_of_a_layer_and_of_a_step() -> None:
    case = step_cases.make_case("cats", "paper", None, "cuda", "tf32")
    slow = roofline.Ceilings(4e12, {"tf32": 1.0, "bf16": 1.0})  # arithmetic alone
    rows = roofline.layer_floors(case, slow)
    assert sum(row.times * row.operations for row in rows) == step_cases.operations(case)
    assert sum(row.times * row.seconds for row in rows) == pytest.approx(step_cases.operations(case))
    assert {row.limited_by for row in rows} == {"arithmetic"}
    # The fourth convolution of the discriminator: x 16 x 16 x 256, w 512 x 5 x 5 x 256, y 16 x 16 x 512, by 64.
    elements = 64 * 256 * (256 + 512) + 512 * 25 * 256
    for precision, itemsize in (("tf32", 4), ("bf16", 2)):
        fast = roofline.Ceilings(1.0, {precision: 1e30})  # bytes alone
        rows = roofline.layer_floors(dataclasses.replace(case, precision=precision), fast)
        [row] = [row for row in rows if (row.layer, row.pass_) == ("cats D4", "forward")]
        assert (row.times, row.bytes, row.seconds, row.limited_by) == (3, elements * itemsize, row.bytes, "bytes")


def test_a_step_is_its_layers_and_the_bytes_of_all_else() -> None:
    case = tiny("cats", "cuda")
    case = dataclasses.replace(case, precision="tf32")
    ceilings = roofline.Ceilings(1.0, {"tf32": 1.0})
    floor = roofline.step_floor(case, ceilings)
    calls = launches.minigan_calls(case)
    layers = [call for call in calls if call.name == "matmul"]
    layers += [call for call in calls if "conv2d_" in call.name]
    everything = launches.summary(calls)
    assert floor.launches == everything["launches"]
    assert floor.rest_bytes == everything["bytes"] - sum(call.bytes for call in layers)
    assert floor.seconds == floor.layers + floor.rest_bytes


def test_shares_of_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"layers": ["cats G1", "cats D5"], "geometry": {"n": 64}}
    timing = {"cold": {"median": 0.001}, "warm": None}
    results = [
        {"problem": problem, "pass": "forward", "precision": "tf32", "competitor": f"rung {i}", "chosen": i == 6}
        | {"timing": {"cold": {"median": 7.0}} if i == 5 else timing}
        for i in (5, 6)
    ]
    kernels, steps = tmp_path / "kernels.json", tmp_path / "steps.json"
    kernels.write_text(json.dumps({"results": results}))
    sides = [{"name": "minigan", "seconds": {"median": 0.05}}, {"name": "PyTorch eager", "seconds": {"median": 0.01}}]
    step = {"system": "cats", "preset": "paper", "batch": 64, "precision": "tf32", "sides": sides}
    steps.write_text(json.dumps({"runs": [{"results": [step]}]}))
    arguments = ["--systems", "cats", "--copy", "1e12", "--product", "1e15", "--kernels", str(kernels)]
    before = mg.backend._precision
    try:
        assert roofline.main([*arguments, "--steps", str(steps)]) == 0
    finally:
        mg.backend._precision = before
    lines = capsys.readouterr().out.splitlines()
    # 107.37 GFLOP take 107.4 us of the 1,000 that were measured; twice: the layer of D has the same convolution.
    assert [line.split()[:2] for line in lines if "11% of 1,000.0 us" in line] == [["cats", "G1"], ["cats", "D5"]]
    assert sum("of 50,000.0 us" in line for line in lines) == 1
    with pytest.raises(SystemExit, match="--product"):
        roofline.main(["--precision", "float32"])
