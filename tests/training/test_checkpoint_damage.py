"""Checkpoints that are damaged, or made to do harm: refused with one kind of error, and with little memory."""

import copy
import hashlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigan import serialization
from minigan.serialization import MAX_HEADER, CheckpointError

TENSORS = {
    "generator/0.weight": np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32),
    "generator/0.bias": np.arange(3, dtype=np.float32),
    "generator/1.weight": np.arange(3, dtype=np.float32)[::-1],
    "count": np.array(7, np.int64),
    "mean": np.linspace(0, 1, 6).reshape(2, 3),
    "mask": np.arange(9) % 2 == 0,
    "empty": np.empty((0, 3), np.float32),
}
STATE = {"step": 3, "random": {"key": [1, 2**64 - 1], "name": "Philox"}, "rate": 0.1}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small checkpoint: 1 to 2 KB."""
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    serialization.save_checkpoint(path, TENSORS, STATE)
    content = path.read_bytes()
    assert 1000 < len(content) < 2000
    return content


@pytest.fixture
def accepts(tmp_path: Path) -> Callable[[bytes], bool]:
    """The function accepts(content): whether such a file is loaded, and then it has to be exactly what was saved.

    False where it raises CheckpointError with its path; anything else fails the test.
    """
    path = tmp_path / "a.safetensors"

    def accepts(content: bytes) -> bool:
        path.unlink(missing_ok=True)  # a new file: some disks wait when an old one is written over
        path.write_bytes(content)
        problem = ""
        try:
            tensors, state = serialization.load_checkpoint(path)
        except CheckpointError as error:
            problem = str(error)
        if problem:
            assert problem.startswith(f"{path}: ")
            return False
        assert state == STATE
        assert tensors.keys() == TENSORS.keys()
        for name, expected in TENSORS.items():
            found = tensors[name]
            assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
        return True

    return accepts


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join(header: dict[str, Any] | str, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def signed(text: str) -> dict[str, str]:
    """The metadata of a file without tensors, with any text for its state, and a checksum that fits."""
    return {"minigan": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


# ---- bytes


def test_every_truncation_and_every_extension_is_refused(content: bytes, accepts: Callable[[bytes], bool]) -> None:
    assert accepts(content)
    for length in range(len(content)):
        assert not accepts(content[:length]), length
    for more in (b"\0", b" ", content[-8:], content):
        assert not accepts(content + more)


def test_every_flipped_bit_is_refused(content: bytes, accepts: Callable[[bytes], bool]) -> None:
    damaged = bytearray(content)
    for bit in range(8 * len(content)):
        damaged[bit // 8] ^= 1 << bit % 8
        assert not accepts(damaged), bit
        damaged[bit // 8] ^= 1 << bit % 8
    assert accepts(damaged)


# ---- headers that were changed on purpose

Header = dict[str, Any]
Mutation = Callable[[random.Random, Header, bytes], bytes]
ODD_NUMBERS = [-1, 0, 1, 2, 7, 12, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e999]
ODD = [*ODD_NUMBERS, None, True, "", "F32", "\0", [], {}, [[]], {"a": {}}, "x" * 5000, [1] * 100]
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "U64", "BOOL", "C64", "F8_E4M3", "F4", "f32", "S8", ""]


def names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def change_offsets(rng: random.Random, header: Header, data: bytes) -> bytes:
    offsets = header[rng.choice(names(header))]["data_offsets"]
    rng.choice([
        lambda: offsets.reverse(),
        lambda: offsets.append(rng.choice(ODD)),
        lambda: offsets.pop(),
        lambda: offsets.__setitem__(rng.randrange(2), rng.choice(ODD)),
        lambda: offsets.__setitem__(rng.randrange(2), offsets[rng.randrange(2)] + rng.randint(-9, 9)),
        lambda: offsets.__setitem__(slice(None), [x + rng.choice([-4, 4, 8, 10**6]) for x in offsets]),
    ])()  # fmt: skip
    return join(header, data)


def change_shape(rng: random.Random, header: Header, data: bytes) -> bytes:
    shape = header[rng.choice(names(header))]["shape"]
    rng.choice([
        lambda: shape.reverse(),
        lambda: shape.append(rng.choice([1, *ODD])),
        lambda: shape.insert(0, rng.choice([0, 1, 2**62])),
        lambda: shape.clear(),
        lambda: shape.extend([1] * rng.randrange(100)),
        lambda: shape.__setitem__(slice(0, 1), [rng.choice(ODD)]),
    ])()  # fmt: skip
    return join(header, data)


def change_dtype(rng: random.Random, header: Header, data: bytes) -> bytes:
    header[rng.choice(names(header))]["dtype"] = rng.choice([*DTYPES, *ODD])
    return join(header, data)


def change_names(rng: random.Random, header: Header, data: bytes) -> bytes:
    one, other = rng.sample(names(header), 2)
    if rng.random() < 0.5:
        header[one], header[other] = header[other], header[one]
    else:
        header[rng.choice(["", "x", one + "\0", one.upper(), "é" * 300, "minigan"])] = header.pop(one)
    return join(header, data)


def change_entries(rng: random.Random, header: Header, data: bytes) -> bytes:
    name = rng.choice([*names(header), "__metadata__"])
    rng.choice([
        lambda: header.pop(name),
        lambda: header.__setitem__(name, rng.choice(ODD)),
        lambda: header[name].pop(rng.choice(list(header[name]))),
        lambda: header.__setitem__("more", {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        lambda: header.__setitem__("more", copy.deepcopy(header[name])),
    ])()  # fmt: skip
    return join(header, data)


def change_metadata(rng: random.Random, header: Header, data: bytes) -> bytes:
    metadata = header["__metadata__"]
    state = json.loads(metadata["minigan"])
    rng.choice([
        lambda: metadata.__setitem__("sha256", rng.choice(["", "0" * 64, metadata["sha256"].upper(), 1, None])),
        lambda: metadata.__setitem__("minigan", json.dumps({**state, "step": rng.randrange(4, 99)}, sort_keys=True)),
        lambda: metadata.__setitem__("minigan", metadata["minigan"] + " "),
        lambda: metadata.__setitem__("minigan", rng.choice(ODD)),
        lambda: metadata.__setitem__("more", "x"),
        lambda: metadata.__setitem__(*metadata.popitem()[::-1]),
        lambda: metadata.update(signed(rng.choice(['{"format": 1}', "[]", "null", "{}"]))),
    ])()  # fmt: skip
    return join(header, data)


def repeat_keys(rng: random.Random, header: Header, data: bytes) -> bytes:
    text = json.dumps(header)
    key = rng.choice(re.findall(r'"[\w/.]+": (?=[\[{"])', text))
    again = rng.choice(["1", "null", "[]", '"F32"', "[3]", json.dumps(header[rng.choice(names(header))])])
    return join(text.replace(key, f"{key}{again}, {key}", 1), data)


def change_bytes(rng: random.Random, header: Header, data: bytes) -> bytes:
    content = bytearray(join(header, data))
    at, count = rng.randrange(len(content)), rng.randint(1, 8)
    new = rng.choice([rng.randbytes(count), b"", b"\0" * count, content[at : at + count] * 2, b'{"', b"[" * count])
    content[at : at + count] = new
    return bytes(content) if content != join(header, data) else bytes(content[:-1])


def change_length(rng: random.Random, header: Header, data: bytes) -> bytes:
    content = join(header, data)
    length = int.from_bytes(content[:8], "little")
    exact = [0, 1, 2, 8, length - 1, length + 1, len(content) - 8, len(content), MAX_HEADER, MAX_HEADER + 1]
    large = [100_000_000, 100_000_001, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
    other = rng.choice([*exact, *large, rng.getrandbits(rng.randint(1, 64))])
    return struct.pack("<Q", other if other != length else 0) + content[8:]


def write_header_otherwise(rng: random.Random, header: Header, data: bytes) -> bytes:
    """The same header, as another program may write it."""
    order = rng.sample(list(header), len(header))
    text = json.dumps(
        {name: header[name] for name in order},
        indent=rng.choice([None, 0, 2, "\t"]),
        separators=rng.choice([(",", ":"), (", ", " :\r")]),
        ensure_ascii=rng.random() < 0.5,
    )
    return join(" " * rng.randrange(9) * (rng.random() < 0.1) + text + " " * rng.randrange(9), data)


# How many of each, and whether such a file says something else than the one that was saved.
MUTATIONS: dict[Mutation, tuple[int, bool]] = {
    change_offsets: (300, True),
    change_shape: (300, True),
    change_dtype: (200, True),
    change_names: (200, True),
    change_entries: (200, True),
    change_metadata: (200, True),
    repeat_keys: (200, True),
    change_bytes: (300, True),
    change_length: (100, True),
    write_header_otherwise: (100, False),
}


def mutants(mutation: Mutation, content: bytes) -> list[bytes]:
    """Files that differ from `content`, made by one kind of mutation, the same ones each time."""
    rng = random.Random(mutation.__name__)
    found: list[bytes] = []
    as_it_was = join(*split(content))
    while len(found) < MUTATIONS[mutation][0]:
        header, data = split(content)
        try:
            mutant = mutation(rng, header, data)
        except (AttributeError, LookupError, TypeError):  # it does not fit the entry that was drawn
            continue
        if mutant not in (content, as_it_was) or not MUTATIONS[mutation][1]:
            found.append(mutant)
    return found


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_changed_headers_are_refused(content: bytes, accepts: Callable[[bytes], bool], mutation: Mutation) -> None:
    for mutant in mutants(mutation, content):
        assert accepts(mutant) != MUTATIONS[mutation][1], mutant


def test_there_are_two_thousand_mutants() -> None:
    assert sum(count for count, _ in MUTATIONS.values()) >= 2000


REFUSED_STATES = {
    "": "Expecting value",
    "step": "Expecting value",
    '{"format": 1': "Expecting",
    "[]": "expected format 1",
    "null": "expected format 1",
    "1": "expected format 1",
    '"format"': "expected format 1",
    "{}": "expected format 1",
    '{"step": 3}': "expected format 1",
    '{"format": 2}': "expected format 1",
    '{"format": "1"}': "expected format 1",
    '{"format": [1]}': "expected format 1",
    '{"format": 1, "format": 1}': "a key comes twice",
    '{"format": 1, "a": {"b": [{"c": 1, "c": 2}]}}': "a key comes twice",
    '{"format": 1, "loss": NaN}': "expected finite numbers, got NaN",
    '{"format": 1, "loss": [Infinity]}': "got Infinity",
    '{"format": 1, "loss": -Infinity}': "got -Infinity",
    '{"format": 1, "loss": 1e999}': "got 1e999",
    '{"format": 1, "key": ' + "9" * 5000 + "}": "4300 digits",
    '{"format": 1, "deep": ' + "[" * 100_000: "(recursion|Stack overflow)",
    '{"a":' * 100_000: "(recursion|Stack overflow)",
    '{"format": 1} {}': "Extra data",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED_STATES.items(), ids=[text[:40] for text in REFUSED_STATES])
def test_a_wrong_state_is_refused_even_with_the_right_checksum(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(join({"__metadata__": signed('{"format": 1}')}, b""))
    assert serialization.load_checkpoint(path) == ({}, {})
    path.write_bytes(join({"__metadata__": signed(text)}, b""))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{reason}"):
        serialization.load_checkpoint(path)


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    import safetensors.numpy

    w = {"w": np.zeros(3, np.float32)}
    ours = signed('{"format": 1}')
    for metadata in (None, {}, {"format": "pt"}, {"minigan": ours["minigan"]}, {"sha256": ours["sha256"]}):
        safetensors.numpy.save_file(w, tmp_path / "a", metadata)
        with pytest.raises(CheckpointError, match="not a checkpoint of minigan"):
            serialization.load_checkpoint(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "text").write_bytes(b"not a checkpoint, but some lines of text\n" * 10)
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "zip": "its header claims",
        "picture": "its header claims",
        "text": "its header claims",
        "nothing": "its header claims 0 bytes, the file has 0",
        "folder": "not a regular file",
        "pipe": "not a regular file",
        "missing": "cannot be read: No such file or directory",
        "a\0b": "embedded null",
    }.items():
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / name))}: .*{reason}"):
            serialization.load_checkpoint(tmp_path / name)


def test_a_file_that_cannot_be_opened_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "a")

    (tmp_path / "a").touch()
    monkeypatch.setattr(serialization, "open", refused, raising=False)
    with pytest.raises(CheckpointError, match="a: cannot be read: Permission denied"):
        serialization.load_checkpoint(tmp_path / "a")


# ---- memory

LOAD_ALL = """
import sys, types
from pathlib import Path
sys.modules["minigan"] = package = types.ModuleType("minigan")
package.__path__ = [sys.argv[1]]
from minigan import serialization

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

folder = Path(sys.argv[2])
serialization.load_checkpoint(folder / "good")
before, refused = peak(), 0
for path in sorted(folder.glob("bad*")):
    try:
        serialization.load_checkpoint(path)
    except serialization.CheckpointError:
        refused += 1
print(refused, peak() - before)
"""


def hostile() -> dict[str, bytes]:
    """Headers that cost much memory to parse, as long as they may be; and ones that are longer."""
    room = MAX_HEADER - 200

    def filled(start: str, piece: str, end: str, room: int = room) -> str:
        return start + piece * (room // len(piece)) + end

    def numbered(piece: str) -> str:
        return "{" + ",".join(piece % i for i in range(room // (len(piece) + 5))) + "}"

    lists = filled("[", "[],", "[]]", room - 200)
    return {
        "blanks": join(" " * MAX_HEADER, b""),
        "lists": join(filled("[", "[],", "[]]"), b""),
        "dicts": join(filled("[", "{},", "{}]"), b""),
        "floats": join(filled("[", "1.5,", "1]"), b""),
        "deep": join("[" * MAX_HEADER, b""),
        "deeper": join('{"":' * (MAX_HEADER // 4), b""),
        "same-keys": join(filled("{", '"":{},', '"":1}'), b""),
        "keys": join(numbered('"%x":0'), b""),
        "metadata": join('{"__metadata__":' + numbered('"%x":""') + "}", b""),
        "tensors": join(numbered('"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'), b""),
        "dimensions": join(filled('{"w":{"dtype":"U8","data_offsets":[0,1],"shape":[', "1,", "1]}}"), b"1"),
        "state-of-lists": join({"__metadata__": signed(lists)}, b""),
        "state-of-dicts": join({"__metadata__": signed(lists.replace("[]", "{}"))}, b""),
        "long-lists": join(filled("[", "[],", "[]]", 30_000_000), b""),
        "claims-it-all": struct.pack("<Q", 2**64 - 1) + b"{}",
        "claims-too-much": struct.pack("<Q", 99_000_000) + b"{}",
        "huge-tensor": join({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}, b"1"),
        "huge-empty-tensor": join({"w": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, b""),
    }


def test_no_damaged_checkpoint_takes_much_memory(tmp_path: Path, content: bytes) -> None:
    files = hostile()
    for mutation, (_, harmful) in MUTATIONS.items():
        if harmful:
            files |= {f"{mutation.__name__}-{i}": mutant for i, mutant in enumerate(mutants(mutation, content))}
    for name, damaged in files.items():
        (tmp_path / f"bad-{name}").write_bytes(damaged)
    with open(tmp_path / "bad-sparse", "wb") as file:  # 8 GiB that take no room, all of them a header
        file.write(struct.pack("<Q", 2**32) + b"{")
        file.truncate(2**33)
    (tmp_path / "good").write_bytes(content)
    package = Path(serialization.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(package), str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    refused, growth = map(float, done.stdout.split())
    assert refused == len(files) + 1
    assert growth < 200, "MiB"
