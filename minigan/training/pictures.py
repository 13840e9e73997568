"""Images as files: grids of samples, and the film of a run."""

from pathlib import Path

import numpy as np
from PIL import Image

from minigan.training.errors import UserError

# Small images are enlarged until their grid is about this wide, so that a viewer shows them well.
COMFORTABLE_WIDTH = 512
MOST_FRAMES = 60


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


def save_images(images: np.ndarray, out: Path, columns: int | None) -> None:
    """Writes one grid to the file `out`, or, where columns is None, single pictures 0000.png ... into the folder `out`.

    Raises UserError for a place that is taken or cannot be written.
    """
    try:
        if columns is not None:
            if out.exists() or out.suffix.lower() != ".png":
                raise UserError(f"--out: expected the name of a new .png file, got {out}")
            grid(images, columns).save(out)
            return
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"--out: expected a new or empty folder, got {out}")
        for i, image in enumerate(images):
            Image.fromarray(image).save(out / f"{i:04d}.png")
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be written: {error.strerror}") from None


def film(frames: list[Path], target: Path) -> None:
    """A GIF of picture files, at most 60 of them spread evenly, the last one shown for two seconds."""
    chosen = [
        frames[i] for i in sorted({round(x) for x in np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES))})
    ]
    pictures = []
    for path in chosen:
        with Image.open(path, formats=["PNG"]) as picture:
            pictures.append(picture.convert("P", palette=Image.Palette.ADAPTIVE))
    durations = [120] * (len(pictures) - 1) + [2000]
    pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
