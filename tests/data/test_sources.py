"""Folders and archives, well-formed, awkward and hostile."""

import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from minigan.data import DataError, open_source, sources
from minigan.data.sources import UnreadableError

FILES = {"b.PNG": b"2", "a/ü ñ.jpg": b"1", "a/deep/er/c.JpEg": b"3", "z.webp": b"4", "日本.png": b"5"}
FILES |= {"d.gif": b"6", "e.BMP": b"7", "f.tif": b"8", "g.tiff": b"9"}
IGNORED = {
    "notes.txt": b"x",
    ".hidden.jpg": b"x",
    ".git/d.png": b"x",
    "__MACOSX/a.jpg": b"x",
    "a/._c.jpg": b"x",
}


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            add_member(archive, name, data)
    return path


def add_member(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def contents(path: Path) -> dict[str, bytes | str]:
    """What a source gives: the bytes of each file, or the reason why there are none."""
    result: dict[str, bytes | str] = {}
    for entry in open_source(path):
        assert entry.name not in result
        try:
            result[entry.name] = entry.read()
        except DataError as error:
            result[entry.name] = str(error)
    return result


# ---- a folder


def test_a_folder_is_searched_recursively_and_sorted(tmp_path: Path) -> None:
    source = open_source(fill(tmp_path / "in", FILES | IGNORED))
    assert [entry.name for entry in source] == sorted(FILES)
    assert source.total == len(FILES)
    assert contents(tmp_path / "in") == FILES
    assert [entry.name for entry in source] == sorted(FILES), "a second pass gives the same"


def test_the_folder_itself_may_be_hidden(tmp_path: Path) -> None:
    assert contents(fill(tmp_path / ".cache" / "__MACOSX", {"a.jpg": b"1"})) == {"a.jpg": b"1"}


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"sub/a.jpg": b"1"})
    other = fill(tmp_path / "other", {"b.jpg": b"2"})
    (root / "sub" / "loop").symlink_to(root)
    (root / "other").symlink_to(other)
    (root / "sub" / "again").symlink_to(other)
    (root / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    assert contents(root) == {
        "dangling.jpg": "cannot be read: No such file or directory",
        "other/b.jpg": b"2",
        "sub/a.jpg": b"1",
    }


def test_a_pipe_named_as_an_image_is_not_opened(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a.jpg": b"1"})
    os.mkfifo(root / "pipe.jpg")
    assert contents(root) == {"a.jpg": b"1", "pipe.jpg": "not a regular file"}


def test_a_folder_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "in", {"a.jpg": b"1", "closed/c.jpg": b"3"})
    scandir = os.scandir

    def refusing(path: str) -> object:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert contents(root) == {"a.jpg": b"1", "closed": "folder cannot be read: Permission denied"}


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission_are_reported(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a.jpg": b"1", "b.jpg": b"2", "closed/c.jpg": b"3"})
    (root / "b.jpg").chmod(0)
    (root / "closed").chmod(0)
    try:
        assert contents(root) == {
            "a.jpg": b"1",
            "b.jpg": "cannot be read: Permission denied",
            "closed": "folder cannot be read: Permission denied",
        }
    finally:
        (root / "closed").chmod(0o700)


def test_a_file_that_vanishes_is_unreadable(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a.jpg": b"1"})
    (entry,) = open_source(root)
    (root / "a.jpg").unlink()
    with pytest.raises(UnreadableError, match="cannot be read: No such file"):
        entry.read()


def test_the_signature_of_a_folder_follows_names_sizes_and_times(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", {"a.jpg": b"1", "b.jpg": b"2"})
    first = open_source(root).signature
    assert open_source(root).signature == first
    root.rename(tmp_path / "moved")
    root = tmp_path / "moved"
    assert open_source(root).signature == first
    os.utime(root / "a.jpg", ns=(0, 12345))
    second = open_source(root).signature
    (root / "a.jpg").write_bytes(b"1 and more")
    os.utime(root / "a.jpg", ns=(0, 12345))
    third = open_source(root).signature
    (root / "a.jpg").rename(root / "c.jpg")
    fourth = open_source(root).signature
    assert len({tuple(lines) for lines in (first, second, third, fourth)}) == 4


# ---- archives


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("in.zip", ""),
        ("in.tar", "w"),
        ("in.TGZ", "w:gz"),
        ("in.tar.gz", "w:gz"),
        ("in.tar.bz2", "w:bz2"),
        ("i.txz", "w:xz"),
    ],
)
def test_archives_give_what_the_folder_gives(tmp_path: Path, name: str, mode: str) -> None:
    files = FILES | IGNORED
    path = make_tar(tmp_path / name, files, mode) if mode else make_zip(tmp_path / name, files)
    before = sorted(tmp_path.iterdir())
    assert contents(path) == FILES
    assert sorted(tmp_path.iterdir()) == before, "nothing is extracted"


def test_a_zip_is_sorted_and_counted_and_a_tar_streams(tmp_path: Path) -> None:
    files = {"b.jpg": b"2", "a.jpg": b"1"}
    zipped = open_source(make_zip(tmp_path / "in.zip", files))
    assert [entry.name for entry in zipped] == ["a.jpg", "b.jpg"]
    assert zipped.total == 2
    tarred = open_source(make_tar(tmp_path / "in.tar", files))
    assert [entry.name for entry in tarred] == ["b.jpg", "a.jpg"]
    assert tarred.total is None


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_leave_the_archive_are_only_names(tmp_path: Path, make) -> None:
    files = {"../../up.jpg": b"1", "/abs.png": b"2", "./dot.jpg": b"3"}
    path = make(tmp_path / ("in.zip" if make is make_zip else "in.tar"), files)
    assert contents(path) == files
    assert [entry.name for entry in tmp_path.rglob("*.jpg")] == []


def test_links_and_devices_in_archives_are_counted_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        add_member(archive, "a.jpg", b"1")
        add_member(archive, "soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_member(archive, "hard.jpg", type=tarfile.LNKTYPE, linkname="a.jpg")
        add_member(archive, "zero.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add_member(archive, "folder.jpg", type=tarfile.DIRTYPE)
    refused = "a link or a device, not a file"
    assert contents(tmp_path / "in.tar") == {
        "a.jpg": b"1",
        "soft.jpg": refused,
        "hard.jpg": refused,
        "zero.jpg": refused,
    }
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        link = zipfile.ZipInfo("soft.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert contents(tmp_path / "in.zip") == {"soft.jpg": "a link, not a file"}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz"])
def test_too_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 2**20)
    files = {"bomb.png": bytes(2**20 + 1), "full.png": bytes(2**20), "small.png": b"1"}
    if kind == "folder":
        path = fill(tmp_path / "in", files)
    elif kind == "zip":
        path = make_zip(tmp_path / "in.zip", files)
    else:
        path = make_tar(tmp_path / f"in.{kind}", files, "w:gz" if kind == "tgz" else "w")
    assert contents(path) == files | {"bomb.png": "larger than 1 MiB"}


def test_a_tar_header_of_any_claimed_length_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 2**20)
    with tarfile.open(tmp_path / "in.tgz", "w:gz") as archive:
        add_member(archive, "header", bytes(2**21), type=tarfile.XHDTYPE)
        add_member(archive, "a.jpg", b"1")
    with pytest.raises(DataError, match="headers of one file claim more than 1,048,576 bytes"):
        contents(tmp_path / "in.tgz")


def test_a_zip_that_lies_about_sizes_gives_no_data(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "in.zip", {"a.jpg": bytes(1000), "b.jpg": b"2"})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    result = contents(path)
    assert result["b.jpg"] == b"2"
    assert str(result["a.jpg"]).startswith("broken in the archive: Bad CRC-32")


def test_zips_packed_by_methods_without_bounds_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "in.zip", {"a.jpg": bytes(1000)}, zipfile.ZIP_BZIP2)
    assert contents(path) == {"a.jpg": "packed by another method than deflate"}


def test_an_encrypted_zip_says_so(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "in.zip", {"a.jpg": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"in\.zip is encrypted: unpack it"):
        open_source(path)


@pytest.mark.parametrize("name", ["in.zip", "in.tar", "in.tgz", "in.tar.bz2", "in.tar.xz"])
def test_a_truncated_archive_is_an_error(tmp_path: Path, name: str) -> None:
    files = {f"{i}.jpg": os.urandom(20_000) for i in range(5)}
    modes = {"in.tar": "w", "in.tgz": "w:gz", "in.tar.bz2": "w:bz2", "in.tar.xz": "w:xz"}
    path = make_tar(tmp_path / name, files, modes[name]) if name in modes else make_zip(tmp_path / name, files)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 1000])
    with pytest.raises(DataError, match=f"{name} is broken, cut short"):
        contents(path)


def test_a_damaged_header_is_not_taken_for_the_end_of_a_tar(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in.tar", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    data = bytearray(path.read_bytes())
    data[data.index(b"b.jpg")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="broken after 1 images"):
        contents(path)


def test_a_wrong_checksum_at_the_end_of_a_tgz_is_an_error(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in.tgz", {"a.jpg": b"1"}, "w:gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        contents(path)


# ---- what is no source


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("cat.jpg", b"x", "another kind"),
        ("cats.rar", b"x", "another kind"),
        ("text.zip", b"no archive at all", "broken"),
        ("empty.zip", b"PK\5\6" + bytes(18), "no images"),
        ("nothing.zip", b"", "broken"),
        ("text.tar", b"no archive at all" * 100, "broken"),
        ("text.tgz", b"no archive at all" * 100, "broken"),
        ("half.tgz", gzip.compress(b"no archive at all" * 100), "broken"),
        ("nothing.tar", b"", "broken"),
        ("empty.tar", bytes(10240), "no images"),
    ],
)
def test_files_that_are_no_source(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=problem) as caught:
        contents(path)
    assert name in str(caught.value)


def test_archives_without_images(tmp_path: Path) -> None:
    for path in (make_zip(tmp_path / "in.zip", IGNORED), make_tar(tmp_path / "in.tar", IGNORED)):
        with pytest.raises(DataError, match="holds no images: expected a folder"):
            contents(path)


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hold no images \(3 other files\): expected a folder"):
        open_source(fill(tmp_path / "in", IGNORED))


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing does not exist: expected a folder"):
        open_source(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(DataError, match="neither a folder nor a regular file"):
        open_source(tmp_path / "pipe.zip")


# ---- the package


def test_importing_the_package_is_light_and_needs_nothing_else_of_minigan() -> None:
    package = Path(sources.__file__).parents[1]
    code = f"""
import sys, types
sys.modules["minigan"] = minigan = types.ModuleType("minigan")
minigan.__path__ = [{str(package)!r}]
import minigan.data
others = {{name for name in sys.modules if name.startswith("minigan.") and name.split(".")[1] != "data"}}
assert not others, others
heavy = {{"PIL.Image", "tqdm", "numba", "cupy", "minigan.data.toys"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
