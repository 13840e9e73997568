"""Where image files come from: a folder, a zip or a tar, read one file after another and never extracted."""

import bz2
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMATS_IN_WORDS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_BYTES = 64 * 2**20  # of one file: a larger one is no photo, but a mistake or a bomb
MAX_TAR_HEADER = 2**20  # of one file in a tar: usual are some hundred bytes; parsed, it takes many times its length
_ARCHIVE_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, ValueError, IndexError, RuntimeError),
)


class DataError(ValueError):
    """Data that cannot be used; the message says which and why."""


class UnreadableError(DataError):
    """A file that could not be read this time; its permissions, disk or network may be better later."""


@dataclass(frozen=True)
class Entry:
    """One file. Call `read` before asking the source for the next entry: a tar only goes forwards.

    `read` returns the file's bytes; raises DataError for one that is no file, too large or broken.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """Files in an order that is the same each time: by name; a tar's in the order of the archive.

    path: the folder or archive.
    signature: text that changes when the files change.
    total: how many entries there are; None for a tar, which is not read twice to count them.
    entries: starts a new pass. Iterating raises DataError where an archive turns out to be broken.
    """

    path: Path
    signature: list[str]
    total: int | None
    entries: Callable[[], Iterator[Entry]]

    def __iter__(self) -> Iterator[Entry]:
        return self.entries()


@dataclass(frozen=True)
class Kind:
    """Which files are wanted: by suffixes in lower case; `called` so in messages, which expect a folder `of` them."""

    called: str
    suffixes: tuple[str, ...]
    of: str

    @property
    def expected(self) -> str:
        return f"expected a folder, or a .zip, .tar or .tgz file, of {self.of}"

    def matches(self, name: str) -> bool:
        parts = name.replace("\\", "/").split("/")
        return name.lower().endswith(self.suffixes) and not any(map(_hidden, parts))


IMAGES = Kind("images", IMAGE_SUFFIXES, f"{FORMATS_IN_WORDS} images")


def open_source(path: str | os.PathLike[str], kind: Kind = IMAGES) -> Source:
    """The images in a folder (searched recursively) or in a .zip or .tar archive, compressed or not.

    kind: other files than images, such as the annotations beside them.
    Hidden files and `__MACOSX` are passed over. Raises DataError for a path that is none of these, a broken
    or encrypted archive, and where there are no such files; for a tar, once it is iterated.
    """
    path = Path(path).expanduser()
    if os.path.isdir(path):
        return _folder(path, kind)
    if not os.path.isfile(path):
        problem = "is neither a folder nor a regular file" if os.path.exists(path) else "does not exist"
        raise DataError(f"{path} {problem}: {kind.expected}.")
    name = path.name.lower()
    if name.endswith(".zip"):
        return _zip(path, kind)
    if name.endswith(TAR_SUFFIXES):
        return _tar(path, kind)
    raise DataError(f"{path} is a file of another kind: {kind.expected}.")


def _hidden(part: str) -> bool:
    return part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))


def _read_bounded(file: IO[bytes]) -> bytes:
    """Everything in `file`, whatever length it claims to have; raises DataError beyond MAX_BYTES."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(f"larger than {MAX_BYTES // 2**20} MiB")
    return data


def _refuse(reason: str) -> NoReturn:
    raise DataError(reason)


# ---- a folder


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. Raises DataError for one that is too large or cannot be read."""
    try:
        with open(path, "rb") as file:
            return _read_bounded(file)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error


def _folder(root: Path, kind: Kind) -> Source:
    found: list[tuple[Entry, str]] = []  # and the line of each in the signature
    others = 0
    visited: set[str] = set()  # links are followed; each folder is visited once, so that loops of them end

    def refuse(path: str, reason: str) -> None:
        """Counted and reported rather than passed over."""
        name = Path(path).relative_to(root).as_posix()
        found.append((Entry(name, partial(_refuse, reason)), f"{name}\0{reason}"))

    def folder_error(error: OSError) -> None:
        refuse(error.filename, f"folder cannot be read: {error.strerror}")

    for folder, subfolders, files in os.walk(root, onerror=folder_error, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        for file in files:
            if not kind.matches(file):
                others += 1
                continue
            path = os.path.join(folder, file)
            try:
                status = os.stat(path)
            except OSError as error:
                refuse(path, f"cannot be read: {error.strerror}")
                continue
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                refuse(path, "not a regular file")
                continue
            name = Path(path).relative_to(root).as_posix()
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
            found.append((Entry(name, partial(read_file, path)), line))

    if not found:
        raise DataError(f"{root} and its subfolders hold no {kind.called} ({others:,} other files): {kind.expected}.")
    found.sort(key=lambda pair: pair[0].name)
    entries = [entry for entry, _ in found]
    return Source(root, [line for _, line in found], len(entries), lambda: iter(entries))


# ---- archives


@contextmanager
def _errors_as(problem: str) -> Iterator[None]:
    """All that the archive modules may raise, as a DataError that names the problem."""
    try:
        yield
    except DataError:
        raise
    except _ARCHIVE_ERRORS as error:
        kind = UnreadableError if isinstance(error, OSError) else DataError
        raise kind(f"{problem}: {str(error) or type(error).__name__}") from error


def _errors_of(path: Path) -> AbstractContextManager[None]:
    return _errors_as(f"{path} is broken, cut short or cannot be read")


def _archive_signature(path: Path) -> list[str]:
    status = path.stat()
    return [str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)]


def _nothing(path: Path, kind: Kind) -> DataError:
    return DataError(f"{path} holds no {kind.called}: {kind.expected}.")


def _read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError("a link, not a file")
    # zipfile bounds what it unpacks at once for these two only.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError("packed by another method than deflate")
    with _errors_as("broken in the archive"), archive.open(member) as file:
        return _read_bounded(file)


def _zip(path: Path, kind: Kind) -> Source:
    with _errors_of(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if kind.matches(member.filename)]
    members.sort(key=lambda member: member.filename)
    if not members:
        raise _nothing(path, kind)
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{path} is encrypted: unpack it with its password, and give the folder.")

    def entries() -> Iterator[Entry]:
        with _errors_of(path), zipfile.ZipFile(path) as archive:
            for member in members:
                yield Entry(member.filename, partial(_read_zip_member, archive, member))

    return Source(path, _archive_signature(path), len(members), entries)


class _TarFile:
    """The unpacked bytes of a tar file, for tarfile; no more than `left` of them can be read.

    tarfile reads headers of any claimed length and number into memory, and takes a damaged one for the archive's end.
    So reads are bounded here, and the last one is kept.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.left = MAX_TAR_HEADER
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise DataError(f"{self._path} is broken: headers of one file claim more than {MAX_TAR_HEADER:,} bytes.")
        self.left -= size
        self.last = self._file.read(size)
        return self.last


def _open_unpacked(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        magic = file.read(6)
    openers: dict[bytes, Callable[[Path], Any]] = {
        b"\x1f\x8b": gzip.open,
        b"BZh": bz2.open,
        b"\xfd7zXZ\0": lzma.open,
    }
    for start, opener in openers.items():
        if magic.startswith(start):
            unpacked: IO[bytes] = opener(path)
            return unpacked
    return open(path, "rb")


def _read_tar_member(archive: tarfile.TarFile, unpacked: _TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg():
        raise DataError("a link or a device, not a file")
    unpacked.left = 2 * MAX_BYTES  # a buffer may read on a little
    with _errors_as("broken in the archive"):
        file = archive.extractfile(member)
        assert file is not None  # it is None for what is not regular only
        return _read_bounded(file)


def _tar(path: Path, kind: Kind) -> Source:
    def entries() -> Iterator[Entry]:
        count = 0
        with _errors_of(path), _open_unpacked(path) as unpacked:
            file: Any = _TarFile(path, unpacked)  # tarfile asks of it no more than read, seek and tell
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # untyped; it grows with the archive
                    archive.pax_headers.clear()  # type: ignore[attr-defined]  # likewise: remarks on all that follows
                    if not member.isdir() and kind.matches(member.name):
                        count += 1
                        yield Entry(member.name, partial(_read_tar_member, archive, file, member))
                    file.left = MAX_TAR_HEADER  # for the next one
            unpacked.read(MAX_BYTES)  # the padding, and behind it gzip's checksum
            if file.last.strip(b"\0"):
                raise DataError(f"{path} is broken after {count:,} {kind.called}.")
        if not count:
            raise _nothing(path, kind)

    return Source(path, _archive_signature(path), None, entries)
