"""Images and archives that are damaged at random, unusual, or made to do harm: used, or refused with a reason.

What single reasons read like is tested in test_decode.py and test_sources.py; here it is the mass of cases, and that
nothing is written and little memory taken.
"""

import gzip
import io
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigan.data import DataError, decode, open_source, sources
from minigan.data.decode import pillow_warnings

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
Encode = Callable[..., bytes]


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, interlaced: bool = False) -> bytes:
    """A PNG file of any kind; Pillow writes few of them. rows: a filter byte, and packed pixels, for each row."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---- damage at random


@pytest.fixture(
    scope="module", params=["JPEG", "progressive JPEG", "PNG", "PNG with right checksums", "WEBP", "lossless"]
)
def sample(request: pytest.FixtureRequest, encode: Encode, noise: Callable[..., np.ndarray]) -> tuple[str, bytes]:
    """A kind of image file, and one of its kind: 24 x 24 pixels, with EXIF data."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description " * 10
    kind: str = request.param
    settings = {
        "JPEG": {"quality": 95},
        "progressive JPEG": {"quality": 95, "progressive": True},
        "WEBP": {"quality": 95},
        "lossless": {"lossless": True},
    }
    format = {"progressive JPEG": "JPEG", "PNG with right checksums": "PNG", "lossless": "WEBP"}.get(kind, kind)
    return kind, encode(noise(0, 24, 24), format, exif=exif, **settings.get(kind, {}))


def tried(data: bytes) -> str:
    """ "" where it could be decoded, else the reason. Anything but pixels and DataError fails the test."""
    try:
        with pillow_warnings():
            pixels = decode(data, 8, 8)
    except DataError as error:
        return str(error)
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    return ""


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them now, so that the damage gets beyond them."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        length = int.from_bytes(fixed[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def test_a_thousand_mutations_are_decoded_or_refused(sample: tuple[str, bytes]) -> None:
    kind, data = sample
    rng = random.Random(0)
    assert tried(data) == ""
    refused = 0
    for _ in range(1000):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(mutant) if rng.random() < 0.5 else 100)  # the heads of the formats are short
            count = rng.randint(1, 8)
            piece = bytes(mutant[at : at + count])
            new = rng.choice([rng.randbytes(count), b"", piece * 2, b"\xff" * count, bytes(count), piece[::-1]])
            if rng.random() < 0.5 and piece:
                new = bytes([piece[0] ^ 1 << rng.randrange(8)]) + piece[1:]
            mutant[at : at + count] = new
        refused += tried(with_right_checksums(mutant) if "checksums" in kind else bytes(mutant)) != ""
    assert refused > 100, "the damage was too small to show anything"


def test_a_thousand_truncations_are_decoded_or_refused(sample: tuple[str, bytes]) -> None:
    _, data = sample
    assert len(data) > 1000
    step = len(data) // 1000
    results = [tried(data[:length]) for length in range(0, len(data), step)]
    assert len(results) >= 1000
    # Only the last bytes may be missing: those that close the file, after all of its pixels.
    assert all(results[: -20 // step])


# ---- the zoo


def adam7(image: np.ndarray) -> bytes:
    """The rows of an interlaced PNG. image: (H, W, 3), uint8."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = (row for top, left, down, right in passes for row in image[top::down, left::right])
    return b"".join(b"\0" + row.tobytes() for row in rows if row.size)


def test_interlaced_pngs(noise: Callable[..., np.ndarray]) -> None:
    for height, width in ((13, 11), (1, 1), (2, 9)):
        image = noise(0, height, width)
        data = png(width, height, 8, 2, adam7(image), interlaced=True)
        np.testing.assert_array_equal(decode(data, height, width), image)


@pytest.mark.parametrize(
    ("depth", "colour", "row", "expected"),
    [
        (1, 0, b"\x80", [255, 0]),
        (2, 0, b"\x60", [85, 170]),
        (4, 0, b"\x3c", [51, 204]),
        (8, 0, b"\x33\xcc", [51, 204]),
        (16, 0, b"\x33\x33\xcc\xcc", [51, 204]),
        (8, 2, b"\x33\x33\x33\xcc\xcc\xcc", [51, 204]),
        (16, 2, b"\x33\x33" * 3 + b"\xcc\xcc" * 3, [51, 204]),
        (8, 4, b"\x33\xff\x33\x00", [51, 255]),
        (16, 4, b"\x33\x33\xff\xff\x33\x33\x00\x00", [51, 255]),
        (8, 6, b"\x33\x33\x33\xff\xcc\xcc\xcc\x00", [51, 255]),
        (16, 6, b"\x33\x33" * 3 + b"\xff\xff" + b"\xcc\xcc" * 3 + b"\0\0", [51, 255]),
    ],
)
def test_every_depth_and_kind_of_png(depth: int, colour: int, row: bytes, expected: list[int]) -> None:
    """Grey, grey with alpha, colours, colours with alpha; two pixels."""
    pixels = decode(png(2, 1, depth, colour, b"\0" + row), 1, 2)
    assert pixels.tolist() == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_of_photos(encode: Encode, format: str, orientation: int) -> None:
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :32] = RED  # a corner that tells all eight apart, with the long side
    exif = Image.Exif()
    exif[0x0112] = orientation
    shape = (32, 64) if orientation <= 4 else (64, 32)
    red = decode(encode(stored, format, exif=exif, quality=95), *shape)[..., 0] > 127
    top, left = red[: shape[0] // 2].mean() > 0.25, red[:, : shape[1] // 2].mean() > 0.25
    corners = {1: (1, 1), 2: (1, 0), 3: (0, 0), 4: (0, 1), 5: (1, 1), 6: (1, 0), 7: (0, 0), 8: (0, 1)}
    assert (top, left) == corners[orientation]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 16_000), (16_000, 1), (2, 16_383)])
def test_extreme_shapes(encode: Encode, format: str, size: tuple[int, int]) -> None:
    data = encode(Image.new("RGB", size, (200, 30, 40)), format)
    for target in ((1, 1), (8, 8), (64, 2)):
        pixels = decode(data, *target).astype(int)
        assert pixels.shape == (*target, 3)
        assert np.abs(pixels - (200, 30, 40)).max() <= 6


def test_photos_of_other_kinds(encode: Encode) -> None:
    """What cameras, phones and printers make besides plain JPEGs."""
    red = Image.new("RGB", (16, 24), RED)
    progressive = encode(red, "JPEG", progressive=True)
    assert b"\xff\xc2" in progressive
    several = encode(red, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 24), BLUE)])
    printed = encode(Image.new("CMYK", (16, 24), (0, 255, 255, 0)), "JPEG", progressive=True)
    for data in (progressive, several, printed, progressive + b"\0" * 999, progressive + several):
        pixels = decode(data, 24, 16).astype(int)
        assert np.abs(pixels - RED).max() <= 4


def test_animations_with_transparency(encode: Encode) -> None:
    frames = [Image.new("RGBA", (8, 8), (*colour, alpha)) for colour, alpha in ((RED, 255), (GREEN, 0), (BLUE, 9))]
    for format in ("PNG", "WEBP"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50, lossless=True)
        assert (decode(data, 8, 8) == RED).all()
        clear = encode(frames[1], format, save_all=True, append_images=frames[::2], duration=50, lossless=True)
        assert (decode(clear, 8, 8) == 255).all()


# ---- bombs, and archives made to do harm


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax_header(kind: bytes, records: bytes) -> bytes:
    return tar_header("pax", len(records), kind) + records + bytes(-len(records) % 512)


def packed(*parts: bytes | tuple[bytes, int]) -> bytes:
    """A gzip file; (bytes, n) are n times the bytes, which takes little time and room."""
    pairs = [part if isinstance(part, tuple) else (part, 1) for part in parts]
    return b"".join(gzip.compress(data, 1) * count for data, count in pairs)


def old_sparse() -> bytes:
    """A sparse file's map in the old GNU format, which goes on and on."""
    head = bytearray(tar_header("sparse.jpg", 0, tarfile.GNUTYPE_SPARSE))
    head[482] = 1  # the map goes on in the next block
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    block = b"".join(b"%011o %011o " % (i, 1) for i in range(21)) + b"\1" + bytes(7)
    return packed(bytes(head), (block * 2000, 200))


def new_sparse() -> bytes:
    """A sparse file's map in a newer GNU format, which claims a million million entries, and has very many."""
    records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=s.jpg\n25 GNU.sparse.realsize=9\n"
    head = pax_header(tarfile.XHDTYPE, records)
    return packed(head + tar_header("sparse.jpg", 2**33), b"1000000000000\n" + b"0\n" * 249, (b"0\n" * 2**20, 40))


def long_names() -> bytes:
    return packed(*[tar_header("././@LongLink", 2**25, tarfile.GNUTYPE_LONGNAME), (bytes(2**20), 32)] * 20)


def fields(first: int, count: int) -> bytes:
    return b"".join(b"13 %07x=1\n" % i for i in range(first, first + count))


def many_fields() -> bytes:
    return packed(pax_header(tarfile.XHDTYPE, fields(0, 2_000_000)) + tar_header("a.jpg", 0))


def lasting_fields() -> bytes:
    """Remarks on all files that follow; each is small enough."""
    remarks = (pax_header(tarfile.XGLTYPE, fields(first, 75_000)) for first in range(0, 1_500_000, 75_000))
    return packed(*[remark + tar_header("a.jpg", 0) for remark in remarks])


def one_bit_png() -> bytes:
    """30,000 x 30,000 pixels in little room."""
    row = b"\0" + bytes(3750)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row * 1000) for _ in range(30)) + packer.flush()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(kind, body) for kind, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    )


NAMES = ["../../up.png", "/abs.png", "C:\\windows.png", "..\\up.png", "a/../../b.png", "twice.png", "twice.png"]
LONG = "x" * 5000 + ".png"
NO_FILE = "a link or a device, not a file"
SPECIAL = {
    "soft.png": (tarfile.SYMTYPE, "/etc/passwd"),
    "hard.png": (tarfile.LNKTYPE, "/etc/passwd"),
    "circle.png": (tarfile.LNKTYPE, "circle.png"),
    "zero.png": (tarfile.CHRTYPE, ""),
    "disk.png": (tarfile.BLKTYPE, ""),
    "pipe.png": (tarfile.FIFOTYPE, ""),
    "unknown.png": (b"Z", ""),
}

# What comes of each archive: the names of the images and the reasons of the others, or why nothing can be used.
EXPECTED: dict[str, tuple[list[str], dict[str, str]] | str] = {
    "bombs.zip": (
        ["good.png"],
        {
            "large.png": "larger than 25 megapixels",
            "text.png": "damaged: ",
            "profile.png": "damaged: ",
            "zeros.png": "larger than 64 MiB",
        },
    ),
    "names.zip": (sorted([*NAMES, LONG]), {"link.png": "a link, not a file"}),
    "names.tar": ([*NAMES, LONG, "\udcff.png"], dict.fromkeys(SPECIAL, NO_FILE)),
    "not-utf-8.zip": "not-utf-8.zip is broken, cut short or cannot be read: 'utf-8' codec can't decode",
    "lies.zip": (["good.png"], {"claims.png": "broken in the archive: "}),
    "nested.zip": "1 skipped: inner.png (not a JPEG, PNG, WebP, GIF, BMP or TIFF image)",
    "claims.tar": "claims.tar is broken",
    "negative.tar": "negative.tar is broken",
    "zeros.tgz": "1 skipped: a.png (larger than 64 MiB)",
    "only-zeros.tgz": "only-zeros.tgz holds no images",
    "old_sparse.tgz": "old_sparse.tgz is broken: headers of one file claim more than 1,048,576 bytes",
    "new_sparse.tgz": "new_sparse.tgz is broken: headers of one file claim more than 1,048,576 bytes",
    "long_names.tgz": "long_names.tgz is broken: headers of one file claim more than 1,048,576 bytes",
    "many_fields.tgz": "many_fields.tgz is broken: headers of one file claim more than 1,048,576 bytes",
    "lasting_fields.tgz": "20 skipped: a.jpg (empty file)",
}


def make_archives(folder: Path, good: bytes) -> None:
    """The archives of EXPECTED; `good` is an image that can be used."""
    large = one_bit_png()
    assert len(large) < 600_000
    bomb = zlib.compress(bytes(100 * 2**20), 1)
    with zipfile.ZipFile(folder / "bombs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", good)
        archive.writestr("large.png", large)
        archive.writestr("text.png", good[:33] + png_chunk(b"zTXt", b"text\0\0" + bomb) + good[33:])
        archive.writestr("profile.png", good[:33] + png_chunk(b"iCCP", b"icc\0\0" + bomb) + good[33:])
        with archive.open("zeros.png", "w") as file:
            for _ in range(400):
                file.write(bytes(2**20))

    with zipfile.ZipFile(folder / "names.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the name that comes twice
        for name in [*NAMES, LONG]:
            archive.writestr(zipfile.ZipInfo(name), good)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with tarfile.open(folder / "names.tar", "w") as tar:
        for name in [*NAMES, LONG, "\udcff.png"]:
            member = tarfile.TarInfo(name)
            member.size = len(good)
            tar.addfile(member, io.BytesIO(good))
        for name, (kind, target) in SPECIAL.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    with zipfile.ZipFile(folder / "not-utf-8.zip", "w") as archive:
        archive.writestr("ü.png", good)
    content = (folder / "not-utf-8.zip").read_bytes()
    (folder / "not-utf-8.zip").write_bytes(content.replace("ü".encode(), b"\xff\xfe"))

    with zipfile.ZipFile(folder / "lies.zip", "w") as archive:
        for name in ("claims.png", "good.png"):
            archive.writestr(name, good)
    lies = bytearray((folder / "lies.zip").read_bytes())
    entry = lies.index(b"PK\1\2")
    lies[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**32 - 2)  # its packed and its unpacked size
    (folder / "lies.zip").write_bytes(lies)
    with zipfile.ZipFile(folder / "nested.zip", "w") as archive:
        archive.writestr("inner.zip", content)
        archive.writestr("inner.png", content)

    (folder / "claims.tar").write_bytes(tar_header("a.png", 2**40) + good + bytes(2048))
    (folder / "negative.tar").write_bytes(tar_header("a.png", -1024) + good + bytes(2048))
    (folder / "zeros.tgz").write_bytes(packed(tar_header("a.png", 400 * 2**20), (bytes(2**20), 400), bytes(1024)))
    (folder / "only-zeros.tgz").write_bytes(packed((bytes(2**20), 400)))
    for make in (old_sparse, new_sparse, long_names, many_fields, lasting_fields):
        (folder / f"{make.__name__}.tgz").write_bytes(make())


LOAD = """
import json, os, sys, types
from pathlib import Path
sys.modules["minigan"] = package = types.ModuleType("minigan")
package.__path__ = [sys.argv[1]]
from minigan.data import DataError, load_images

found = {}
for path in sorted(Path(sys.argv[2]).iterdir()):
    try:
        images = load_images(path, (8, 8), threads=2, progress=False)
        found[path.name] = [images.names, dict(images.skipped)]
    except DataError as error:
        found[path.name] = str(error)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(f"{path.name}: {peak:.0f} MiB", file=sys.stderr)
print(json.dumps([found, peak]))
"""


def listing(folder: Path) -> Iterator[tuple[str, int, int]]:
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        yield str(path), status.st_size if path.is_file() else 0, status.st_mtime_ns


def test_hostile_archives_are_used_or_refused_in_little_memory_and_write_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, encode: Encode, noise: Callable[..., np.ndarray]
) -> None:
    archives = tmp_path / "a" / "b" / "archives"
    work = tmp_path / "a" / "b" / "work"
    archives.mkdir(parents=True)
    work.mkdir()
    make_archives(archives, encode(noise(0)))
    before = list(listing(tmp_path)), Path("/abs.png").exists()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOAD, str(Path(sources.__file__).parents[1]), str(archives)],
        capture_output=True,
        text=True,
        cwd=work,
        env={**os.environ, "MINIGAN_CACHE": str(tmp_path_factory.mktemp("cache"))},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found, peak = json.loads(done.stdout)
    assert found.keys() == EXPECTED.keys()
    for name, expected in EXPECTED.items():
        result = found[name]
        if isinstance(expected, str):
            assert expected in result, name
        else:
            assert result[0] == expected[0], name
            assert result[1].keys() == expected[1].keys(), name
            assert all(result[1][file].startswith(reason) for file, reason in expected[1].items()), result[1]
    assert (list(listing(tmp_path)), Path("/abs.png").exists()) == before
    assert peak < 300, done.stderr


def test_files_that_are_no_images_do_not_count_towards_the_bound_of_headers(tmp_path: Path) -> None:
    other = tar_header("text.txt", 0) * 5000
    (tmp_path / "in.tar").write_bytes(other + tar_header("a.jpg", 1) + b"1" + bytes(511) + other + bytes(1024))
    assert len(other) > sources.MAX_TAR_HEADER
    assert [(entry.name, entry.read()) for entry in open_source(tmp_path / "in.tar")] == [("a.jpg", b"1")]
