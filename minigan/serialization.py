"""Arrays in files: one safetensors file, complete or not there at all, and checked before anything of it is used.

A file is written beside its final name, forced to the disk, and then renamed, so a crash leaves the old one or the new
one. safetensors has no checksum; ours, over the metadata and every tensor, tells a damaged file from a good one.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is damaged, or is not one."""


def save(path: Path | str, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays of a `state_dict()`. Raises CheckpointError where that fails; then `path` is as before."""
    save_checkpoint(Path(path), state_dict, {})


def load(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a file that `save` wrote, for `load_state_dict`. Raises CheckpointError for any other file."""
    return load_checkpoint(Path(path))[0]


def save_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """Writes tensors, and a state of plain numbers, texts, lists and dicts.

    Raises CheckpointError where that fails; then `path` is as before.
    """
    import safetensors.numpy  # here, to keep `import minigan` fast

    # safetensors 0.8.0 writes the memory of a non-contiguous array as if it were contiguous, without a word.
    arrays = {n: np.asarray(a, dtype=a.dtype.newbyteorder("="), order="C") for n, a in tensors.items()}
    text = json.dumps({"format": FORMAT, **state}, sort_keys=True)
    content = safetensors.numpy.save(arrays, {"minigan": text, "sha256": _digest(arrays, text)})
    write_whole(path, content)


def load_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises CheckpointError for one that is damaged or of another program.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {error}") from None
    if "minigan" not in metadata or "sha256" not in metadata:
        raise CheckpointError(f"{path}: not a checkpoint of minigan")
    if _digest(arrays, metadata["minigan"]) != metadata["sha256"]:
        raise CheckpointError(f"{path}: damaged: its contents do not agree with its checksum")
    state = json.loads(metadata["minigan"])
    if state.pop("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}; it was written by another version of minigan")
    return arrays, state


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file by new content, or leaves it as it was. Raises CheckpointError where that cannot be done."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself
        finally:
            os.close(folder)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()
