"""What the tests of the benchmarks share."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def one_thread_of_pytorch() -> Iterator[None]:
    """Benchmarks give PyTorch all processors; behind them it has one thread again, as tests/conftest.py has it."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
