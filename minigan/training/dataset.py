"""The images that a system trains on: the user's, or toys drawn for it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigan.data import Batches, DataError, load_images
from minigan.data.cache import Listing, cached, key_of
from minigan.data.sources import IMAGE_SUFFIXES, read_file
from minigan.training.command_line import Options

TURNED = 600
# A photo is decoded at this many times the final size, for the turning to choose from.
OVERSAMPLED = 4


@dataclass(frozen=True)
class Dataset:
    """What a system trains on, and how its batches are drawn.

    toys: the kind of drawn images (`minigan.data.toys`) where the user names no data, and toy_count, how many.
    skip_grey: leave out images without colour. replacement, flip: as in `minigan.data.Batches`.
    one_photo: a single image file is turned by every whole degree, and mirrored; the first 600 of the 720 are used.
    """

    toys: str
    toy_count: int = 4096
    skip_grey: bool = False
    replacement: bool = False
    flip: bool = False
    one_photo: bool = False

    def batches(
        self, options: Options[Any], pixels: tuple[float, float], say: Callable[[str], None], share: slice | None = None
    ) -> Batches:
        """Batches of the images, or a share of each, in the range that black and white have in `pixels`."""
        black, white = pixels
        images, digest = self._images(options, say)
        return Batches(
            images,
            options.settings.batch_size,
            options.seed,
            replacement=self.replacement,
            flip=self.flip,
            low=black,
            high=white,
            share=share,
            digest=digest,
        )

    def _images(self, options: Options[Any], say: Callable[[str], None]) -> tuple[np.ndarray, str]:
        """uint8 (N, H, W, 3), and a hash of their files: empty for toys, which have none."""
        size = options.settings.image_size
        if options.data is None:
            say(
                f"data: {self.toy_count:,} drawn toy images, {self.toys}; your own: --data PATH (drawing takes some "
                "seconds, once)"
            )
            return _toys(self.toys, self.toy_count, size), ""
        if options.data.is_file() and options.data.suffix.lower() in IMAGE_SUFFIXES:
            if not self.one_photo:
                raise DataError(f"{options.data} is one image: expected a folder or an archive of many.")
            say(f"data: {options.data.name}, turned by every degree and mirrored: the first {TURNED} of 720 images")
            return _turned(options.data, size)
        found = load_images(
            options.data,
            size,
            skip_grey=self.skip_grey,
            leave_out=options.leave_out,
            minimum=options.settings.batch_size,
            progress=not options.quiet,
        )
        say(f"data: {found.summary()}")
        return found.images, found.digest


def _toys(kind: str, count: int, size: tuple[int, int]) -> np.ndarray:
    """Drawn images, from the cache if they were drawn before by the same code."""
    from minigan.data import toys  # here, since Pillow's drawing is not needed for other data

    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(toys.__file__).parent.glob("*.py"))))

    def fill(add: Callable[[np.ndarray], None]) -> Listing:
        for image in toys.draw(kind, count, size, seed=0):
            add(image)
        return Listing([f"{kind}-{i}" for i in range(count)], [])

    return cached(key_of(["toys", kind, count, *size, code.hexdigest()]), *size, fill)[0]


def _turned(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """The images that a photo gives, and a hash of its file."""
    from PIL import Image

    from minigan.data.decode import decode, pillow_warnings
    from minigan.data.rotations import rotations

    side = OVERSAMPLED * max(size)
    try:
        content = read_file(path)
        with pillow_warnings():
            photo = decode(content, side, side)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return rotations(Image.fromarray(photo), *size)[:TURNED], hashlib.sha256(content).hexdigest()
