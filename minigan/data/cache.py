"""Decoded images on the disk, so that a second run starts at once.

A set is one uncompressed .npy file, mapped into memory, and a small JSON file with the names beside it. Both
are named by a hash of all that decides the content, so they are never out of date; sets out of use give way.
"""

import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from minigan.data.decode import Pixels
from minigan.data.sources import DataError

FORMAT_VERSION = 3  # raise it when the same file would give other pixels, or when this layout changes
DEFAULT_LIMIT_GIB = 8.0
ABANDONED_AFTER_S = 3600.0  # a run that builds a set writes to it all the time, unless it was killed

_log = logging.getLogger(__name__)


@dataclass
class Listing:
    """What is known of a set besides its pixels.

    names: of the images, in their order.  skipped: (name, reason) of each file that could not be used.
    left_out: how many files were left out as asked.
    complete: False where a file could not be read this time; such a set is not kept.
    digest: a hash of the files that the images come from; empty where they come from none.
    """

    names: list[str]
    skipped: list[tuple[str, str]]
    left_out: int = 0
    complete: bool = True
    digest: str = ""


Fill = Callable[[Callable[[Pixels], None]], Listing]


def cache_folder() -> Path:
    """$MINIGAN_CACHE; without it, minigan's place in the user's cache folder of this operating system."""
    if own := os.environ.get("MINIGAN_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "minigan"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "minigan" / "Cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "minigan"


def cache_limit() -> int:
    """The most bytes that the sets may take together, from $MINIGAN_CACHE_GIB; 0 turns the cache off."""
    text = os.environ.get("MINIGAN_CACHE_GIB", str(DEFAULT_LIMIT_GIB))
    try:
        return int(max(float(text), 0) * 2**30)
    except (ValueError, OverflowError):
        raise DataError(f"MINIGAN_CACHE_GIB must be a number of GiB such as 8 or 0.5, not {text!r}.") from None


def key_of(parts: Iterable[object]) -> str:
    """A file name that stands for `parts`: all that decides which pixels come out."""
    text = json.dumps([FORMAT_VERSION, *map(str, parts)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached(key: str, height: int, width: int, fill: Fill) -> tuple[Pixels, Listing]:
    """The set kept under `key`, or else the one that `fill` makes, which is then kept.

    `fill(add)` calls add(image), (height, width, 3) uint8, for each image, at least one, and returns their
    listing. It may raise DataError; an OSError counts as the cache's. Returns images (N, height, width, 3),
    uint8, read-only, and the listing.
    """
    folder = cache_folder() / "images"
    limit = cache_limit()
    if limit:
        kept = _find(folder, key, height, width)
        if kept is not None:
            return kept
        try:
            return _build(folder, key, height, width, fill, limit)
        except OSError as error:
            _log.warning("No image cache, images are decoded into memory: %s. Set MINIGAN_CACHE to a folder.", error)
    memory = io.BytesIO()
    listing = _write(memory, height, width, fill)
    shape = (len(listing.names), height, width, 3)
    images = np.frombuffer(memory.getbuffer().toreadonly(), np.uint8, offset=len(_header(shape)))
    return images.reshape(shape), listing


def _header(shape: tuple[int, ...]) -> bytes:
    """The head of a .npy file. NumPy pads it, so that its length is the same for any number of images."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _write(file: IO[bytes], height: int, width: int, fill: Fill) -> Listing:
    """One .npy file, image by image; how many there are is known, and written, last."""
    file.write(_header((0, height, width, 3)))

    def add(image: Pixels) -> None:
        file.write(image.tobytes())

    listing = fill(add)
    file.seek(0)
    file.write(_header((len(listing.names), height, width, 3)))
    return listing


def _map(path: Path, shape: tuple[int, ...]) -> Pixels:
    """The images of a .npy file. Raises ValueError unless its head and length are as they have to be."""
    header = _header(shape)
    with open(path, "rb") as file:
        if file.read(len(header)) != header:
            raise ValueError(f"not an array of shape {shape}")
    expected, size = len(header) + int(np.prod(shape, dtype=np.int64)), path.stat().st_size
    if size != expected:
        raise ValueError(f"{size:,} bytes instead of {expected:,}")
    return np.memmap(path, np.uint8, "r", offset=len(header), shape=shape)


def _find(folder: Path, key: str, height: int, width: int) -> tuple[Pixels, Listing] | None:
    path = folder / f"{key}.npy"
    try:
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        skipped = [(name, reason) for name, reason in record["skipped"]]
        listing = Listing(record["names"], skipped, record["left_out"], digest=record["digest"])
        images = _map(path, (len(listing.names), height, width, 3))
    except OSError:  # not there; if something is wrong with the folder, building the set will say so
        return None
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("The cached images in %s are damaged (%s): they are built again.", path, error)
        return None
    with suppress(OSError):  # a cache that others own may be read-only
        os.utime(path)  # its time of modification says when it was last used
    return images, listing


def _build(folder: Path, key: str, height: int, width: int, fill: Fill, limit: int) -> tuple[Pixels, Listing]:
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".part", dir=folder)
    part, path = Path(name), folder / f"{key}.npy"
    try:
        with open(handle, "wb") as file:
            listing = _write(file, height, width, fill)
        problem = ""
        if not listing.complete:
            problem = "some of the files could not be read this time"
        elif (size := part.stat().st_size) > limit:
            problem = f"they take {size / 2**30:.1f} GiB, more than MINIGAN_CACHE_GIB, {limit / 2**30:.1f}"
        if problem:
            _log.warning("The decoded images are not kept for the next run: %s.", problem)
            path = part  # removed below, but it stays readable while it is mapped
        else:
            os.replace(part, path)
            _write_record(folder, path.with_suffix(".json"), listing)
        images = _map(path, (len(listing.names), height, width, 3))
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    _prune(folder, limit)
    return images, listing


def _write_record(folder: Path, path: Path, listing: Listing) -> None:
    handle, part = tempfile.mkstemp(".part", dir=folder)
    with open(handle, "w", encoding="utf-8") as file:
        json.dump({name: getattr(listing, name) for name in ("names", "skipped", "left_out", "digest")}, file)
    os.replace(part, path)


def _prune(folder: Path, limit: int) -> None:
    """Remove what killed runs left, and the sets longest out of use until `limit` bytes hold the rest."""
    used: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with suppress(OSError):  # another run may prune at the same time
            status = path.stat()
            if path.suffix == ".npy":
                used.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".part" and time.time() - status.st_mtime > ABANDONED_AFTER_S:
                path.unlink()
    total = 0
    for _, size, path in sorted(used, reverse=True):
        total += size
        if total > limit:
            with suppress(OSError):
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink()
