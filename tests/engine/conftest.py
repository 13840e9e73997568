"""Fixtures of the engine's tests: the devices that they run on."""

import pytest

from minigan import backend

CUDA = pytest.mark.cuda, pytest.mark.skipif(backend.cuda_problem() is not None, reason=str(backend.cuda_problem()))

DEVICES = ["cpu", "emulated", pytest.param("cuda", marks=CUDA)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each device that the ops are tested on, in turn; with convolutions in float32, where a GPU would take TF32."""
    monkeypatch.setattr(backend, "_precision", "float32")
    return request.param
