"""A training step that is captured and replayed, on the stand-in for CuPy: the numbers are those of the step itself."""

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from example_modules import EXAMPLES, load_example
from minigan.kernels.emulator import builder

# The stand-in is a part of the benchmarks, which are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import stand_in

import minigan as mg
from minigan import backend, capture, serialization
from minigan.ops import matmul_cuda
from minigan.training import graph
from minigan.training.graph import WARM_UP, GraphedStep

STEPS = 8
FIND_CUBLAS = matmul_cuda._library  # the stand-in for CuPy has another


def needs_cuda(test: Any) -> Any:
    """Needs a GPU."""
    problem = backend.cuda_problem()
    return pytest.mark.cuda(pytest.mark.skipif(problem is not None, reason=str(problem))(test))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in.Gpu]:
    monkeypatch.setattr("minigan.backend._precision", "float32")
    monkeypatch.setenv("MINIGAN_DEVICE", "cpu")
    with stand_in.installed(stand_in.Gpu()) as gpu:
        yield gpu


def make(system: str, channels: int = 2) -> Any:
    module = load_example(system)
    settings = dataclasses.replace(
        module.PRESETS["small"], image_size=(16, 16), base_channels=channels, z_size=5, batch_size=3
    )
    if hasattr(settings, "halve_every"):
        settings = dataclasses.replace(settings, halve_every=2)
    mg.manual_seed(3)
    return getattr(module, system.capitalize())(settings, "cuda")


def batch(step: int) -> mg.Tensor:
    values = np.random.default_rng(step).uniform(0, 1, (3, 16, 16, 3)).astype(np.float32)
    return mg.tensor(values, device="cuda")


def disturb(gpu: stand_in.Gpu) -> list[Any]:
    """Arrays of others, of the sizes that are free, full of a wrong number."""
    sizes = [size for size, blocks in gpu.pool.free.items() for _ in blocks]
    arrays = [gpu.empty(size // 4, np.float32) for size in sizes]
    for a in arrays:
        a.host.fill(77)
    return arrays


def trained(gpu: stand_in.Gpu, system: Any, step: Callable[..., Any]) -> list[Any]:
    """All that a run shows and keeps, after each of some steps.

    In between an epoch ends, and learning rates fall; others have memory meanwhile, which is theirs.
    """
    seen, others = [], []
    for number in range(STEPS):
        results = {name: float(value) for name, value in step(batch(number)).items()}
        assert all((a.host == 77).all() for a in others)
        others = disturb(gpu)
        if number == WARM_UP + 1:
            system.end_epoch()
        if number == WARM_UP + 2:
            system.generator_adam.lr *= 0.5
            system.discriminator_adam.lr *= 0.5
        state = {name: value.tobytes() for name, value in system.state_dict().items()}
        seen.append((list(results.items()), state, system.scalars(), mg.random.get_state()))
    return seen


# How many channels, and a kernel that there is in bf16 alone.
HALVES = {
    "cats": (2, "combine_moments"),
    "maxpool": (8, "scale_negative_16_bits"),
    "began": (8, "elu_gradient_16_bits"),
}


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in EXAMPLES), *((name, "bf16") for name in HALVES)]
)
def test_replayed_steps_are_pythons_to_the_last_bit(name: str, precision: str, gpu: stand_in.Gpu) -> None:
    mg.set_matmul_precision(precision)
    channels, kernel = HALVES[name] if precision == "bf16" else (2, "16_bits")
    system = make(name, channels)
    expected = trained(gpu, system, system.step)
    system, said = make(name, channels), []
    step = GraphedStep(system, "cuda", said.append)
    found = trained(gpu, system, step)
    assert (said, step.replayed) == ([], True)
    assert any(kernel in call.name for call in gpu.calls) == (precision == "bf16")
    for number, (one, two) in enumerate(zip(found, expected, strict=True)):
        assert one == two, f"step {number}"
    losses = [dict(results) for results, *_ in expected]
    assert losses[-1] != losses[-2]


def test_a_replay_is_four_calls(gpu: stand_in.Gpu) -> None:
    """The batch is copied, the numbers are set, the graph is launched; nothing goes between host and device."""
    system = make("cats")
    step = GraphedStep(system, "cuda", print)
    for number in range(WARM_UP + 1):
        step(batch(number))
    real = batch(9)
    gpu.calls.clear()
    step(real)
    assert [(call.kind, call.name) for call in gpu.calls] == [
        ("array", "copy"),
        ("kernel", "graph.cu: set_words"),
        ("graph", "launch"),
    ]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_going_back_to_a_checkpoint(precision: str, gpu: stand_in.Gpu) -> None:
    """A state that is loaded between replays: weights, moments, counters, random numbers, BEGAN's k.

    In bf16 the graph rounds the loaded weights, not those of its capture.
    """
    mg.set_matmul_precision(precision)
    system = make("began")
    step = GraphedStep(system, "cuda", print)
    for number in range(WARM_UP + 1):
        step(batch(number))
    tensors, scalars, numbers = system.state_dict(), system.scalars(), mg.random.get_state()
    runs = []
    for _ in range(2):
        runs.append([[float(v) for v in step(batch(number)).values()] for number in (5, 6)])
        system.load_state_dict(tensors, scalars)
        mg.random.set_state(numbers)
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_a_step_that_waits_goes_on_as_python_runs_it(gpu: stand_in.Gpu) -> None:
    system = make("simpsons")
    expected = trained(gpu, system, system.step)
    system, said = make("simpsons"), []
    update = system.generator_adam.step

    def waiting() -> None:  # where the discriminator is frozen
        system.generator.parameters()[0].numpy()
        update()

    system.generator_adam.step = waiting
    step = GraphedStep(system, "cuda", said.append)
    assert trained(gpu, system, step) == expected
    [line] = said
    assert "without a CUDA graph: CaptureUnsupported: cudaErrorStreamCaptureUnsupported: download" in line
    assert "\n" not in line
    assert all(p.requires_grad for p in system.discriminator.parameters())


def test_a_graph_of_operations_from_before_a_replay_is_out_of_date(gpu: stand_in.Gpu) -> None:
    system = make("maxpool")
    step = GraphedStep(system, "cuda", print)
    for number in range(WARM_UP + 1):
        step(batch(number))
    y = system.generator(system.generator.noise(2)).sum()
    step(batch(7))
    with pytest.raises(mg.GraphError, match="was changed in place"):
        y.backward()


def laid_out(values: np.ndarray, how: str) -> mg.Tensor:
    """A matrix as it lies in memory, as one that was transposed, or as every second column of a wider one."""
    if how == "turned":
        return mg.tensor(np.array(values.T, order="C"), device="cuda").transpose()
    if how == "strided":
        return mg.tensor(np.repeat(values, 2, axis=1), device="cuda")[:, ::2]
    return mg.tensor(values, device="cuda")


LAYOUTS = list(itertools.product(("plain", "turned", "strided"), repeat=2))
SIZES = [(3, 7, 5), (1, 7, 5), (3, 1, 5), (3, 7, 1), (1, 7, 1), (4, 4, 4)]


def check_products(dtype: str, layouts: tuple[str, str]) -> None:
    """Products of a graph, which CuPy does not capture: those of the matrices as they are when it is launched."""
    cuda, rng = backend.cupy().cuda, np.random.default_rng(0)
    for m, k, n in SIZES:
        values = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        with cuda.Stream() as stream:
            a, b = map(laid_out, values, layouts)
            (a @ b).numpy()  # what the libraries make and keep, they make here, and not in the capture
            stream.begin_capture()
            y = a @ b
            graph = stream.end_capture()
            a.data[...] = a.data * 3
            graph.launch(stream)
            found = y.numpy()
        assert found.shape == (m, n)
        assert found.dtype == dtype
        # A sum of k products, each rounded, and so is each partial sum.
        allowed = (k + 3) * np.finfo(dtype).eps * (abs(3 * values[0]) @ abs(values[1]))
        assert (abs(found - 3.0 * (values[0].astype(np.float64) @ values[1])) <= allowed).all(), (m, k, n)


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_in_a_graph(dtype: str, layouts: tuple[str, str], gpu: stand_in.Gpu) -> None:
    check_products(dtype, layouts)


@needs_cuda
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_in_a_graph_on_a_gpu(dtype: str, layouts: tuple[str, str]) -> None:
    check_products(dtype, layouts)


@needs_cuda
@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in EXAMPLES), ("cats", "tf32"), ("cats", "bf16")]
)
def test_replayed_steps_on_a_gpu(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if precision != "float32" and backend.cuda_architecture("cuda") < 80:
        pytest.skip(f"{precision} is for GPUs from sm_80 on")
    monkeypatch.setattr("minigan.backend._precision", precision)
    system, said = make(name), []
    steps = GraphedStep(system, "cuda", said.append), make(name).step
    found = []
    for step in steps:
        mg.manual_seed(5)
        found.append([{key: float(value) for key, value in step(batch(i)).items()} for i in range(WARM_UP + 2)])
    assert (said, steps[0].replayed) == ([], True)
    assert found[0] == found[1]


def test_what_cublas_refuses_ends_the_capture(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in.Cublas, "cublasGemmEx", lambda *_: 13)
    system, said = make("maxpool"), []
    step = GraphedStep(system, "cuda", said.append)
    for number in range(WARM_UP + 2):
        step(batch(number))
    [line] = said
    assert "CaptureError: cuBLAS in a capture: status 13, expected 0" in line
    assert not step.replayed


# As cublas_api.h declares them; the product is computed at once, in the simplest way.
CUBLAS = """
extern "C" int cublasSetStream_v2(void* handle, void* stream) { return handle || stream; }
template <class T>
int multiply(int ta, int tb, int m, int n, int k, T alpha, const T* a, int lda, const T* b, int ldb, T beta, T* c,
             int ldc) {
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      T sum = 0;
      for (int l = 0; l < k; l++)
        sum += (ta ? a[l + i * lda] : a[i + l * lda]) * (tb ? b[j + l * ldb] : b[l + j * ldb]);
      c[i + j * ldc] = alpha * sum + (beta == 0 ? 0 : beta * c[i + j * ldc]);
    }
  return 0;
}
extern "C" int cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int kind,
                            int lda, const void* b, int kind_b, int ldb, const void* beta, void* c, int kind_c,
                            int ldc, int compute, int algorithm) {
  if (kind_b != kind || kind_c != kind || algorithm != -1) return 7;
  if (kind == 0 && compute == 68)
    return multiply(ta, tb, m, n, k, *(const float*)alpha, (const float*)a, lda, (const float*)b, ldb,
                    *(const float*)beta, (float*)c, ldc);
  if (kind == 1 && compute == 70)
    return multiply(ta, tb, m, n, k, *(const double*)alpha, (const double*)a, lda, (const double*)b, ldb,
                    *(const double*)beta, (double*)c, ldc);
  return 15;
}
"""


@dataclasses.dataclass(frozen=True)
class CudaOf:
    """cupy.cuda, as far as the way to cuBLAS goes: `cublas` is a module that was loaded from a shared library."""

    path: Path

    @property
    def cublas(self) -> Any:
        return SimpleNamespace(__file__=str(self.path))


def test_cublas_is_called_as_its_header_says(
    gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cublas.cpp").write_text(CUBLAS)
    library = tmp_path / "cublas.so"
    subprocess.run([builder.compiler(), "-shared", "-fPIC", "-o", library, tmp_path / "cublas.cpp"], check=True)
    monkeypatch.setattr(matmul_cuda, "_library", lambda cuda: FIND_CUBLAS(CudaOf(library)))
    rng = np.random.default_rng(0)
    as_they_lie = itertools.product(("plain", "turned"), repeat=2)  # copies would be made when a graph is launched
    for dtype, layouts, (m, k, n) in itertools.product(("float32", "float64"), as_they_lie, SIZES):
        values = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        a, b = (laid_out(one, how) for one, how in zip(values, layouts, strict=True))
        stream = backend.cupy().cuda.Stream()
        stream.begin_capture()
        y = a @ b
        stream.end_capture()
        allowed = (k + 3) * np.finfo(dtype).eps * (abs(values[0]) @ abs(values[1]))
        assert (abs(y.data.host - values[0].astype(np.float64) @ values[1]) <= allowed).all(), (layouts, m, k, n)


def test_where_cublas_is_not_found_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(capture.CaptureError, match=r"cuBLAS in a capture: .*nowhere\.so"):
        FIND_CUBLAS(CudaOf(tmp_path / "nowhere.so"))


def test_only_matrices_are_multiplied_in_a_graph(gpu: stand_in.Gpu) -> None:
    a, b = mg.tensor(np.ones((2, 3, 4)), device="cuda"), mg.tensor(np.ones((2, 4, 5)), device="cuda")
    with backend.cupy().cuda.Stream() as stream:
        stream.begin_capture()
        with pytest.raises(capture.CaptureError, match=r"expected two matrices of one dtype, got \(2, 3, 4\)"):
            a @ b
        stream.end_capture()


def test_more_numbers_than_a_graph_has(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "WORDS", 4)
    system, said = make("anime"), []
    step = GraphedStep(system, "cuda", said.append)
    for number in range(WARM_UP + 2):
        step(batch(number))
    assert len(said) == 1
    assert "a graph has 4 numbers that change" in said[0]


def test_where_there_are_no_graphs(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    step = GraphedStep(make("anime"), "cpu", said.append)
    assert not step.replayed
    monkeypatch.setattr(graph.debugging, "checking", True)
    GraphedStep(make("anime"), "cuda", said.append)
    assert said == [
        "the step runs without a CUDA graph: device cpu has no graphs",
        "the step runs without a CUDA graph: MINIGAN_DEBUG looks at every value",
    ]


def test_its_stream_is_made_on_its_gpu(gpu: stand_in.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy refuses a stream where another GPU is the current one."""
    cuda, current, made_on = backend.cupy().cuda, ["cuda"], []

    @contextmanager
    def on_device(device: str) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def stream(make: Callable[[], Any] = cuda.Stream) -> Any:
        made_on.append(current[-1])
        return make()

    monkeypatch.setattr(graph, "on_device", on_device)
    monkeypatch.setattr(cuda, "Stream", stream)
    GraphedStep(make("anime"), "cuda:1", print)
    assert made_on == ["cuda:1"]


def test_a_batch_of_another_size_is_refused(gpu: stand_in.Gpu) -> None:
    step = GraphedStep(make("maxpool"), "cuda", print)
    for number in range(WARM_UP + 1):
        step(batch(number))
    with pytest.raises(ValueError, match=r"expected a batch of \(3, 16, 16, 3\), as captured, got \(2, 16, 16, 3\)"):
        step(mg.tensor(np.zeros((2, 16, 16, 3), np.float32), device="cuda"))


@pytest.mark.parametrize("name", ["cats", "began"])
def test_a_run_with_a_graph_is_the_run_without(
    name: str, train_example: Callable[..., None], gpu: stand_in.Gpu, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole program: batches, samples, an average, checkpoints, and a resume with the other."""
    options = "--device", "cuda", "--preset", "small", "--average", "0.9"
    train_example(name, *options, "--out", "without")
    capsys.readouterr()
    train_example(name, *options, "--out", "with", "--graph", "--steps", "6")
    launched = [call for call in gpu.calls if call.kind == "graph"]
    assert len(launched) == 6 - WARM_UP
    assert "without a CUDA graph" not in capsys.readouterr().out
    train_example(name, "--device", "cuda", "--out", "with", "--resume", "--steps", "7")
    found = []
    for run in (Path("without"), Path("with")):
        row = (run / "log.csv").read_text().splitlines()[-1].rpartition(",")[0]  # without its speed
        tensors, state = serialization.load_checkpoint(run / "checkpoints" / "000007.safetensors")
        weights = {name: value.tobytes() for name, value in tensors.items()}
        pixels = (run / "samples" / "000007.png").read_bytes()
        found.append((row, weights, state["random"], state["system"], pixels))
    assert found[0] == found[1]


def test_a_run_without_a_gpu_says_that_there_is_no_graph(
    train_example: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    train_example("anime", "--device", "cpu", "--graph", "--steps", "1")
    assert "the step runs without a CUDA graph: device cpu has no graphs\n" in capsys.readouterr().out
