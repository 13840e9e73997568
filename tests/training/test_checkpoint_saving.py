"""Saving a checkpoint while things go wrong: killed processes, full disks, failing calls. The old file stays, whole."""

import errno
import fcntl
import io
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minigan import serialization
from minigan.serialization import CheckpointError

# The rest of minigan is not needed, and would take most of the time.
ALONE = f"""
import os, sys, time, types
from pathlib import Path
sys.modules["minigan"] = package = types.ModuleType("minigan")
package.__path__ = [{str(Path(serialization.__file__).parent)!r}]
import numpy as np
from minigan import serialization
folder, step = Path(sys.argv[1]), int(sys.argv[2])
"""
SAVES_FOREVER = (
    ALONE
    + """
while True:
    step += 1
    tensors = {"w": np.full(50_000, step, np.float32), "b": np.full((3, 5), step, np.float64).T}
    serialization.save_checkpoint(folder / "last.safetensors", tensors, {"step": step})
    serialization.save_checkpoint(folder / f"{step:06d}.safetensors", tensors, {"step": step})
    (folder / f"{step - 3:06d}.safetensors").unlink(missing_ok=True)
    print(step, flush=True)
"""
)
STOPS_HALF_WAY = (
    ALONE
    + """
def wait(handle):
    print("waiting", flush=True)
    time.sleep(600)
os.fsync = wait
serialization.save_checkpoint(folder / "a.safetensors", {"w": np.zeros(1000)}, {"step": step})
"""
)


def start(code: str, folder: Path, step: int = 0) -> subprocess.Popen[str]:
    """A process that has done its first save, or what stands for it."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(step)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip()
    return process


def kill(process: subprocess.Popen[str]) -> str:
    """Kills a process as `kill -9` does; returns what it still had to say."""
    process.kill()
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, "it had ended by itself"
    return said


def temporaries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("."))


def save(path: Path, step: int) -> None:
    serialization.save_checkpoint(path, {"w": np.full(3000, step, np.float32)}, {"step": step})


def step_in(path: Path) -> int:
    tensors, state = serialization.load_checkpoint(path)
    assert np.array_equal(tensors["w"], np.full(3000, state["step"], np.float32))
    return int(state["step"])


# ---- killed


def test_after_twenty_kills_every_checkpoint_can_be_read(tmp_path: Path) -> None:
    rng = random.Random(0)
    step = left = 0
    for _ in range(20):
        process = start(SAVES_FOREVER, tmp_path, step)
        time.sleep(rng.uniform(0.005, 0.06))
        said = kill(process).split()
        reported = int(said[-1]) if said else step + 1
        for path in tmp_path.glob("*.safetensors"):
            tensors, state = serialization.load_checkpoint(path)
            assert path.stem in ("last", f"{state['step']:06d}")
            assert np.array_equal(tensors["w"], np.full(50_000, state["step"], np.float32))
            assert np.array_equal(tensors["b"], np.full((5, 3), state["step"], np.float64))
        step = serialization.load_checkpoint(tmp_path / "last.safetensors")[1]["step"]
        assert reported <= step <= reported + 1, "nothing that was reported as saved is lost"
        found = temporaries(tmp_path)
        assert serialization.remove_stale(tmp_path) == found
        assert temporaries(tmp_path) == []
        left += len(found)
    assert left > 0, "no kill hit a save: this test has shown nothing"


def test_what_a_living_process_writes_is_not_stale(tmp_path: Path) -> None:
    process = start(STOPS_HALF_WAY, tmp_path)
    try:
        (half,) = temporaries(tmp_path)
        assert half.stat().st_size > 8000
        assert serialization.remove_stale(tmp_path) == []
        assert half.exists()
    finally:
        kill(process)
    assert serialization.remove_stale(tmp_path) == [half]
    assert os.listdir(tmp_path) == []


def test_saves_and_clean_ups_at_the_same_time_do_not_hurt_each_other(tmp_path: Path) -> None:
    done = threading.Event()

    def clean() -> None:
        while not done.is_set():
            serialization.remove_stale(tmp_path)

    def save_often(path: Path) -> None:
        for step in range(40):
            save(path, step)

    with ThreadPoolExecutor(4) as pool:
        cleaner = pool.submit(clean)
        try:
            for saver in [pool.submit(save_often, tmp_path / name) for name in ("same", "same", "other")]:
                saver.result()
        finally:
            done.set()
        cleaner.result()
    assert step_in(tmp_path / "same") == step_in(tmp_path / "other") == 39
    assert temporaries(tmp_path) == []


def test_a_save_begins_again_if_its_file_is_removed_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    removed = []

    def late(file: object, how: int) -> None:
        if how == fcntl.LOCK_EX and len(removed) < 2:  # the writer's; the clean-up's has LOCK_NB, too
            removed.extend(serialization.remove_stale(tmp_path))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    save(tmp_path / "a", 1)
    assert len(removed) == 2
    assert step_in(tmp_path / "a") == 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_disk_without_locks_can_be_saved_to_and_nothing_on_it_is_called_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    save(tmp_path / "a", 1)
    assert step_in(tmp_path / "a") == 1
    stale = tmp_path / ".a.0123456789abcdef.part"
    stale.touch()
    assert serialization.remove_stale(tmp_path) == []
    assert stale.exists()


def test_only_what_a_save_leaves_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".a.safetensors.0123456789abcdef.part"
    stale.write_bytes(b"half")
    save(tmp_path / "a.safetensors", 1)
    for name in (
        *("b.part", ".a.part", ".a.safetensors.0123456789abcde.part", ".a.safetensors.0123456789abcdeg.part"),
        *("a.safetensors.0123456789abcdef.part", ".a.safetensors.0123456789abcdef.part~", "..part", ".config.settings"),
    ):
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / ".folder.0123456789abcdef.part").mkdir()
    (tmp_path / ".link.0123456789abcdef.part").symlink_to("b.part")
    os.mkfifo(tmp_path / ".pipe.0123456789abcdef.part")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / stale.name).write_bytes(b"another folder's")
    before = sorted(tmp_path.rglob("*"))
    assert serialization.remove_stale(tmp_path) == [stale]
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path != stale]
    assert serialization.remove_stale(tmp_path) == []
    assert serialization.remove_stale(tmp_path / "missing") == []


def test_what_cannot_be_removed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / ".a.0123456789abcdef.part"
    stale.touch()

    def refused(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(stale))}: .*cannot be removed: Read-only file system"):
        serialization.remove_stale(tmp_path)
    with pytest.raises(CheckpointError, match="Not a directory"):
        serialization.remove_stale(stale)


# ---- failing calls

FULL = "the disk of {folder} is full: make room"
CLOSED = "the folder {folder} is not writable: change its permissions"
ERRORS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EACCES: CLOSED,
    errno.EROFS: CLOSED,
    errno.EIO: "",
}


class Failing(io.FileIO):
    """A file whose second write fails, after its first has taken only a part."""

    number = 0

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        if self.tell():
            raise OSError(self.number, os.strerror(self.number))
        return super().write(data[:1000])


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, 1)
    content = path.read_bytes()

    def fail(*arguments: object, **settings: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Failing, "number", number)
        if call == "open":
            patch.setattr(serialization, "open", fail, raising=False)
        elif call == "write":
            patch.setattr(serialization, "open", lambda name, mode, buffering: Failing(name, mode), raising=False)
        else:
            patch.setattr(os, call, fail)
        with pytest.raises(CheckpointError) as caught:
            save(path, 2)
    assert str(caught.value).startswith(f"{path}: cannot be written: {os.strerror(number)}")
    assert ERRORS[number].format(folder=tmp_path) in str(caught.value)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.safetensors"]
    save(path, 3)
    assert step_in(path) == 3


def test_a_file_that_the_system_itself_cuts_short(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large"):
            save(path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert step_in(path) == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_ctrl_c_in_a_save_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(path, 1)

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(path, 2)
    assert step_in(path) == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_system_that_writes_in_small_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux takes 2 GiB in one write at most.
    class Small(io.FileIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:999])

    monkeypatch.setattr(serialization, "open", lambda name, mode, buffering: Small(name, mode), raising=False)
    serialization.write_whole(tmp_path / "a", bytes(range(256)) * 20)
    assert (tmp_path / "a").read_bytes() == bytes(range(256)) * 20


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_forcing_the_name_to_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "a.safetensors"
    save(path, 1)
    fsync = os.fsync

    def fail(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    if number == errno.EINVAL:  # this disk cannot do it for any folder; the file is as safe as it can be there
        save(path, 2)
    else:
        with pytest.raises(CheckpointError, match="Input/output error"):
            save(path, 2)
    assert step_in(path) == 2
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_paths_that_cannot_be_saved_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for path, reason in (
        (tmp_path / "missing" / "a.safetensors", "No such file or directory"),
        (tmp_path / "file" / "a.safetensors", "Not a directory"),
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / ("a" * 250), "File name too long"),
    ):
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: cannot be written: {reason}"):
            save(path, 1)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_checkpoint_is_as_private_as_the_user_wants_new_files_to_be(tmp_path: Path) -> None:
    for mask, mode in ((0o077, 0o600), (0o022, 0o644)):
        before = os.umask(mask)
        try:
            save(tmp_path / "a", 1)
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode
