"""What all tests share: the benchmarks beside them, the threads of other libraries, what is done without a compiler."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The benchmarks are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

# PyTorch's and OpenBLAS's own threads wait for each other without sleep, which takes more of the processors than all
# that the tests let them compute. They ask once, when they are loaded. minigan's threads are as many as ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def compiler_problem() -> str | None:
    """Why the emulator cannot build kernels here."""
    from minigan.kernels import EmulatorError
    from minigan.kernels.emulator import builder

    try:
        builder.compiler()
    except EmulatorError as error:
        return str(error)
    return None


def pytest_report_header() -> str | None:
    problem = compiler_problem()
    return problem and f"tests that run kernels on the CPU are skipped: {problem}"


@pytest.fixture(autouse=True, scope="session")
def _tests_that_want_a_compiler_are_skipped_without() -> Iterator[None]:
    problem = compiler_problem()
    with pytest.MonkeyPatch.context() as patch:
        if problem:
            patch.setattr("minigan.kernels.emulator.builder.compiler", lambda: pytest.skip(problem))
        yield
