"""Checkpoint files: every array layout and every number comes back exactly, or is refused with a reason."""

import math
import os
import struct
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigan as mg
from minigan import serialization
from minigan.serialization import CheckpointError


def _layouts(folder: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 8)).astype(np.float32)
    volume = rng.standard_normal((3, 4, 5)).astype(np.float32)
    mapped = np.memmap(folder / "mapped", np.float32, "w+", shape=(6, 8))
    mapped[:] = x
    readonly = x.copy()
    readonly.flags.writeable = False
    unaligned = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    odd = np.array([np.nan, -0.0, np.inf, -np.inf, np.float32(1e-45), np.finfo(np.float32).max], np.float32)
    return {
        "plain": x,
        "transposed": x.T,
        "axes": volume.transpose(2, 0, 1),
        "strided": x[::2, 1::3],
        "reversed": x[::-1],
        "both reversed": x[::-1, ::-2],
        "fortran": np.asfortranarray(x),
        "broadcast": np.broadcast_to(x[:1], (5, 8)),
        "broadcast scalar": np.broadcast_to(np.float32(3), (2, 3)),
        "float64": x.astype(np.float64)[:, 2:5],
        "float16": x.astype(np.float16).T,
        "scalar": np.array(2.5, np.float32),
        "scalar view": x[2, 3:4].reshape(()),
        "empty": np.empty((0, 3), np.float32),
        "empty inside": np.empty((3, 0, 2), np.float64),
        "big-endian": x.astype(">f4"),
        "big-endian transposed": x.astype(">f8").T,
        "integers": np.arange(7, dtype=np.int64)[::3],
        "unsigned": np.array([0, 2**64 - 1], np.uint64),
        "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[..., 1],
        "booleans": x > 0,
        "readonly": readonly,
        "memory-mapped": mapped,
        "memory-mapped, reversed": mapped[:, ::-1],
        "unaligned": unaligned,
        "a field of records": rng.integers(0, 99, 12).astype(np.int32).view([("a", "i4"), ("b", "i4")])["b"],
        "not numbers and signs": odd,
        "a name with / and \"quotes\", ü, 日本, \n and \0": x,
        "": x,
    }  # fmt: skip


def test_every_layout_comes_back_exactly(tmp_path: Path) -> None:
    arrays = _layouts(tmp_path)
    before = {name: array.copy() for name, array in arrays.items()}
    path = tmp_path / "a.safetensors"
    serialization.save_checkpoint(path, arrays, {})
    loaded, _ = serialization.load_checkpoint(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert loaded[name].dtype == native.dtype
        assert loaded[name].shape == array.shape, name
        assert loaded[name].tobytes() == native.tobytes(), name  # bits, so that NaN and -0.0 count too
        assert loaded[name].flags.writeable, name
        assert array.tobytes() == before[name].tobytes(), "saving changes nothing"


@pytest.mark.skipif(
    tuple(map(int, metadata.version("safetensors").split(".")[:2])) < (0, 8),
    reason="safetensors before 0.8 copies arrays",
)
def test_safetensors_by_itself_writes_other_layouts_in_the_wrong_order(tmp_path: Path) -> None:
    # Why `save_checkpoint` makes every array contiguous first.
    import safetensors.numpy

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (x.T, x[:, ::-1], np.asfortranarray(x)):
        alone = safetensors.numpy.load(safetensors.numpy.save({"x": array}))["x"]
        assert not np.array_equal(alone, array)
        serialization.save_checkpoint(tmp_path / "a", {"x": array}, {})
        assert np.array_equal(serialization.load_checkpoint(tmp_path / "a")[0]["x"], array)


def _state() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    doubles = struct.unpack("<2000d", rng.bytes(16_000))
    return {
        "step": 3,
        "random": np.random.PCG64(5).state,  # whole numbers of 128 bits
        "key": [0, -1, 2**63, 2**64 - 1, -(2**64), 2**1000 + 1],
        "rate": 0.1,
        "doubles": [x for x in doubles if math.isfinite(x)],
        "extremes": [5e-324, 1.7976931348623157e308, 2.0**-1074, -0.0, 1e16, 1e22, 0.1 + 0.2, 1 / 3],
        "numpy": np.float64(0.1),
        "texts": ["", "ü 日本 😀", '"\\\n\0', "\ud800"],
        "others": [None, True, False, [], {}, [[[]]], {"": {"a": 1}}],
    }


def _same(a: Any, b: Any) -> bool:
    """Equal, and of the same types: 1, 1.0 and True are three things, 0.0 and -0.0 two."""
    if isinstance(a, float):
        return isinstance(b, float) and struct.pack("<d", a) == struct.pack("<d", b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def test_every_number_of_the_state_comes_back_exactly(tmp_path: Path) -> None:
    serialization.save_checkpoint(tmp_path / "a", {}, _state())
    assert _same(serialization.load_checkpoint(tmp_path / "a")[1], _state())
    assert not _same(1, 1.0)
    assert not _same([0.0], [-0.0])


def test_the_state_of_the_random_numbers_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    mg.manual_seed(7)
    mg.random.normal((5,))
    serialization.save_checkpoint(tmp_path / "a", {}, {"random": mg.random.get_state()})
    expected = mg.random.normal((9,)).numpy()
    mg.manual_seed(8)
    mg.random.set_state(serialization.load_checkpoint(tmp_path / "a")[1]["random"])
    assert np.array_equal(mg.random.normal((9,)).numpy(), expected)


def _deep() -> list[Any]:
    inner: list[Any] = []
    for _ in range(100_000):
        inner = [inner]
    return inner


REFUSED_STATES = [
    ({"loss": math.nan}, "not JSON compliant"),
    ({"loss": [-math.inf]}, "not JSON compliant"),
    ({"size": (1, 2)}, "a tuple or a key that is no text"),
    ({"epochs": {1: 2}}, "a tuple or a key that is no text"),
    ({"step": np.int64(3)}, "int64 is not JSON serializable"),
    ({"x": np.zeros(2)}, "ndarray is not JSON serializable"),
    ({"format": 1}, "cannot have the key format"),
    ({"deep": _deep()}, "(recursion|Stack overflow)"),
    ({"order": list(range(10**9, 10**9 + 200_000))}, "more than 2,097,152; save arrays as tensors"),
    ({"key": 10**5000}, "4300 digits"),
]
REFUSED_TENSORS = [
    ({"w": np.array([object()])}, "object"),
    ({"w": np.zeros(2, np.complex128)}, "complex128"),
    ({"w": np.array(["text"])}, "str"),
    ({"w": np.zeros(2, "M8[s]")}, "dtype 'M'"),
    ({"w": np.zeros(2, "f4, i4")}, "void"),
    ({"__metadata__": np.zeros(2, np.float32)}, "named __metadata__"),
    ({"\ud800": np.zeros(2, np.float32)}, "surrogates not allowed"),
    ({"x" * 3_000_000: np.zeros(2, np.float32)}, "more than 2,097,152"),
]


@pytest.mark.parametrize(
    ("tensors", "state", "reason"),
    [*(({}, state, reason) for state, reason in REFUSED_STATES), *((t, {}, reason) for t, reason in REFUSED_TENSORS)],
    ids=[reason for _, reason in REFUSED_STATES + REFUSED_TENSORS],
)
def test_what_would_not_come_back_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], state: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: cannot be written: .*{reason}"):
        serialization.save_checkpoint(tmp_path / "a.safetensors", tensors, state)
    assert os.listdir(tmp_path) == []


def test_a_network_goes_to_a_file_and_back(tmp_path: Path) -> None:
    def network() -> mg.nn.Sequential:
        return mg.nn.Sequential(mg.nn.Conv2d(3, 4, 3), mg.nn.BatchNorm2d(4), mg.nn.Flatten(), mg.nn.Linear(16, 1))

    one, other = network(), network()
    mg.save(tmp_path / "net.safetensors", one.state_dict())
    other.load_state_dict(mg.load(str(tmp_path / "net.safetensors")))
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
