"""Arrays in files: one safetensors file, complete or not there at all, and checked before anything of it is used.

A file is written beside its final name, forced to the disk, and then renamed, so a crash leaves the old one or the new
one. safetensors has no checksum; ours, over the metadata and every tensor, tells a damaged file from a good one.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MAX_HEADER = 2 * 2**20  # bytes: ours take some thousands; parsed, JSON takes up to fifty times its length

# A save that is killed leaves ".NAME.0123456789abcdef.part"; nobody else names files so.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.part", re.DOTALL)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is damaged, or is not one. The message names the file and says why."""


def save(path: Path | str, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays of a `state_dict()`. Raises CheckpointError where that fails; then `path` is as before."""
    save_checkpoint(Path(path), state_dict, {})


def load(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a file that `save` wrote, for `load_state_dict`. Raises CheckpointError for any other file."""
    return load_checkpoint(Path(path))[0]


def save_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """Writes tensors, and a state of finite numbers, texts, lists and dicts; both come back exactly as they were.

    Raises CheckpointError where that cannot be done; then `path` is as before.
    """
    import safetensors.numpy  # here, to keep `import minigan` fast

    # safetensors 0.8.0 writes the memory of a non-contiguous array as if it were contiguous, without a word.
    arrays = {n: np.asarray(a, dtype=a.dtype.newbyteorder("="), order="C") for n, a in tensors.items()}
    try:
        if "__metadata__" in arrays:
            raise ValueError("a tensor cannot be named __metadata__, which has a meaning in safetensors files")
        if "format" in state:
            raise ValueError("the state cannot have the key format, which is the file's own")
        text = _state_text({**state, "format": FORMAT})
        content = safetensors.numpy.save(arrays, {"minigan": text, "sha256": _digest(arrays, text)})
        header = int.from_bytes(content[:8], "little")
        if header > MAX_HEADER:
            raise ValueError(f"state and names take {header:,} bytes, more than {MAX_HEADER:,}; save arrays as tensors")
    except (ValueError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None
    write_whole(path, content)


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises CheckpointError for one that is damaged or of another program. A header that claims what cannot be is found
    before any memory is taken for it.
    """
    import safetensors

    try:
        _check_header(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.keys() != {"minigan", "sha256"}:
            raise CheckpointError(f"{path}: not a checkpoint of minigan")
        if _digest(arrays, metadata["minigan"]) != metadata["sha256"]:
            raise CheckpointError(f"{path}: damaged: its contents do not agree with its checksum")
        state = _parse(metadata["minigan"])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    # AttributeError: what safetensors raises for number formats that NumPy does not have.
    except (ValueError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint: {error}") from None
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}; it was written by another version of minigan")
    return arrays, state


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file by new content, or leaves it as it was. Raises CheckpointError where that cannot be done.

    Where only the last step fails, forcing the new name to the disk, the file is the new one already.
    """
    try:
        with _new_beside(path) as file:
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:  # Ctrl-C, too
                Path(file.name).unlink(missing_ok=True)
                raise
        _force_names(path.parent)
    except OSError as error:
        advice = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"; the disk of {path.parent} is full: make room on it, or choose another folder"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"; the folder {path.parent} is not writable: change its permissions, or choose another folder"
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}{advice}") from None


def remove_stale(folder: Path) -> list[Path]:
    """Removes what killed saves left in a folder, but nothing that a process is still writing; returns what it removed.

    Raises CheckpointError where something cannot be removed.
    """
    removed = []
    try:
        with os.scandir(folder) as files:
            found = sorted(file.name for file in files if _TEMPORARY.fullmatch(file.name))
        for name in found:
            with suppress(FileNotFoundError):  # its writer has just finished, or somebody else removed it
                if _remove_unlocked(folder / name):
                    removed.append(folder / name)
    except FileNotFoundError:  # no folder, nothing in it
        return []
    except OSError as error:
        where = error.filename or folder
        raise CheckpointError(f"{where}: what killed saves left cannot be removed: {error.strerror}") from None
    return removed


def _new_beside(path: Path) -> FileIO:
    """A new temporary file for `path`, locked for as long as it is open: the lock of a killed process goes with it."""
    while True:
        name = path.parent / f".{path.name}.{os.urandom(8).hex()}.part"
        file = open(name, "xb", buffering=0)  # noqa: SIM115 - the caller closes it
        # Some network disks have no locks. Then `remove_stale` gets none either, and removes nothing.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if name.exists():
            return file
        file.close()  # it was removed as stale in the moment before it was locked


def _force_names(folder: Path) -> None:
    """Forces a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a disk that does not do it for folders; nothing is wrong with the file
            raise
    finally:
        os.close(handle)


def _remove_unlocked(path: Path) -> bool:
    """Removes a file unless a process has it locked; says whether it did."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is being written, or this disk has no locks to tell
        return False
    else:
        path.unlink()
        return True
    finally:
        os.close(handle)


def _state_text(state: dict[str, Any]) -> str:
    """A state as JSON. Raises ValueError for one that would not come back as it is, TypeError for what JSON has not."""
    text = json.dumps(state, sort_keys=True, allow_nan=False)
    if json.loads(text) != state:
        raise ValueError("the state has a tuple or a key that is no text; expected lists, and texts for keys")
    return text


def _parse(text: str) -> Any:
    """JSON as `_state_text` writes it. Raises ValueError for any other: a key that comes twice, NaN, an infinity."""
    return json.loads(text, object_pairs_hook=_each_once, parse_float=_finite, parse_constant=_finite)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in the same JSON object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers, got {text}")
    return number


def _check_header(path: Path) -> None:
    """Raises ValueError for a file whose header is too long, or no JSON object, before safetensors reads it."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"its header claims {length:,} bytes, the file has {size:,}")
        if length > MAX_HEADER:
            raise ValueError(f"its header claims {length:,} bytes; minigan writes at most {MAX_HEADER:,}")
        header = _parse(file.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()
