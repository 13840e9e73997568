"""The comparison of kernels.py for pytest-benchmark, a layer a system: for its statistics, history and --compare.

    pytest benchmarks/test_kernels.py --benchmark-group-by=param:problem,param:name
    pytest benchmarks/test_kernels.py --benchmark-autosave        # and later --benchmark-compare

Not part of the test suite, which collects tests/ only. On a GPU it times calls from Python up to the end of their work:
for kernels alone, by events and graphs, use kernels.py.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import convolutions as conv
import pytest
from layers import Problem, problems
from peer import Peer
from timing import CudaTimer

from minigan.backend import cuda_index, cupy, default_device, is_cuda
from minigan.cpu import thread_count

torch = pytest.importorskip("torch", reason="the peer is PyTorch: pip install 'minigan[bench]'")

LAYERS = ["cats D3", "anime D2", "maxpool G2", "began D5"]
CPU_BATCH = 2
SINGLE = conv.PRECISIONS["float32"]


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    """Where to measure: the default device, with CuPy and PyTorch on one stream if it is a GPU."""
    chosen = str(default_device())
    if chosen == "emulated":
        pytest.skip("the emulator's times say nothing about a GPU")
    torch.set_num_threads(thread_count())
    with ExitStack() as stack:
        if is_cuda(chosen):
            stack.enter_context(CudaTimer(cupy(), torch, cuda_index(chosen)).active())
        yield chosen


def problem_of(layer: str, device: str) -> Problem:
    [found] = problems([layer.split()[0]], CPU_BATCH if device == "cpu" else None, layer)
    return found


def minigan_call(problem: Problem, name: str, device: str, given: conv.Operands) -> Callable[[], Any]:
    if device == "cpu":
        return conv.on_cpu(problem.geometry, name, given)
    call = conv.on_rung(
        problem.geometry, name, given, device, conv.chosen_rung(problem.geometry, name, device, "float32")
    )
    return lambda: (call(), cupy().cuda.get_current_stream().synchronize())[0]


def torch_call(problem: Problem, name: str, device: str, side: Peer) -> Callable[[], Any]:
    call = side.runner(name)
    return call if device == "cpu" else lambda: (call(), torch.cuda.current_stream().synchronize())[0]


@pytest.mark.parametrize("framework", ["minigan", "PyTorch"])
@pytest.mark.parametrize("name", conv.PASSES)
@pytest.mark.parametrize("problem", LAYERS)
def test_convolution(benchmark: Any, device: str, problem: str, name: str, framework: str) -> None:
    case = problem_of(problem, device)
    given = conv.upload(conv.draw(case.geometry), device)
    judge = conv.judge(case.geometry, name, given, 1e9 if device == "cpu" else None)
    if framework == "minigan":
        call = minigan_call(case, name, device, given)
        precision = conv.cpu_precision(case.geometry, name) if device == "cpu" else SINGLE
        assert judge.worst(call(), precision) <= 1
    else:
        side = Peer(torch, case.geometry, SINGLE, given)
        call = torch_call(case, name, device, side)
        assert judge.worst(side.result(call(), name), SINGLE) <= 30  # it may choose Winograd's algorithm
    benchmark.extra_info["operations"] = conv.operations(case.geometry)
    benchmark(call)
