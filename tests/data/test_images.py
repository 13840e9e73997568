"""Folders of awkward images, from the path to the array."""

import os
import shutil
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigan.data import DataError, ImageSet, images, load_images, sources


@pytest.fixture
def folder(tmp_path: Path, encode, noise) -> Path:
    """Images of several modes, formats and sizes, and files that cannot be used."""
    root = tmp_path / "cats"
    (root / "more").mkdir(parents=True)
    photo = Image.fromarray(noise(1, 40, 30))
    good = {
        "a.PNG": encode(photo),
        "b.jpg": encode(photo, "JPEG"),
        "more/c.webp": encode(photo, "WEBP"),
        "more/d.jpeg": encode(photo.convert("CMYK"), "JPEG"),
        "more/é.png": encode(photo.convert("RGBA")),
        "f.png": encode(photo.quantize(16), transparency=2),
        "g.png": encode(photo.convert("L")),
        "h.png": encode(noise(2)[..., 0].astype(np.uint16) * 257),
    }
    bad = {"cut.jpg": good["b.jpg"][:600], "empty.png": b"", "text.jpg": b"text", "note.txt": b"not an image"}
    for name, data in (good | bad).items():
        (root / name).write_bytes(data)
    return root


GOOD = ["a.PNG", "b.jpg", "f.png", "g.png", "h.png", "more/c.webp", "more/d.jpeg", "more/é.png"]
SKIPPED = [
    ("cut.jpg", "truncated"),
    ("empty.png", "empty file"),
    ("text.jpg", "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"),
]


def load(path: Path, size: tuple[int, int] = (16, 12), **settings: object) -> ImageSet:
    return load_images(path, size, progress=False, **settings)


def test_all_that_can_be_used_is(folder: Path) -> None:
    result = load(folder)
    assert result.images.shape == (8, 16, 12, 3)
    assert result.images.dtype == np.uint8
    assert result.names == GOOD
    assert result.skipped == SKIPPED
    assert result.summary() == (
        "8 images from cats/, 3 skipped: cut.jpg (truncated), empty.png (empty file), "
        "text.jpg (not a JPEG, PNG, WebP, GIF, BMP or TIFF image)"
    )


def test_images_are_known_by_what_is_in_their_files(folder: Path, tmp_path: Path, monkeypatch) -> None:
    digest = load(folder).digest
    moved = Path(shutil.copytree(folder, tmp_path / "moved", ignore=shutil.ignore_patterns("cut.jpg")))
    monkeypatch.setenv("MINIGAN_CACHE_GIB", "0")  # with the cache above, without it here
    assert load(moved).digest == load(moved, (4, 4)).digest == digest
    os.utime(moved / "a.PNG", (1, 1))
    assert load(moved).digest == digest
    first, second = (moved / "a.PNG").read_bytes(), (moved / "f.png").read_bytes()
    (moved / "a.PNG").write_bytes(first + b"trailing")
    changed = load(moved).digest
    (moved / "a.PNG").write_bytes(second)
    (moved / "f.png").write_bytes(first)
    assert len({digest, changed, load(moved).digest}) == 3


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_threads_changes_nothing(folder: Path, monkeypatch, threads: int) -> None:
    expected = load(folder, threads=3)
    monkeypatch.setenv("MINIGAN_CACHE_GIB", "0")
    result = load(folder, threads=threads)
    np.testing.assert_array_equal(result.images, expected.images)
    assert (result.names, result.skipped) == (expected.names, expected.skipped)


def test_many_more_images_than_threads_keep_their_order(tmp_path: Path, encode) -> None:
    (tmp_path / "in").mkdir()
    for i in range(50):
        size = 400 if i % 7 == 0 else 4  # some take longer than others
        (tmp_path / "in" / f"{i:02}.png").write_bytes(encode(Image.new("RGB", (size, size), (i, 0, 0))))
    result = load(tmp_path / "in", (2, 2), threads=2)
    assert result.images[:, 0, 0, 0].tolist() == list(range(50))
    assert result.summary() == "50 images from in/"


def test_files_wait_in_memory_in_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode) -> None:
    (tmp_path / "in").mkdir()
    for i in range(40):
        (tmp_path / "in" / f"{i}.png").write_bytes(encode(Image.new("RGB", (2, 2))))
    read, done, waiting = 0, 0, []
    read_file, decode = sources.read_file, images.decode

    def counted(path: str) -> bytes:
        nonlocal read
        read += 1
        waiting.append(read - done)
        return read_file(path)

    def slow(*arguments: object, **settings: bool) -> np.ndarray:
        nonlocal done
        time.sleep(0.002)
        done += 1
        return decode(*arguments, **settings)

    monkeypatch.setattr(sources, "read_file", counted)
    monkeypatch.setattr(images, "decode", slow)
    load(tmp_path / "in", (2, 2), threads=1)
    assert read == done == 40
    assert max(waiting) <= 6


def test_skipped_files_are_sorted_whether_reading_or_decoding_failed(folder: Path) -> None:
    (folder / "a dangling link.jpg").symlink_to("nowhere")
    (folder / "z dangling link.jpg").symlink_to("nowhere")
    skipped = load(folder).skipped
    assert len(skipped) == 5
    assert skipped == sorted(skipped)


def test_remarks_on_metadata_neither_warn_nor_matter(tmp_path: Path, encode) -> None:
    """The orientation says 6; a second entry points beyond the end, of which Pillow warns."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x010E, 2, 500, 9999)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = 255
    (tmp_path / "a.jpg").write_bytes(encode(image, "JPEG", exif=exif))
    pixels = load(tmp_path, (60, 40)).images[0]
    assert pixels[:25].min() > 250
    assert pixels[35:].max() < 5


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_archives_give_the_same_images(folder: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cats.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*.*"):
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as archive:
            archive.add(folder, ".")
    expected = load(folder)
    for _ in range(2):  # decoded, and from the cache
        result = load(path)
        names = [name.removeprefix("./") for name in result.names]
        assert sorted(names) == GOOD
        order = [names.index(name) for name in GOOD]
        np.testing.assert_array_equal(result.images[order], expected.images)
        assert [(name.removeprefix("./"), reason) for name, reason in result.skipped] == SKIPPED
        assert result.summary().startswith(f"8 images from cats.{kind}, 3 skipped: ")


def test_a_tar_broken_half_way_is_an_error_and_is_not_kept(folder: Path, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "cats.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, ".")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cats\.tgz is broken, cut short"):
        load(path)
    assert list(cache.iterdir()) == []


def test_grey_images_can_be_left_out(folder: Path) -> None:
    result = load(folder, skip_grey=True)
    assert result.names == [name for name in GOOD if name not in ("g.png", "h.png")]
    assert ("g.png", "grey") in result.skipped


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_listed_files_are_left_out(folder: Path, tmp_path: Path, bom: bytes) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(bom + "a.PNG\r\nmore/é.png\n\n  c.webp \ntext.jpg\nnowhere.png".encode())
    for _ in range(2):  # decoded, and from the cache
        result = load(folder, leave_out=names)
        assert result.names == ["b.jpg", "f.png", "g.png", "h.png", "more/d.jpeg"]
        assert result.summary() == (
            "5 images from cats/, 4 of 5 listed names left out, 2 skipped: cut.jpg (truncated), empty.png (empty file)"
        )


def test_a_list_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names\.txt, the list of files to leave out, cannot be read: .*No such"):
        load(folder, leave_out=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"names\.txt, the list of files to leave out, cannot be read: .*decode"):
        load(folder, leave_out=tmp_path / "names.txt")


def test_too_few_images_say_how_many_and_why(folder: Path) -> None:
    for _ in range(2):  # decoded, and from the cache
        with pytest.raises(DataError) as caught:
            load(folder, minimum=64)
        assert str(caught.value) == (
            "cats/ has 8 usable images; at least 64 needed. Found: 11 image files, 3 skipped: "
            "cut.jpg (truncated), empty.png (empty file), text.jpg (not a JPEG, PNG, WebP, GIF, BMP or TIFF image). "
            "Give a folder or archive of more JPEG, PNG, WebP, GIF, BMP or TIFF images, or choose a smaller batch size."
        )
    assert len(load(folder, minimum=8).names) == 8


def test_none_left_says_why(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"^in/ has 0 usable images; at least 1 needed.* 1 skipped: a\.jpg \(not"):
        load(tmp_path / "in")
    assert list(cache.iterdir()) == []


def test_at_most_ten_names_are_shown() -> None:
    skipped = [(f"{i:02}.jpg", "truncated") for i in range(22)]
    summary = ImageSet(Path("cats.zip"), np.empty((0, 1, 1, 3), np.uint8), ["x"] * 1203, skipped).summary()
    assert summary.startswith("1,203 images from cats.zip, 22 skipped: 00.jpg (truncated), 01.jpg")
    assert summary.endswith("09.jpg (truncated) and 12 more")


def test_names_are_made_printable(tmp_path: Path, encode, noise) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "good.png").write_bytes(encode(noise(0)))
    (root / "line\nend\x1b[31m.jpg").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root) + b"/latin\xe9.jpg")).write_bytes(b"")
    for _ in range(2):  # decoded, and from the cache
        result = load(root)
        text = result.summary()
        text.encode()
        assert r"latin\udce9.jpg (empty file), line\nend\x1b[31m.jpg (empty file)" in text
        assert len(result.skipped) == 2


def test_image_size_is_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"image_size must be \(height, width\)"):
        load(folder, (0, 8))


def test_relative_paths_and_strings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load(".").summary().startswith("8 images from cats/")
    assert load("more").names == ["c.webp", "d.jpeg", "é.png"]


def test_a_bar_is_for_terminals(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_images(folder, (4, 4))
    assert capfd.readouterr() == ("", "")


def test_a_set_outlives_its_source(folder: Path) -> None:
    result = load(folder)
    before = result.images.copy()
    shutil.rmtree(folder)
    np.testing.assert_array_equal(result.images, before)
