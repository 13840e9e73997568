"""Sets of images that are kept, found again, damaged, shared and given up."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import minigan.data.images as images_module
from minigan.data import DataError, ImageSet, load_images
from minigan.data.cache import _header, _prune, cache_folder


@pytest.fixture
def folder(tmp_path: Path, encode, noise) -> Path:
    """Four images and one that cannot be used."""
    root = tmp_path / "in"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(encode(noise(i)))
    (root / "bad.jpg").write_bytes(b"text")
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The data of each call of decode."""
    calls: list[bytes] = []
    decode = images_module.decode

    def counted(data: bytes, *sizes: int, **settings: bool) -> np.ndarray:
        calls.append(data)
        return decode(data, *sizes, **settings)

    monkeypatch.setattr(images_module, "decode", counted)
    return calls


def load(path: Path, size: tuple[int, int] = (8, 8), **settings: object) -> ImageSet:
    return load_images(path, size, progress=False, **settings)


def check(result: ImageSet, noise: Callable[..., np.ndarray]) -> None:
    np.testing.assert_array_equal(result.images, np.stack([noise(i) for i in range(4)]))
    assert result.images.dtype == np.uint8
    assert not result.images.flags.writeable
    assert result.names == [f"{i}.png" for i in range(4)]
    assert result.skipped == [("bad.jpg", "not a JPEG, PNG, WebP, GIF, BMP or TIFF image")]


def test_the_second_time_nothing_is_decoded(folder: Path, decoded: list[bytes], noise, cache: Path) -> None:
    check(load(folder), noise)
    assert len(decoded) == 5
    result = load(folder)
    assert len(decoded) == 5
    check(result, noise)
    assert isinstance(result.images, np.memmap)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]
    np.testing.assert_array_equal(np.load(next(cache.glob("*.npy"))), result.images)


def test_a_moved_folder_is_found_again(folder: Path, decoded: list[bytes], noise) -> None:
    load(folder)
    check(load(folder.rename(folder.with_name("moved"))), noise)
    assert len(decoded) == 5


def test_every_setting_and_every_change_of_a_file_counts(
    folder: Path, decoded: list[bytes], encode, noise, caplog
) -> None:
    names = folder.with_name("names.txt")
    names.write_text("0.png")
    count = 0
    for settings in ({}, {"skip_grey": True}, {"size": (8, 7)}, {"size": (7, 8)}, {"leave_out": names}):
        load(folder, **settings)
        assert len(decoded) > count, settings
        count = len(decoded)
    (folder / "0.png").write_bytes(encode(noise(9)))
    os.utime(folder / "0.png", ns=(1, 1))
    np.testing.assert_array_equal(load(folder).images[0], noise(9))
    (folder / "4.png").write_bytes(encode(noise(4)))
    assert len(load(folder).names) == 5
    assert not caplog.records


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"PK\3\4" + bytes(path.stat().st_size - 4))


def lose_a_name(path: Path) -> None:
    record = json.loads(path.read_text())
    record["names"].pop()
    path.write_text(json.dumps(record))


def lose_a_key(path: Path) -> None:
    path.write_text("{}")


def other_json(path: Path) -> None:
    path.write_text("[1, 2]")


DAMAGE = [
    *((".npy", change) for change in (shorten, lengthen, empty, overwrite)),
    *((".json", change) for change in (shorten, empty, overwrite, lose_a_name, lose_a_key, other_json)),
]


@pytest.mark.parametrize(("suffix", "damage"), DAMAGE)
def test_a_damaged_set_is_built_again(
    folder: Path, decoded, noise, cache: Path, caplog, suffix: str, damage: Callable[[Path], None]
) -> None:
    load(folder)
    damage(next(cache.glob("*" + suffix)))
    check(load(folder), noise)
    assert len(decoded) == 10
    assert "are damaged" in caplog.text
    check(load(folder), noise)
    assert len(decoded) == 10, "it was mended"


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_half_a_set_is_built_again(folder: Path, decoded, noise, cache: Path, suffix: str) -> None:
    load(folder)
    next(cache.glob("*" + suffix)).unlink()
    check(load(folder), noise)
    assert len(decoded) == 10


def test_an_unwritable_cache_is_one_warning_and_memory(folder: Path, noise, tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "file" / "cache"))
    check(load(folder), noise)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "No image cache" in caplog.text
    assert "Set MINIGAN_CACHE" in caplog.text


def test_a_full_disk_is_one_warning_and_memory(folder: Path, noise, cache: Path, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigan.data.cache.os.replace", full)
    check(load(folder), noise)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text
    assert list(cache.iterdir()) == []


def test_what_could_not_be_read_this_time_is_tried_again(
    folder: Path, decoded, noise, cache, monkeypatch, caplog
) -> None:
    def read(path: str) -> bytes:
        if path.endswith("0.png"):
            (folder / "0.png").rename(folder / "hidden")
        try:
            return original(path)
        finally:
            if path.endswith("0.png"):
                (folder / "hidden").rename(folder / "0.png")

    from minigan.data import sources

    original = sources.read_file
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_file", read)
        result = load(folder)
    assert result.skipped[0] == ("0.png", "cannot be read: No such file or directory")
    assert len(result.images) == 3
    assert "not kept for the next run: some of the files could not be read" in caplog.text
    assert list(cache.iterdir()) == []
    check(load(folder), noise)


def test_an_interrupted_build_leaves_nothing(folder: Path, cache: Path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(images_module, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(folder)
    assert list(cache.iterdir()) == []


def test_two_threads_decode_once(folder: Path, decoded: list[bytes], noise) -> None:
    results: list[ImageSet] = []
    threads = [threading.Thread(target=lambda: results.append(load(folder))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 5
    for result in results:
        check(result, noise)


def test_two_processes_at_once(folder: Path, noise, cache: Path) -> None:
    code = (
        "import sys, time, minigan.data.images as images\n"
        "decode = images.decode\n"
        "def slow(*a, **k): time.sleep(0.1); return decode(*a, **k)\n"  # so that both surely build
        "images.decode = slow\n"
        "result = images.load_images(sys.argv[1], (8, 8), threads=1)\n"
        "print(result.images.tobytes().hex())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [run.communicate()[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs == [load(folder).images.tobytes().hex()] * 2
    check(load(folder), noise)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_the_set_longest_out_of_use_gives_way(folder: Path, decoded, cache: Path, monkeypatch) -> None:
    sizes = [(8, 8), (8, 9), (8, 10)]
    set_bytes = 4 * 8 * 10 * 3 + len(_header((4, 8, 10, 3)))
    monkeypatch.setenv("MINIGAN_CACHE_GIB", str(2.1 * set_bytes / 2**30))
    for age, size in ((100, sizes[0]), (50, sizes[1])):
        load(folder, size)
        newest = max(cache.glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (time.time() - age,) * 2)
    kept = load(folder, sizes[0])  # used again, so that the other one is the oldest
    load(folder, sizes[2])
    assert len(list(cache.glob("*.npy"))) == len(list(cache.glob("*.json"))) == 2
    count = len(decoded)
    np.testing.assert_array_equal(load(folder, sizes[0]).images, kept.images)
    load(folder, sizes[2])
    assert len(decoded) == count
    load(folder, sizes[1])
    assert len(decoded) == count + 5


def test_a_set_in_use_stays_readable_when_it_is_removed(folder: Path, noise, cache: Path) -> None:
    result = load(folder)
    _prune(cache, 1)
    assert list(cache.iterdir()) == []
    check(result, noise)


def test_a_set_larger_than_the_bound_is_not_kept(folder: Path, noise, cache: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MINIGAN_CACHE_GIB", "1e-7")
    check(load(folder), noise)
    assert "not kept for the next run: they take" in caplog.text
    assert list(cache.iterdir()) == []


def test_the_cache_can_be_turned_off(folder: Path, noise, cache: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("MINIGAN_CACHE_GIB", "0")
    check(load(folder), noise)
    assert not cache.exists()
    assert not caplog.records


@pytest.mark.parametrize("text", ["plenty", "inf", "nan"])
def test_a_bound_that_is_no_number(folder: Path, monkeypatch, text: str) -> None:
    monkeypatch.setenv("MINIGAN_CACHE_GIB", text)
    with pytest.raises(DataError, match=f"MINIGAN_CACHE_GIB must be a number of GiB .* not '{text}'"):
        load(folder)


def test_what_killed_runs_left_is_removed_and_what_lives_is_not(folder: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, age in (("old.part", 7200), ("new.part", 60)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - age,) * 2)
    load(folder)
    assert [path.name for path in cache.glob("*.part")] == ["new.part"]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("MINIGAN_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "minigan"
    monkeypatch.delenv("XDG_CACHE_HOME")
    for platform, place in (
        ("linux", ".cache/minigan"),
        ("darwin", "Library/Caches/minigan"),
        ("win32", "Local/minigan/Cache"),
    ):
        monkeypatch.setattr("minigan.data.cache.sys.platform", platform)
        assert cache_folder() == tmp_path / place


def test_the_head_of_a_file_has_one_length_for_any_number_of_images() -> None:
    lengths = {len(_header((count, 1024, 1024, 3))) for count in (0, 1, 999, 10**12)}
    assert len(lengths) == 1
