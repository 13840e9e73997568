"""Data-parallel training: real ranks under mpiexec, on this machine.

They train what one process would train, they stop, die and resume together, and only the first of them writes.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from example_modules import EXAMPLES
from minigan.kernels.emulator import builder
from processes import assert_same_log, assert_same_state, end, last_checkpoint, steps_in_log, training, wait_for_step

import minigan as mg
from minigan import backend, distributed, nn
from minigan.data import Batches
from minigan.distributed import GradientMeans, LaunchError, World

Train = Callable[..., None]

PROGRAMS = Path(__file__).with_name("rank_programs.py")
MANY = "1000000"


def mpiexec() -> str | None:
    """The launcher: that of the extra `mpi` is beside python."""
    return shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


try:
    import mpi4py  # noqa: F401
except ModuleNotFoundError:
    MISSING: str | None = "mpi4py is not installed: pip install -e '.[mpi]'"
else:
    MISSING = None if mpiexec() else "there is no mpiexec: pip install -e '.[mpi]'"

needs_mpi = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def ranks(count: int) -> list[str]:
    return [str(mpiexec()), "-n", str(count)]


def program(count: int, *arguments: str) -> str:
    """What a function of rank_programs.py says, run by so many ranks; with 0, by one process without a launcher."""
    command = [*(ranks(count) if count else []), sys.executable, str(PROGRAMS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_with(count: int, *arguments: str, **how: Any) -> str:
    """A whole run of the cats example by so many ranks; what it said."""
    with training(*arguments, launcher=ranks(count), **how) as process:
        out, err = end(process)
        assert (process.returncode, out + err if process.returncode else err) == (0, "")
    return out


def processes_of(out: str) -> list[int]:
    """The processes of the ranks, as the first says at the start."""
    return [int(number) for number in re.findall(r"rank \d+ is process (\d+) on ", out)]


@contextmanager
def begun(folder: str, step: int, *arguments: str, count: int = 2, **how: Any) -> Iterator[tuple[Any, list[int]]]:
    """A run of so many ranks without end, once it has done a step; with the processes of its ranks."""
    with training("--out", folder, "--steps", MANY, *arguments, launcher=ranks(count), **how) as process:
        assert process.stdout is not None
        found = processes_of(process.stdout.readline())
        assert len(found) == count
        wait_for_step(process, folder, step)
        yield process, found


# ---- the same as one process ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, np.ndarray]]:
    """By the number of ranks, 0 being none: losses and weights of ten steps of 64 images, of all systems."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for count in (0, 2, 3):
        program(count, "equal", f"{folder}/{count}.npz", "float64", *(["float32"] if count < 3 else []))
        with np.load(f"{folder}/{count}.npz") as arrays:
            found[count] = dict(arrays)
    return found


def without_effect(names: list[str]) -> set[str]:
    """Biases before batch norm: whatever they are, it takes them away again.

    Their gradients are nothing but rounding, and Adam makes whole steps of that. Adam's moments of them are called by
    numbers, and so are the running means that follow them: all of that is left out.
    """
    found = {name for name in names if re.search(r"_adam/|running_mean", name)}
    for name in names:
        head, _, last = name.rpartition(".")
        following = re.sub(r"\d+$", lambda number: str(int(number[0]) + 1), head)
        if last == "bias" and f"{following}.gamma" in names:
            found.add(name)
    return found


def part(run: dict[str, np.ndarray], system: str, dtype: str, kind: str) -> dict[str, np.ndarray]:
    names = [name for name in run if name.startswith(f"{system}/{dtype}/{kind}/")]
    names = [name for name in names if name not in without_effect(names)]
    assert names
    return {name.removeprefix(f"{system}/{dtype}/"): run[name] for name in names}


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Of all values together, relative to their size."""
    assert a.keys() == b.keys()
    squares = [((a[name].astype(np.float64) - b[name]) ** 2).sum() for name in a]
    return float(np.sqrt(sum(squares) / sum((b[name].astype(np.float64) ** 2).sum() for name in b)))


@needs_mpi
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("system", EXAMPLES)
def test_ten_steps_of_many_ranks_are_those_of_one_in_float64(system: str, count: int, runs: Any) -> None:
    """With synchronised statistics: 2 ranks x 32 images, and 3 ranks with 21, 21 and 22, are 1 x 64."""
    one, many = (part(runs[n], system, "float64", "loss") for n in (0, count))
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-11, err_msg=name)
    one, many = (part(runs[n], system, "float64", "weights") for n in (0, count))
    for name in one:
        atol = 1e-9 * np.abs(one[name]).max()
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=atol, err_msg=name)


@needs_mpi
@pytest.mark.parametrize("system", EXAMPLES)
def test_ten_steps_of_two_ranks_are_those_of_one_to_float32_rounding(system: str, runs: Any) -> None:
    """Two ranks are as near to the float64 run as one rank is: nothing but the rounding differs.

    Twice as near or twice as far is the luck of the rounding. Where one rank is so near that a single weight matters
    whose gradient rounds to the other sign, and which Adam then moves by lr the other way, 1e-5 is near enough.
    """
    for kind in ("loss", "weights"):
        exact = part(runs[0], system, "float64", kind)
        one, two = (distance(part(runs[n], system, "float32", kind), exact) for n in (0, 2))
        assert two <= max(3 * one, 1e-5), (kind, one, two)


@needs_mpi
def test_a_gradient_penalty_through_synchronised_statistics(runs: Any) -> None:
    names = [name for name in runs[0] if name.startswith("penalty/")]
    scale = max(np.abs(runs[0][name]).max() for name in names)
    assert scale > 0.1
    for name in names:
        np.testing.assert_allclose(runs[2][name], runs[0][name], rtol=0, atol=1e-13 * scale, err_msg=name)


@needs_mpi
@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_synchronised_batch_norm_on_uneven_shares(device: str) -> None:
    """The emulator runs the kernels of a GPU, with sums by MPI."""
    if device == "emulated":
        builder.compiler()  # without one this test is skipped here, and not in the processes of the ranks
    for count in (2, 3):
        assert program(count, "batch_norm", device) == "right\n"


@needs_mpi
def test_all_ranks_are_the_same_to_the_bit_after_20_steps() -> None:
    """Each with the statistics of its own images; three ranks share 8 images unevenly."""
    for count, steps in ((2, 20), (3, 5)):
        assert program(count, "same", str(steps)).splitlines() == [f"{name} is the same" for name in EXAMPLES]


# ---- sharing -------------------------------------------------------------------------------------------------------


def rank_of(rank: int, size: int) -> World:
    """One of so many ranks, that never asks the others."""
    world = World()
    world.rank, world.size = rank, size
    return world


@pytest.mark.parametrize(("images", "batch", "size"), [(21, 4, 2), (100, 10, 3), (64, 64, 5), (33, 7, 7)])
def test_the_ranks_share_each_epoch_without_overlap(images: int, batch: int, size: int) -> None:
    numbered = np.arange(images, dtype=np.uint8).reshape(-1, 1, 1, 1)
    whole = Batches(numbered, batch, seed=3, flip=True)
    worlds = [rank_of(rank, size) for rank in range(size)]
    shares = [Batches(numbered, batch, seed=3, flip=True, share=world.share(batch)) for world in worlds]
    assert sum(world.weight for world in worlds) == pytest.approx(1)
    for _ in range(2):  # epochs
        seen: list[int] = []
        for _ in range(images // batch):
            indices, flips = whole.draw()
            drawn = [share.draw() for share in shares]
            sizes = [len(mine) for mine, _ in drawn]
            assert max(sizes) - min(sizes) <= 1
            assert [world.weight for world in worlds] == [n / batch for n in sizes]
            np.testing.assert_array_equal(np.concatenate([mine for mine, _ in drawn]), indices)
            np.testing.assert_array_equal(np.concatenate([mine for _, mine in drawn]), flips)
            seen += [int(i) for mine, _ in drawn for i in mine]
        assert len(seen) == len(set(seen)) == images // batch * batch


def test_fewer_images_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least an image a rank, got 2 for 3 ranks"):
        rank_of(0, 3).share(2)


def test_the_ranks_draw_what_one_process_would_draw() -> None:
    found: dict[str, list[np.ndarray]] = {}
    for size in (1, 3):
        for rank in range(size):
            mg.manual_seed(5)
            rows = rank_of(rank, size).share(10)
            with mg.random.share_of_batch(rows, 10):
                count = rows.stop - rows.start
                noise = mg.random.uniform((count, 4), device="cpu"), mg.random.normal((count,), device="cpu")
                number = mg.random.uniform((), device="cpu").item()
            found.setdefault(f"{size} uniform", []).append(noise[0].numpy())
            found.setdefault(f"{size} normal", []).append(noise[1].numpy())
            found.setdefault("numbers", []).append(np.array(number))
            found.setdefault("after", []).append(mg.random.uniform((3,), device="cpu").numpy())
    for kind in ("uniform", "normal"):
        np.testing.assert_array_equal(np.concatenate(found[f"3 {kind}"]), found[f"1 {kind}"][0])
    for kind in ("numbers", "after"):
        assert all(np.array_equal(values, found[kind][0]) for values in found[kind])
    with (
        mg.random.share_of_batch(slice(3, 6), 10),
        pytest.raises(ValueError, match=r"this rank's 3 images .* got shape \(4, 2\)"),
    ):
        mg.random.normal((4, 2))


# ---- the gradients' way --------------------------------------------------------------------------------------------


@needs_mpi
def test_the_first_sum_begins_while_backward_still_runs() -> None:
    """Twenty layers of 10,200 bytes, in buckets of two layers, and in one bucket of all."""
    began = ast.literal_eval(program(2, "overlap", "20400"))
    left = [ops for ops, _ in began]
    assert [size for _, size in began] == [20_400] * 10
    assert left == sorted(left, reverse=True)
    assert left[0] > 0.8 * 20  # a layer is one op
    assert left[-1] == 0
    assert ast.literal_eval(program(2, "overlap", "1000000")) == [(0, 20 * 10_200)]


class OtherRanks(World):
    """A world of three ranks, whose other two have gradients that are 1 and 2 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.weight, self.sent = 3, 0.5, []

    def start(self, array: np.ndarray) -> Callable[[], None]:
        self.sent.append(array.copy())
        others = [0.3 * 1 + 0.2 * 2]

        def wait() -> None:
            if others:
                array.__iadd__(array.dtype.type(others.pop()))

        return wait


def reduced(bucket_bytes: int, dtype: str = "float64") -> tuple[nn.Parameter, nn.Parameter, OtherRanks]:
    rng = np.random.default_rng(0)
    a, b = nn.Parameter(rng.standard_normal((3, 4))), nn.Parameter(rng.standard_normal(4).astype(dtype))
    world = OtherRanks()
    a.reducer = b.reducer = GradientMeans(world, bucket_bytes)
    return a, b, world


def test_gradients_are_means_by_weight_and_add_up() -> None:
    a, b, world = reduced(1000)
    for times in (1, 2):
        (a * b + b).sum().backward()
        assert len(world.sent) == times
        expected = np.broadcast_to(b.numpy(), (3, 4)), a.numpy().sum(0) + 3
        for p, own in zip((a, b), expected, strict=True):
            assert p.grad is not None
            np.testing.assert_allclose(p.grad.numpy(), times * (0.5 * own + 0.7), rtol=1e-14)
    # Every pass has memory of its own: what a user kept of the last one stays.
    kept = a.grad
    assert kept is not None
    before = kept.numpy().copy()
    a.grad = None
    (a * a).sum().backward()
    np.testing.assert_array_equal(kept.numpy(), before)


def test_a_leaf_is_sent_once_and_whole() -> None:
    """Its gradient comes from several places of the graph, one of them the output itself."""
    a, b, world = reduced(32)
    ((a * a).sum() + (a * 2.0).sum() + b.sum()).backward()
    assert [s.size for s in world.sent] == [4, 4, 4, 4]  # in pieces of 32 bytes
    assert a.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), 0.5 * (2 * a.numpy() + 2) + 0.7, rtol=1e-14)
    a.grad = None
    a.backward(np.ones((3, 4)))
    np.testing.assert_allclose(a.grad.numpy(), 0.5 + 0.7, rtol=1e-14)


def test_dtypes_do_not_mix_in_a_bucket() -> None:
    a, b, world = reduced(10**6, "float32")
    a.sum().backward()
    b.sum().backward()
    assert {s.dtype.name for s in world.sent} == {"float64", "float32"}
    mg.grad((a * a).sum(), a)  # this rank's own
    assert len(world.sent) == 2


def test_a_mean_over_ranks_is_not_differentiated_again() -> None:
    a, _, _ = reduced(1)
    with pytest.raises(mg.GraphError, match="the mean over the ranks is not part of the graph"):
        (a * a).sum().backward(create_graph=True)


class FakeCuda:
    """As much of cupy.cuda as sums need, that notes what is asked of it. No GPU, no NCCL: only the order is tested."""

    def __init__(self, available: bool = True) -> None:
        self.calls: list[Any] = []
        log = self.calls.append

        class Stream:
            ptr = 77

            def __init__(self, name: str) -> None:
                self.name = name

            def record(self) -> str:
                log(("record", self.name))
                return f"event of {self.name}"

            def wait_event(self, event: str) -> None:
                log(("wait", self.name, event))

        class Communicator:
            def __init__(self, *arguments: Any) -> None:
                log(("communicator", *arguments))

            def allReduce(self, *arguments: Any) -> None:
                log(("allReduce", *arguments))

        self.nccl_module = SimpleNamespace(  # cupy.cuda.nccl, no attribute of cupy.cuda before it is imported
            available=available,
            get_unique_id=lambda: b"id",
            NcclCommunicator=Communicator,
            NCCL_FLOAT32=7,
            NCCL_FLOAT64=8,
            NCCL_SUM=0,
        )
        self.Stream = lambda non_blocking: Stream("sums" if non_blocking else "wrong")
        self.get_current_stream = lambda: Stream("compute")


def test_a_sum_by_nccl_waits_for_the_array_and_is_waited_for_on_the_device() -> None:
    cuda = FakeCuda()
    comm = SimpleNamespace(rank=1, size=4, bcast=lambda value: b"id of rank 0" if value is None else value)
    sums = distributed._NcclSums(comm, cuda, cuda.nccl_module)
    array = SimpleNamespace(dtype=np.dtype("float32"), size=12, data=SimpleNamespace(ptr=4096))
    wait = sums.start(array)
    assert cuda.calls == [
        ("communicator", 4, b"id of rank 0", 1),
        ("record", "compute"),
        ("wait", "sums", "event of compute"),
        ("allReduce", 4096, 4096, 12, 7, 0, 77),
        ("record", "sums"),
    ]
    wait()
    assert cuda.calls[5:] == [("wait", "compute", "event of sums")]


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(getDeviceCount=lambda: 4)
    monkeypatch.setattr(backend, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(backend, "cuda_problem", lambda: None)
    world = rank_of(0, 1)
    assert world.device("cuda") == "cuda"
    world = rank_of(6, 8)
    world.local_rank = 2
    assert [world.device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:2", "cuda:1", "cpu"]
    runtime.getDeviceCount = lambda: 1  # the launcher shows this rank its own alone
    assert world.device("cuda") == "cuda"


def test_without_nccl_it_says_what_to_install() -> None:
    cuda = FakeCuda(available=False)
    with pytest.raises(mg.DeviceError, match=r"pip install 'minigan\[nccl12\]' or, for CUDA 13, 'minigan\[nccl13\]'"):
        distributed._NcclSums(SimpleNamespace(rank=0), cuda, cuda.nccl_module)


def test_cupys_module_of_nccl_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy 14 has no attribute `cupy.cuda.nccl` until someone imports it."""
    cuda, comm = FakeCuda(), SimpleNamespace(rank=0, size=1, bcast=lambda value: value)
    found: list[str] = []

    def imported(name: str) -> Any:
        found.append(name)
        return cuda.nccl_module

    monkeypatch.setattr(backend, "cupy", lambda: SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(backend.importlib, "import_module", imported)
    world = World()
    world.comm = comm
    assert world._nccl.nccl is cuda.nccl_module
    assert found == ["cupy.cuda.nccl"]


# ---- stopping and going on -----------------------------------------------------------------------------------------


@needs_mpi
def test_a_signal_stops_all_ranks_at_one_step(train_example: Train) -> None:
    """Three times: either signal by the launcher, and one to a rank alone; the run goes on each time."""
    step, rare = 0, {"checkpoint_every": 10**6, "sample_every": 10**6}
    for to, number in (("mpiexec", signal.SIGINT), ("mpiexec", signal.SIGTERM), ("rank 1", signal.SIGTERM)):
        before = set(Path("run/checkpoints").glob("*"))
        with begun("run", step + 3, *["--resume"] * (step > 0), **rare) as (process, found):
            if to == "mpiexec":
                out, _ = end(process, number)
            else:
                os.kill(found[1], number)
                out, _ = end(process)
            assert process.returncode == 128 + number
        step = steps_in_log("run")[-1]
        assert f"stopped after step {step}, which is saved; go on with --resume --out run\n" in out
        new = set(Path("run/checkpoints").iterdir()) - before
        assert [path.name for path in new] == [f"{step:06d}.safetensors"]
        assert out.count("stopped after") == 1
    train_with(2, "--out", "run", "--quiet", "--resume", "--steps", str(step + 3))
    train_with(2, "--out", "whole", "--quiet", "--steps", str(step + 3))
    assert_same_state("run", "whole")
    assert_same_log("run", "whole")


@needs_mpi
def test_a_run_goes_on_with_another_number_of_ranks(train_example: Train) -> None:
    """2 ranks, then 1, then 3, then 2, and back to a single process: it draws the same images and the same noise."""
    sync = "--sync-batch-norm"
    train_with(2, "--out", "run", "--quiet", "--steps", "3", sync)
    train_example("cats", "--out", "run", "--quiet", "--steps", "5", "--resume")
    train_with(3, "--out", "run", "--quiet", "--steps", "6", "--resume")
    train_with(2, "--out", "run", "--quiet", "--steps", "9", "--resume")
    train_example("cats", "--out", "run", "--quiet", "--steps", "10", "--resume")
    train_example("cats", "--out", "whole", "--quiet", "--steps", "10")
    assert steps_in_log("run") == list(range(1, 11))
    (tensors, state), (whole, expected) = last_checkpoint("run"), last_checkpoint("whole")
    for key in ("step", "seed", "random", "batches"):
        assert state[key] == expected[key], key
    np.testing.assert_array_equal(tensors["sample_z"], whole["sample_z"])
    config = json.loads(Path("run/config.json").read_text())
    assert (config["ranks"], config["processes"], config["sync_batch_norm"]) == (1, [], True)
    # To float32 rounding, which Adam makes steps of where a gradient is nothing else: 10 steps of 4e-4 at most.
    for name in (n for n in tensors if n.startswith(("generator/", "discriminator/")) and "running" not in n):
        np.testing.assert_allclose(tensors[name], whole[name], rtol=0, atol=2 * 10 * 4e-4, err_msg=name)
    logs = [np.genfromtxt(f"{run}/log.csv", delimiter=",", names=True) for run in ("run", "whole")]
    for column in ("loss_discriminator", "loss_generator", "d_real", "d_fake"):
        np.testing.assert_allclose(logs[0][column], logs[1][column], rtol=0.02, err_msg=column)


# ---- the death of a rank -------------------------------------------------------------------------------------------


def assert_gone(process: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.kill(process, 0)
            time.sleep(0.05)
            continue
        return
    raise AssertionError(f"process {process} still lives")


@needs_mpi
def test_a_killed_rank_ends_the_others(train_example: Train) -> None:
    with begun("run", 3) as (process, found):
        started = time.monotonic()
        os.kill(found[1], signal.SIGKILL)
        out, err = end(process)
        assert time.monotonic() - started < 10
        # The launcher tells the process; which rank it is, the first has said at the start, and config.json.
        assert process.returncode not in (0, None)
        assert f"PID {found[1]} RUNNING AT" in out + err
        assert json.loads(Path("run/config.json").read_text())["processes"][1].startswith(f"{found[1]} on ")
        assert_gone(found[0])
    train_with(2, "--out", "run", "--quiet", *(["--resume"] if list(Path("run/checkpoints").iterdir()) else []))


@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_ends_the_others(train_example: Train, rank: int) -> None:
    changes = f"""
from minigan.distributed import world
def breaks(turn):
    if turn == 3 and world().rank == {rank}:
        raise ArithmeticError("this rank is broken")
before(module.Cats, "step", breaks)
"""
    started = time.monotonic()
    with training("--out", "run", "--quiet", changes=changes, launcher=ranks(2)) as process:
        out, err = end(process)
    assert time.monotonic() - started < 10  # the start included
    assert process.returncode == 1
    assert re.search(rf"^rank {rank} of 2 \(process \d+ on \S+\): Traceback", out + err, re.MULTILINE)
    assert "ArithmeticError: this rank is broken" in out + err


@needs_mpi
def test_a_mistake_of_the_user_is_told_once(train_example: Train) -> None:
    with training("--out", "run", "--batch-size", "1", launcher=ranks(2)) as process:
        out, err = end(process)
    assert process.returncode == 2
    said = [line for line in (out + err).splitlines() if "error: " in line]
    assert len(said) == 1
    assert said[0].startswith("rank 0 of 2 ")
    assert said[0].endswith("--batch-size: expected at least an image a rank, got 1 for 2 ranks")


@needs_mpi
def test_a_share_of_one_image_is_too_few_where_batch_norm_is_each_ranks_own(train_example: Train) -> None:
    with training("--out", "run", "--batch-size", "2", launcher=ranks(2)) as process:
        out, err = end(process)
    [said] = [line for line in (out + err).splitlines() if "error: " in line]
    assert process.returncode == 2
    assert "--batch-size: one image a rank of 16 x 16 is too few: batch_norm: " in said
    assert said.endswith("; expected --batch-size 4 or more, or a larger --image-size, or --sync-batch-norm")
    train_with(2, "--out", "run", "--batch-size", "2", "--steps", "1", "--sync-batch-norm")


@needs_mpi
def test_ranks_that_differ_are_found_before_anything_is_saved(train_example: Train) -> None:
    changes = """
from minigan.distributed import world
def strays(turn):
    if turn == 3 and world().rank == 1:
        weight = next(t for _, t in training_systems[0].generator.named_tensors())
        weight.data[...] *= 1.0000001
training_systems = []
original = module.Cats.__init__
def remembered(self, *arguments):
    training_systems.append(self)
    original(self, *arguments)
module.Cats.__init__ = remembered
before(module.Cats, "step", strays)
"""
    with training("--out", "run", "--quiet", changes=changes, launcher=ranks(2)) as process:
        out, err = end(process)
    assert process.returncode == 1
    assert "step 7: weights or random numbers of rank 1 differ from those of rank 0" in out + err
    assert list(Path("run/checkpoints").iterdir()) == []


# ---- the surroundings ----------------------------------------------------------------------------------------------

# From then on, a rank other than the first must not write anything where the run is.
ONLY_FIRST = """
from minigan.distributed import world
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        wrong = os.path.abspath(arguments[0]).startswith(os.path.abspath("run"))
    else:
        wrong = event in ("os.mkdir", "os.rename", "os.remove") and "run" in str(arguments[0])
    if wrong:
        os.write(2, f"rank {world().rank} writes: {event} {arguments}".encode())
        os._exit(9)
if world().rank:
    sys.addaudithook(watch)
"""


@needs_mpi
def test_only_the_first_rank_writes(train_example: Train) -> None:
    options = ["--metrics-every", "3", "--average", "0.9"]
    said = train_with(2, "--out", "run", *options, changes=ONLY_FIRST)
    assert [said.count(word) for word in ("device: ", "data: ", "run: steps ", "done in ")] == [1] * 4
    train_with(2, "--out", "run", "--resume", "--steps", "9", *options, changes=ONLY_FIRST)
    assert last_checkpoint("run")[1]["step"] == 9
    # The hook sees what it should.
    with training("--out", "run2", changes=ONLY_FIRST.replace("if world().rank:", "if True:")) as process:
        assert end(process)[1].startswith("rank 0 writes: ")


@needs_mpi
def test_the_ranks_of_a_machine_share_its_cores(train_example: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("MINIGAN_NUM_THREADS", raising=False)
    for count in (1, 2):
        threads = max(1, cores // count)
        said = train_with(count, "--out", f"run{count}", "--steps", "1")
        expected = f"ranks: {count}, with {threads} thread{'s' * (threads > 1)} each, of {cores} cores ("
        assert said.startswith(expected)
    monkeypatch.setenv("MINIGAN_NUM_THREADS", "3")
    assert "with 3 threads each" in train_with(2, "--out", "run3", "--steps", "1")


def test_without_a_launcher_nothing_of_mpi_is_imported(train_example: Train) -> None:
    changes = "import atexit; atexit.register(lambda: print('mpi4py' in sys.modules))"
    with training("--out", "run", "--steps", "2", changes=changes) as process:
        out, err = end(process)
    assert (process.returncode, err) == (0, "")
    assert out.endswith("False\n")
    assert "rank" not in out


@needs_mpi
def test_a_launcher_of_another_mpi_is_found_out(train_example: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its processes would train alone, in the same folder."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with training("--out", "run") as process:
        _, err = end(process)
    assert process.returncode == 2
    assert "the launcher started 2 ranks, but mpi4py sees 1" in err
    assert not Path("run").exists()


def test_a_launcher_without_mpi4py_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r"mpi4py is not installed: pip install 'minigan\[mpi\]'"):
        distributed.world.__wrapped__()
