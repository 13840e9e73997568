"""Counters of blocks: one set a stream, zeros before and after each launch, whatever happens."""

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from minigan.kernels import KernelError

from minigan import block_counters as module
from minigan.block_counters import LIMIT, block_counters
from minigan.ops.column_sums import column_sums


class FakeStream(SimpleNamespace):
    def is_capturing(self):
        return self.capturing


def test_each_stream_has_its_own_and_a_graph_fills_what_is_new(monkeypatch):
    stream = FakeStream(ptr=1, capturing=False)
    xp = ModuleType("cupy")
    xp.zeros, xp.cuda = np.zeros, SimpleNamespace(get_current_stream=lambda: stream)
    monkeypatch.setattr(module, "array_module", lambda device: xp)
    monkeypatch.setattr(module, "_counters", {})

    def of(device, ptr, capturing=False):
        stream.ptr, stream.capturing = ptr, capturing
        with block_counters(device, 7) as zeros:
            assert zeros.shape == (7,)
            assert not zeros.any()
            return zeros.ctypes.data

    first = of("cuda", 1)
    assert of("cuda", 1) == of("cuda", 1, capturing=True) == first
    assert len({first, of("cuda", 2), of("cuda:1", 1)}) == 3
    of("cuda", 3, capturing=True)
    assert {key[2] for key in module._counters} == {1, 2}


def test_after_a_launch_that_broke_off_they_are_zeros_again():
    """Some blocks had counted; the next launch must not take one of its first blocks for the last."""
    x = np.random.default_rng(0).standard_normal((3001, 64)).astype(np.float32)
    expected = column_sums("emulated", x, 1.0)
    with pytest.raises(KernelError), block_counters("emulated", 3) as counters:
        counters[...] = 1
        raise KernelError("some blocks have counted")
    np.testing.assert_array_equal(column_sums("emulated", x, 1.0), expected)


def test_none_are_none_and_too_many_are_refused():
    with block_counters("emulated", 0) as counters:
        assert counters is None
    with pytest.raises(ValueError, match=r"at most 65536 counters, got 65537"), block_counters("emulated", LIMIT + 1):
        pass
