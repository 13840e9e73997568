"""Images as files: grids of samples, and the film of a run."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from minigan.data.sources import IMAGE_SUFFIXES
from minigan.training.errors import UserError

# Small images are enlarged until their grid is about this wide, so that a viewer shows them well.
COMFORTABLE_WIDTH = 512
MOST_FRAMES = 60
LOOP_MILLISECONDS = 80


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


def save_images(images: np.ndarray, out: Path, columns: int | None) -> None:
    """Writes one grid to the file `out`, or, where columns is None, single pictures 0000.png ... into the folder `out`.

    Raises UserError for a place that is taken or cannot be written.
    """
    try:
        if columns is not None:
            check_target(out, ".png")
            grid(images, columns).save(out)
            return
        if out.suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f"--out: expected a .png for one picture, or a folder, got {out}")
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"--out: expected a new or empty folder, got {out}")
        for i, image in enumerate(images):
            Image.fromarray(image).save(out / f"{i:04d}.png")
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be written: {error.strerror}") from None


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


def save_loop(images: np.ndarray, out: Path) -> None:
    """A GIF of uint8 images (N, H, W, 3), without a pause. Raises UserError where it cannot be written."""
    pictures = [grid(image[None], 1) for image in images]
    try:
        out.write_bytes(_gif(pictures, [LOOP_MILLISECONDS] * len(pictures)))
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be written: {error.strerror}") from None


def _gif(pictures: list[Image.Image], milliseconds: list[int]) -> bytes:
    first, *others = [picture.convert("P", palette=Image.Palette.ADAPTIVE) for picture in pictures]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return content.getvalue()
