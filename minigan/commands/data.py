"""`python -m minigan data cats SRC DST`: the Kaggle cat dataset as a folder of faces, upright and cut out."""

import argparse
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigan.data import DataError, decode, open_source
from minigan.data.cat_faces import Marks, cut_out, find_face, parse_marks
from minigan.data.decode import decode_stored, pillow_warnings
from minigan.data.sources import MAX_BYTES, Entry, Kind
from minigan.training.errors import UserError
from minigan.training.pictures import grid, save_whole

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

ANNOTATIONS = Kind("annotations (.cat files)", (".cat",), "pictures with their annotations, as a.jpg and a.jpg.cat")
BYTES_A_PICTURE = 500  # what its marks take in memory
MOST_REASONS = 5
SHEET_FACES, SHEET_COLUMNS, SHEET_SIDE = 64, 8, 96


@dataclass
class Outcome:
    """What became of the pictures. faces: the files written. doubles: how many had the name of an earlier one.

    damaged: (name, reason) of those whose picture or annotation could not be used.
    """

    faces: list[Path] = field(default_factory=list)
    too_small: int = 0
    doubles: int = 0
    without_annotation: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)


def add_to(commands: Any) -> None:
    command = commands.add_parser(
        "data", help="make a data set ready for training", description="Makes a published data set ready for training."
    )
    kinds = command.add_subparsers(metavar="KIND", required=True)
    cats = kinds.add_parser("cats", help="cut the faces out of the Kaggle cat-dataset", description=__doc__)
    cats.set_defaults(run=run)
    cats.add_argument("source", type=Path, metavar="SRC", help="the dataset: a folder, or its .zip, .tar or .tgz")
    cats.add_argument("folder", type=Path, metavar="DST", help="a new folder, for the faces")
    cats.add_argument(
        "--smallest", type=int, default=128, metavar="N", help="leave out faces with a side below N pixels (128)"
    )


def run(given: argparse.Namespace) -> None:
    folder: Path = given.folder.expanduser()
    if given.smallest < 1:
        raise UserError(f"--smallest: expected a number of pixels from 1, got {given.smallest}")
    outcome = Outcome()
    try:
        marks = _read_marks(given.source)
        _make_folder(folder)
        _cut_all(given.source, marks, folder, given.smallest, outcome)
        sheet = _contact_sheet(outcome.faces, folder) if outcome.faces else None
    except KeyboardInterrupt:
        print(f"\nstopped: {folder} has {len(outcome.faces):,} faces, all of them whole")
        raise SystemExit(130) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    _report(outcome, folder, given.smallest)
    if sheet is None:
        raise UserError(f"{given.source}: no face could be cut out: see the counts above")
    shown = min(len(outcome.faces), SHEET_FACES)
    print(f"{sheet}: {shown} of the faces to look at; beside the folder, so that it is not trained on")


def _read_marks(source: Path) -> dict[str, Marks | str]:
    """The marks on each picture, by its name, or why they cannot be used.

    This is a pass of its own over the source. All annotations fit in memory, all pictures would not: so it does not
    matter which of the two comes first in a tar.
    """
    found: dict[str, Marks | str] = {}
    held = 0
    for entry in open_source(source, ANNOTATIONS):
        name = re.sub(r"\.cat$", "", entry.name, flags=re.IGNORECASE)
        held += len(name) + BYTES_A_PICTURE
        if held > MAX_BYTES:
            raise DataError(f"{source} has more annotations, {len(found):,}, than fit into {MAX_BYTES // 2**20} MiB")
        try:
            found[name] = parse_marks(entry.read())
        except DataError as error:
            found[name] = str(error)
    return found


def _make_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"DST: expected a new or empty folder, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)


def _cut_all(source: Path, marks: dict[str, Marks | str], folder: Path, smallest: int, outcome: Outcome) -> None:
    from minigan.progress import tqdm

    pictures = open_source(source)
    taken: set[str] = set()
    # None: a bar in a terminal only, not in a log file.
    with pillow_warnings():
        for entry in tqdm(pictures, "cutting out", pictures.total, unit=" pictures", leave=False, disable=None):
            name = _file_name(entry.name)
            if name in taken:  # the archive at Kaggle has a copy of its folders
                outcome.doubles += 1
                continue
            taken.add(name)
            try:
                face = _face(entry, marks, smallest, outcome)
            except DataError as error:
                outcome.damaged.append((entry.name, str(error)))
                continue
            if face is not None:
                save_whole(face, folder / name)
                outcome.faces.append(folder / name)


def _file_name(name: str) -> str:
    """CAT_00/00000001_000.jpg becomes 00000001_000.png; whatever a hostile archive calls it is a plain file name."""
    stem, _ = os.path.splitext(name.replace("\\", "/").rsplit("/", 1)[-1])
    return re.sub(r"[^\w-]", "_", stem)[:60] + ".png"


def _face(entry: Entry, marks: dict[str, Marks | str], smallest: int, outcome: Outcome) -> "PillowImage | None":
    """The face in a picture; None, and counted, where there is none to be had. Raises DataError for a damaged one."""
    own = marks.get(entry.name)
    if own is None:
        entry.read()  # raises for what is no picture but, say, a folder that cannot be read
        outcome.without_annotation += 1
        return None
    if isinstance(own, str):
        raise DataError(own)
    picture = decode_stored(entry.read())
    face = find_face(own, picture.width, picture.height)
    if face.smaller_side < smallest:
        outcome.too_small += 1
        return None
    return cut_out(picture, face)


def _report(outcome: Outcome, folder: Path, smallest: int) -> None:
    print(f"{folder}: {len(outcome.faces):,} faces")
    print(f"too small: {outcome.too_small:,} (a side below {smallest} pixels)")
    print(f"without annotation: {outcome.without_annotation:,}")
    if outcome.doubles:
        print(f"doubles: {outcome.doubles:,} (a picture of the same name came before)")
    print(f"damaged: {len(outcome.damaged):,}")
    for name, reason in outcome.damaged[:MOST_REASONS]:
        print(f"  {name!r}: {reason}")
    if len(outcome.damaged) > MOST_REASONS:
        print("  ...")


def _contact_sheet(faces: list[Path], folder: Path) -> Path:
    """Some of the faces in one picture, spread evenly; beside the folder, or it would be trained on."""
    folder = folder.resolve()
    chosen = np.unique(np.linspace(0, len(faces) - 1, min(len(faces), SHEET_FACES)).round().astype(int))
    small = np.stack([decode(faces[i].read_bytes(), SHEET_SIDE, SHEET_SIDE) for i in chosen])
    path = folder.with_name(f"{folder.name}-contact-sheet.png")
    save_whole(grid(small, min(len(small), SHEET_COLUMNS)), path)
    return path
