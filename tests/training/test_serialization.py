"""Checkpoint files: every array layout comes back exactly, every damage is seen, and a failed save harms nothing."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import minigan as mg
from minigan import serialization
from minigan.serialization import CheckpointError


def _layouts() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    return {
        "plain": x,
        "transposed": x.T,
        "strided": x[::2, 1::3],
        "reversed": x[::-1],
        "fortran": np.asfortranarray(x),
        "broadcast": np.broadcast_to(x[:1], (5, 8)),
        "float64": x.astype(np.float64)[:, 2:5],
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 3), np.float32),
        "big-endian": x.astype(">f4"),
        "integers": np.arange(7, dtype=np.int64)[::3],
    }


def test_every_layout_comes_back_exactly(tmp_path: Path) -> None:
    # safetensors 0.8.0 by itself writes the memory of "transposed" in the wrong order.
    arrays = _layouts()
    state = {"step": 3, "random": {"key": [1, 2**64 - 1]}, "rate": 0.1}
    serialization.save_checkpoint(tmp_path / "a.safetensors", arrays, state)
    loaded, found = serialization.load_checkpoint(tmp_path / "a.safetensors")
    assert found == state
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(loaded[name], array), name


def test_every_truncation_and_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    serialization.save_checkpoint(path, {"w": np.arange(3, dtype=np.float32)}, {"step": 1})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            serialization.load_checkpoint(path)
    seen = 0
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            arrays, state = serialization.load_checkpoint(path)
        except CheckpointError:
            seen += 1
        else:
            # Only blanks that pad the header may differ without changing anything that is read.
            assert state == {"step": 1}
            assert np.array_equal(arrays["w"], np.arange(3, dtype=np.float32))
    assert seen > 0.95 * 8 * len(content)


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    import safetensors.numpy

    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of minigan"):
        serialization.load_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        serialization.load_checkpoint(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.safetensors"
    serialization.save_checkpoint(path, {"w": np.zeros(3, np.float32)}, {"step": 1})

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            serialization.save_checkpoint(path, {"w": np.ones(3, np.float32)}, {"step": 2})
    assert serialization.load_checkpoint(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        serialization.save_checkpoint(tmp_path / "missing" / "a.safetensors", {"w": np.zeros(1, np.float32)}, {})


def test_a_network_goes_to_a_file_and_back(tmp_path: Path) -> None:
    def network() -> mg.nn.Sequential:
        return mg.nn.Sequential(mg.nn.Conv2d(3, 4, 3), mg.nn.BatchNorm2d(4), mg.nn.Flatten(), mg.nn.Linear(16, 1))

    one, other = network(), network()
    mg.save(tmp_path / "net.safetensors", one.state_dict())
    other.load_state_dict(mg.load(str(tmp_path / "net.safetensors")))
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
