"""Cat faces: upright, in the right place, cut at the borders; from folders and archives, also hostile ones."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigan.__main__ import main
from minigan.data import DataError, load_images, open_source
from minigan.data.cat_faces import Face, cut_out, find_face, parse_marks
from minigan.data.decode import decode_stored

# A head whose eyes are level, as offsets from the middle between the eyes: the marks in the order of an annotation.
EYES = (-30, 0), (30, 0)
HEAD = np.array([*EYES, (2, 35), (-70, -20), (-55, -50), (-35, -35), (35, -35), (52, -48), (70, -20)], float)
SIDE = 140  # from one outer point of the ears to the other
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
COLOURS = {0: RED, 1: GREEN, 4: BLUE, 7: YELLOW}  # the eyes and the tips of the ears
PLAIN = (40, 40, 40)


def turned_head(degrees: float, middle: tuple[float, float]) -> np.ndarray:
    """The marks (9, 2) of the head turned clockwise, as one sees it."""
    a = np.radians(degrees)
    return HEAD @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + middle


def draw(marks: np.ndarray, width: int = 400, height: int = 360) -> np.ndarray:
    """A picture with a soft dot, 4 pixels in radius, at the eyes and the tips of the ears."""
    picture = np.full((height, width, 3), PLAIN, float)
    rows, columns = np.mgrid[:height, :width]
    for i, colour in COLOURS.items():
        share = np.clip(4.5 - np.hypot(columns - marks[i, 0], rows - marks[i, 1]), 0, 1)[..., None]
        picture += share * (np.array(colour) - picture)
    return picture.round().astype(np.uint8)


def find(face: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where the dot of this colour is: (x, y)."""
    distance = np.abs(face.astype(int) - colour).max(-1)
    rows, columns = np.nonzero(distance < 90)
    assert len(rows) > 20, "a dot is not in the face"
    return np.array([columns.mean(), rows.mean()])


def line(marks: np.ndarray) -> bytes:
    """An annotation as the dataset has it, with the space at the end; here with decimals."""
    return ("9 " + " ".join(f"{value:.4f}" for value in marks.ravel()) + " ").encode()


def encoded(pixels: np.ndarray, format: str = "JPEG", **settings: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **({"quality": 95, "subsampling": 0} | settings))
    return file.getvalue()


# ---- upright and in the right place


@pytest.mark.parametrize("degrees", [-179, -120, -60.5, -15, -0.5, 0, 7, 30, 45, 90, 133, 180])
def test_the_face_is_upright_and_where_it_should_be(degrees: float) -> None:
    middle = (203.3, 171.8)
    marks = parse_marks(line(turned_head(degrees, middle)))
    face = find_face(marks, 400, 360)
    pixels = np.asarray(cut_out(Image.fromarray(draw(marks)), face))
    assert pixels.shape[0] in (SIDE, SIDE + 1)
    assert pixels.shape[1] in (SIDE, SIDE + 1)
    found = {i: find(pixels, colour) for i, colour in COLOURS.items()}
    assert abs(found[0][1] - found[1][1]) < 0.3, "the eyes are level"
    # The cut is at the pixel that holds the edge, so what is in the face may be up to one pixel to the right and below.
    fraction = np.modf(np.array(middle) - (SIDE / 2, SIDE * 0.4))[0]
    for i, place in found.items():
        expected = HEAD[i] + (SIDE / 2, SIDE * 0.4) + fraction
        np.testing.assert_allclose(place, expected, atol=0.4, err_msg=f"mark {i}")


@pytest.mark.parametrize("degrees", [-70, -35, -10])
def test_eyes_marked_the_wrong_way_round_are_swapped(degrees: float) -> None:
    marks = turned_head(degrees, (200, 170))
    swapped = marks[[1, 0, *range(2, 9)]]
    assert find_face(swapped, 400, 360) == find_face(marks, 400, 360)


def test_eyes_are_swapped_only_by_all_three_signs() -> None:
    # One sign of the three is missing: then the picture is turned round, as its marks say.
    marks = turned_head(-20, (200, 170))[[1, 0, *range(2, 9)]]
    level, mouth_at_left = marks.copy(), marks.copy()
    level[0, 1] = level[1, 1] = 170
    mouth_at_left[2, 0] = marks[1, 0] - 1
    assert abs(find_face(marks, 400, 360).degrees) < 90
    assert find_face(level, 400, 360).degrees == 180
    assert abs(find_face(mouth_at_left, 400, 360).degrees) > 90


# ---- borders


def level_marks(middle: tuple[float, float]) -> np.ndarray:
    return HEAD + middle


@pytest.mark.parametrize(
    ("middle", "box"),
    [
        ((200, 170), (130, 114, 270, 254)),
        ((50, 170), (0, 114, 120, 254)),  # 20 beyond the left border
        ((200, 40), (130, 0, 270, 124)),  # 16 beyond the upper one
        ((361, 170), (291, 114, 400, 254)),
        ((200, 300), (130, 244, 270, 360)),
        ((69, 55), (0, 0, 139, 139)),
        ((399 - 30, 359), (299, 303, 400, 360)),
        ((200.5, 170.2), (130, 114, 270, 254)),
    ],
)
def test_the_box_is_cut_at_the_borders(middle: tuple[float, float], box: tuple[int, int, int, int]) -> None:
    face = find_face(level_marks(middle), 400, 360)
    assert face == Face(0.0, middle, box)
    picture = np.random.default_rng(0).integers(0, 256, (360, 400, 3), np.uint8)
    left, top, right, bottom = box
    np.testing.assert_array_equal(cut_out(Image.fromarray(picture), face), picture[top:bottom, left:right])
    assert face.smaller_side == min(right - left, bottom - top)


def test_what_is_turned_in_from_outside_is_grey() -> None:
    marks = turned_head(40, (60, 60))
    face = np.asarray(cut_out(Image.fromarray(draw(marks)), find_face(marks, 400, 360)))
    assert face.shape == (SIDE, SIDE - 10, 3)
    outside = (face == 128).all(-1)
    assert outside[-1, 0]
    assert outside.mean() > 0.1
    assert not outside[20:80, 60:].any()


def test_coordinates_count_the_stored_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(decode_stored(encoded(pixels, "PNG", exif=exif)), pixels)
    with pytest.raises(DataError, match="not a JPEG, PNG, WebP, GIF, BMP or TIFF image"):
        decode_stored(b"no picture")


# ---- annotations

GOOD = line(level_marks((200, 170)))


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (b"", "got 0 words"),
        (b"9", "got 1 words"),
        (b"9 " + b"1 2 " * 8, "got 17 words"),
        (b"9 " + b"1 2 " * 9 + b"3", "got 20 words"),
        (b"8 " + b"1 2 " * 9, "expected 9 and then 18 numbers"),
        (b"9 " + b"1 2 " * 8 + b"1 nan", "expected numbers"),
        (b"9 " + b"1 2 " * 8 + b"1 inf", "expected numbers"),
        (b"9 " + b"1 2 " * 8 + b"1 1e300", "expected numbers"),
        (b"9 " + b"1 2 " * 8 + b"1 99999999999", "expected numbers"),
        (b"9 " + b"1 2 " * 8 + b"1 1_0", "expected numbers"),
        (b"9 " + b"\xff \x00 " * 9, "expected numbers"),
        (bytes(range(256)) * 2, "annotation: expected"),
        (b"9 " + b"1 2 " * 300_000, "at most 1,000 bytes, got 1,200,002"),
    ],
)
def test_what_is_no_annotation(annotation: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_marks(annotation)


def test_an_annotation_of_the_dataset() -> None:
    marks = parse_marks(b"9 175 160 239 162 199 199 149 121 137 78 166 93 281 101 312 96 296 -133 \r\n")
    assert marks.shape == (9, 2)
    assert marks[:2].tolist() == [[175, 160], [239, 162]]
    assert marks[8].tolist() == [296, -133]


def test_eyes_that_cannot_be() -> None:
    marks = level_marks((200, 170))
    marks[1] = marks[0]
    with pytest.raises(DataError, match="both eyes are in one place"):
        find_face(marks, 400, 360)
    for middle in ((-1, 170), (31, -1), (371, 170), (200, 360)):
        with pytest.raises(DataError, match=r"outside of the picture, 400 x 360"):
            find_face(level_marks(middle), 400, 360)
    ears_far_outside = level_marks((200, 170))
    ears_far_outside[3], ears_far_outside[8] = (-9e5, -9e5), (9e5, 9e5)
    assert find_face(ears_far_outside, 400, 360).box == (0, 0, 400, 360)


# ---- the command

SMALL = 0.5 * HEAD + (200, 170)  # a face of 70 pixels
FILES = {
    "CAT_00/00000001_000.jpg": encoded(draw(turned_head(20, (200, 170)))),
    "CAT_00/00000001_000.jpg.cat": line(turned_head(20, (200, 170))),
    "CAT_00/00000001_005.jpg": encoded(draw(turned_head(-30, (210, 160)))),
    "CAT_00/00000001_005.jpg.cat": line(turned_head(-30, (210, 160))),
    "CAT_01/small.jpg": encoded(draw(SMALL)),
    "CAT_01/small.jpg.cat": line(SMALL),
    "CAT_01/alone.jpg": encoded(draw(SMALL)),
    "CAT_01/lost.jpg.cat": GOOD,
    "CAT_01/short.jpg": encoded(draw(SMALL)),
    "CAT_01/short.jpg.cat": b"9 1 2 3",
    "CAT_01/text.jpg": b"no picture",
    "CAT_01/text.jpg.cat": GOOD,
    "copy/CAT_00/00000001_000.jpg": encoded(draw(turned_head(20, (200, 170)))),
    "copy/CAT_00/00000001_000.jpg.cat": line(turned_head(20, (200, 170))),
    "CAT_01/.hidden.jpg": b"x",
    "readme.txt": b"x",
}
SAID = [
    "too small: 1 (a side below 128 pixels)",
    "without annotation: 1",
    "doubles: 1 (a picture of the same name came before)",
    "damaged: 2",
    "  'CAT_01/short.jpg': annotation: expected 9 and then 18 numbers, got 4 words",
    "  'CAT_01/text.jpg': not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
]


def make(path: Path, files: dict[str, bytes], names: Sequence[str] | None = None) -> Path:
    """A folder or an archive, by the name; a tar has its files in the order of `names`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif path.suffix in (".tar", ".tgz"):
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            for name in names or files:
                member = tarfile.TarInfo(name)
                member.size = len(files[name])
                archive.addfile(member, io.BytesIO(files[name]))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def faces_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., list[str]]:
    """The function run(source, *options) -> what is said, a line each; the faces are in tmp_path / "faces"."""

    def run(source: Path, *options: str) -> list[str]:
        main(["data", "cats", str(source), str(tmp_path / "faces"), *options])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("cats", None),
        ("cats.zip", None),
        ("cats.tar", None),
        ("cats.tgz", lambda name: name.endswith(".jpg")),  # annotations first
        ("cats.tar", lambda name: not name.endswith(".jpg")),  # pictures first
    ],
)
def test_the_dataset_becomes_a_folder_of_faces(tmp_path: Path, run, name: str, order) -> None:
    source = make(tmp_path / name, FILES, sorted(FILES, key=order) if order else None)
    said = run(source)
    folder = tmp_path / "faces"
    assert said[0] == f"{folder}: 2 faces"
    assert said[1:-1] == SAID
    sheet = tmp_path / "faces-contact-sheet.png"
    assert said[-1].startswith(f"{sheet}: 2 of the faces")
    faces = faces_in(folder)
    assert list(faces) == ["00000001_000.png", "00000001_005.png"]
    for face in faces.values():
        assert min(face.shape[:2]) >= SIDE
        assert abs(find(face, RED)[1] - find(face, GREEN)[1]) < 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "faces", sheet.name]), "nothing else"
    with Image.open(sheet) as picture:
        width, height = picture.size
    assert (width % 194, height % 96) == (0, 0)  # two faces, and a gap of two pixels
    assert load_images(folder, (16, 16), progress=False).names == list(faces)


def test_the_smallest_side_is_kept(tmp_path: Path, run) -> None:
    files = {}
    for side in (127, 128, 129):
        marks = level_marks((200, 170))
        marks[3, 0], marks[8, 0] = 100, 100 + side
        files |= {f"{side}.jpg": encoded(draw(marks)), f"{side}.jpg.cat": line(marks)}
    said = run(make(tmp_path / "cats", files))
    assert said[1] == "too small: 1 (a side below 128 pixels)"
    assert {name: face.shape for name, face in faces_in(tmp_path / "faces").items()} == {
        "128.png": (128, 128, 3),
        "129.png": (129, 129, 3),
    }
    (tmp_path / "second").mkdir()
    main(["data", "cats", str(tmp_path / "cats"), str(tmp_path / "second"), "--smallest", "127"])
    assert len(faces_in(tmp_path / "second")) == 3


def test_the_contact_sheet_shows_some_of_many(tmp_path: Path, run) -> None:
    picture, marks = encoded(draw(SMALL)), line(SMALL)
    files = {f"{i}.jpg{end}": data for i in range(70) for end, data in (("", picture), (".cat", marks))}
    assert "64 of the faces" in run(make(tmp_path / "cats.zip", files), "--smallest", "70")[-1]
    with Image.open(tmp_path / "faces-contact-sheet.png") as sheet:
        assert sheet.size == (8 * 98 - 2, 8 * 98 - 2)


def test_links_in_archives_are_not_followed(tmp_path: Path, run) -> None:
    outside = make(tmp_path / "outside", {"secret.jpg": FILES["CAT_00/00000001_000.jpg"], "secret.jpg.cat": GOOD})
    files = {name: data for name, data in FILES.items() if name.startswith("CAT_00/")}
    archived = {"tar": make(tmp_path / "cats.tar", files), "zip": make(tmp_path / "cats.zip", files)}
    with tarfile.open(archived["tar"], "a") as tar:
        for name, to in (("picture.jpg", "secret.jpg"), ("CAT_00/00000001_000.jpg.cat", "secret.jpg.cat")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(outside / to)
            tar.addfile(link)
    with zipfile.ZipFile(archived["zip"], "a") as zipped:
        for name in ("picture.jpg", "a.jpg", "a.jpg.cat"):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16 if name != "a.jpg" else 0o100644 << 16
            zipped.writestr(info, str(outside / "secret.jpg") if name != "a.jpg" else FILES["CAT_01/small.jpg"])
    said = run(archived["tar"])
    assert "damaged: 2" in said
    assert "  'picture.jpg': a link or a device, not a file" in said
    assert "  'CAT_00/00000001_000.jpg': a link or a device, not a file" in said
    assert list(faces_in(tmp_path / "faces")) == ["00000001_005.png"]
    main(["data", "cats", str(archived["zip"]), str(tmp_path / "second")])
    assert list(faces_in(tmp_path / "second")) == ["00000001_000.png", "00000001_005.png"]


def test_names_in_archives_cannot_leave_the_folder(tmp_path: Path, run) -> None:
    names = ["../../up.jpg", "/abs.jpg", "a\\b.jpg", "new\nline.jpg", "日本.jpg", "l" * 300 + ".jpg"]
    marked = line(turned_head(20, (200, 170)))
    picture = FILES["CAT_00/00000001_000.jpg"]
    files = {name + end: data for name in names for end, data in ((".cat", marked), ("", picture))}
    run(make(tmp_path / "cats.tar", files))
    wanted = ["up.png", "abs.png", "b.png", "new_line.png", "日本.png", "l" * 60 + ".png"]
    assert sorted(faces_in(tmp_path / "faces")) == sorted(wanted)
    assert len(list(tmp_path.rglob("*.png"))) == len(wanted) + 1


def test_many_damaged_ones_are_named_in_part(tmp_path: Path, run) -> None:
    files = {f"{i}.jpg{end}": b"x" for i in range(9) for end in ("", ".cat")}
    said = run(make(tmp_path / "cats", files | FILES))
    assert "damaged: 11" in said
    assert sum(text.startswith("  '") for text in said) == 5
    assert said[-2] == "  ..."


def test_an_interrupted_run_leaves_whole_faces_only(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def interrupted(picture: Image.Image, path: Path, *arguments: object) -> None:
        save(picture, path, *arguments)
        if "005" in path.name:
            path.write_bytes(path.read_bytes()[:100])
            raise KeyboardInterrupt

    source = make(tmp_path / "cats", FILES)
    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(SystemExit) as end:
        run(source)
    assert end.value.code == 130
    assert list(faces_in(tmp_path / "faces")) == ["00000001_000.png"]


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({"a.jpg": b"x"}, (), "hold no annotations (.cat files)"),
        ({"a.jpg": b"x"}, (), "of pictures with their annotations, as a.jpg and a.jpg.cat."),
        ({"a.jpg.cat": GOOD}, (), "hold no images"),
        ({"a.jpg": b"x", "a.jpg.cat": b"x"}, (), "no face could be cut out"),
        (FILES, ("--smallest", "0"), "--smallest: expected a number of pixels from 1, got 0"),
        (FILES, ("--smallest", "x"), "invalid int value: 'x'"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, run, capsys, files, options, words: str) -> None:
    with pytest.raises(SystemExit) as end:
        run(make(tmp_path / "cats", files), *options)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_folder_has_to_be_new_or_empty(tmp_path: Path, run, capsys) -> None:
    source = make(tmp_path / "cats", FILES)
    taken = tmp_path / "faces"
    for fill in (lambda: taken.write_bytes(b"x"), lambda: make(taken, {"mine.png": b"x"})):
        fill()
        with pytest.raises(SystemExit):
            run(source)
        assert f"DST: expected a new or empty folder, got {taken}" in capsys.readouterr().err
        if taken.is_file():
            taken.unlink()
    assert [path.name for path in taken.iterdir()] == ["mine.png"]


def test_no_more_annotations_than_fit_in_memory(tmp_path: Path, run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("minigan.commands.data.MAX_BYTES", 1800)
    with pytest.raises(SystemExit):
        run(make(tmp_path / "cats", FILES))
    assert "more annotations, 3, than fit" in capsys.readouterr().err


def test_a_source_gives_the_kind_of_file_that_is_asked_for(tmp_path: Path) -> None:
    from minigan.commands.data import ANNOTATIONS

    for name in ("cats", "cats.zip", "cats.tar"):
        source = make(tmp_path / name, FILES)
        assert {entry.name for entry in open_source(source, ANNOTATIONS)} == {
            file for file in FILES if file.endswith(".cat")
        }
