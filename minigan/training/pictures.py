"""Images as files: grids of samples, and the film of a run."""

import io
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from minigan.data.sources import IMAGE_SUFFIXES
from minigan.models import Generator
from minigan.progress import tqdm
from minigan.tensor import Tensor
from minigan.training.errors import UserError

# Small images are enlarged until their grid is about this wide, so that a viewer shows them well.
COMFORTABLE_WIDTH = 512
MOST_FRAMES = 60
LOOP_MILLISECONDS = 80
# Of the pixels in one file, which are in memory together: from here on Pillow itself would not open such a PNG.
MOST_BYTES = 2**29
AT_ONCE = 64


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """uint8 images (N, H, W, 3) in rows of `columns`, with a gap of two pixels; enlarged if they are small."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + 2) - 2, columns * (w + 2) - 2, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + 2), i % columns * (w + 2)
        canvas[top : top + h, left : left + w] = image
    scale = max(1, round(COMFORTABLE_WIDTH / canvas.shape[1]))
    return Image.fromarray(canvas.repeat(scale, 0).repeat(scale, 1))


def check_target(out: Path, *kinds: str) -> None:
    """Raises UserError unless `out` is the name of a new file of one of these kinds, such as ".png"."""
    if out.exists() or out.suffix.lower() not in kinds:
        raise UserError(f"--out: expected the name of a new {' or '.join(kinds)} file, got {out}")


def drawn(generator: Generator, z: Tensor) -> Iterator[np.ndarray]:
    """One uint8 image (H, W, 3) after another; no more of them are in memory than a batch. A terminal shows a bar."""
    with tqdm(total=len(z), desc="drawing", unit=" images", leave=False, disable=None) as bar:
        for start in range(0, len(z), AT_ONCE):
            batch = generator.generate(z[start : start + AT_ONCE])
            yield from batch
            bar.update(len(batch))


def _bounded(images: Iterable[np.ndarray], count: int, out: Path, bytes_a_pixel: int) -> Iterator[np.ndarray]:
    """The images; raises UserError, with the first one, where so many do not go into one file."""
    images = iter(images)
    first = next(images)
    most = MOST_BYTES // (first[..., 0].size * bytes_a_pixel)
    if count > most:
        raise UserError(
            f"--out: {out}: expected at most {most:,} images of {first.shape[0]} x {first.shape[1]} pixels in one "
            f"file, got {count:,}"
        )
    return chain([first], images)


def save_images(images: Iterable[np.ndarray], count: int, out: Path, columns: int | None) -> None:
    """Writes one grid to the file `out`, or, where columns is None, single pictures 0000.png ... into the folder `out`.

    Raises UserError for a place that is taken or cannot be written, and for too many images for one file.
    """
    try:
        if columns is not None:
            check_target(out, ".png")
            save_whole(grid(np.stack(list(_bounded(images, count, out, 3))), columns), out)
            return
        if out.suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f"--out: expected a .png for one picture, or a folder, got {out}")
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"--out: expected a new or empty folder, got {out}")
        for i, image in enumerate(images):
            save_whole(Image.fromarray(image), out / f"{i:04d}.png")
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be written: {error.strerror}") from None


def save_whole(picture: Image.Image, path: Path) -> None:
    """A PNG that is there as a whole or not at all."""
    part = path.with_suffix(".part")
    try:
        picture.save(part, "PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def film(frames: list[Path]) -> bytes:
    """A GIF of picture files, at most 60 of them spread evenly, the last one shown for two seconds."""
    chosen = [
        frames[i] for i in sorted({round(x) for x in np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES))})
    ]
    pictures = []
    for path in chosen:
        with Image.open(path, formats=["PNG"]) as picture:
            pictures.append(picture.copy())
    return _gif(pictures, [120] * (len(pictures) - 1) + [2000])


def save_loop(images: Iterable[np.ndarray], count: int, out: Path) -> None:
    """A GIF of uint8 images (H, W, 3), without a pause. Raises UserError where it cannot be written, or is too long."""
    frames = (np.asarray(grid(image[None], 1)) for image in images)
    pictures = map(Image.fromarray, _bounded(frames, count, out, 1))
    try:
        out.write_bytes(_gif(pictures, LOOP_MILLISECONDS))
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be written: {error.strerror}") from None


def _gif(pictures: Iterable[Image.Image], milliseconds: list[int] | int) -> bytes:
    first, *others = [picture.convert("P", palette=Image.Palette.ADAPTIVE) for picture in pictures]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return content.getvalue()
