"""A folder or an archive of images as one array."""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from minigan.data.cache import Listing, cached, key_of
from minigan.data.decode import Pixels, decode, pillow_warnings
from minigan.data.sources import FORMATS_IN_WORDS, DataError, Source, UnreadableError, open_source

MAX_NAMES = 10  # in a message

# Sets are decoded one at a time: two threads that want the same one decode it once.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class ImageSet:
    """Images and where they came from.

    images: (N, height, width, 3), uint8, read-only, perhaps on the disk and mapped into memory.
    names: N file names, relative to the source.  skipped: (name, reason) of each file that could not be used.
    left_out: how many files were left out because they were listed, of `listed` names.
    """

    source: Path
    images: Pixels
    names: list[str]
    skipped: list[tuple[str, str]]
    left_out: int = 0
    listed: int = 0

    def summary(self) -> str:
        """For example "1,203 images from cats/, 1 skipped: a.jpg (truncated)"."""
        return f"{_counted(len(self.names), 'image')} from {_label(self.source)}{self.details()}"

    def details(self) -> str:
        """What was not used and why: the second part of the summary, with a comma before it; or nothing."""
        text = ""
        if self.listed:
            text += f", {self.left_out:,} of {_counted(self.listed, 'listed name')} left out"
        if self.skipped:
            shown = [f"{_printable(name)} ({_printable(reason)})" for name, reason in self.skipped[:MAX_NAMES]]
            text += f", {len(self.skipped):,} skipped: {', '.join(shown)}"
        if len(self.skipped) > MAX_NAMES:
            text += f" and {len(self.skipped) - MAX_NAMES:,} more"
        return text


def load_images(
    path: str | os.PathLike[str],
    image_size: tuple[int, int],
    *,
    skip_grey: bool = False,
    leave_out: str | os.PathLike[str] | None = None,
    minimum: int = 1,
    threads: int | None = None,
    progress: bool = True,
) -> ImageSet:
    """All images of a folder, .zip, .tar or .tgz, cropped and resized to `image_size`; cached for next time.

    image_size: (height, width) in pixels.
    skip_grey: leave out images without colour.
    leave_out: a text file of file names, one a line, with or without their folders; those are left out.
    minimum: how many images there have to be: the batch size.
    threads: that decode; one for each core, at most 8, unless given.
    progress: show a progress bar, in a terminal, while images are decoded.
    Raises DataError where fewer than `minimum` can be used; it says what was found, and why not more.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be (height, width), both at least 1, not {image_size}")
    source = open_source(path)
    unwanted = _read_names(leave_out) if leave_out is not None else set()
    # Pillow's version decides which files can be decoded, so it is a part of the key.
    settings = (height, width, skip_grey, PIL.__version__, *sorted(unwanted))
    key = key_of([len(settings), *settings, *source.signature])

    def decode_one(data: bytes) -> Pixels:
        return decode(data, height, width, skip_grey=skip_grey)

    def image_set(images: Pixels, listing: Listing) -> ImageSet:
        return ImageSet(source.path, images, listing.names, listing.skipped, listing.left_out, listed=len(unwanted))

    def fill(add: Callable[[Pixels], None]) -> Listing:
        listing = _decode_all(source, unwanted, decode_one, add, threads or _cores(), progress)
        if not listing.names:
            raise _too_few(image_set(np.empty((0, height, width, 3), np.uint8), listing), max(minimum, 1))
        return listing

    with _one_at_a_time:
        result = image_set(*cached(key, height, width, fill))
    if len(result.names) < minimum:
        raise _too_few(result, minimum)
    return result


def _cores() -> int:
    """How many threads decode: one for each core that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def _read_names(path: str | os.PathLike[str]) -> set[str]:
    try:
        lines = Path(path).expanduser().read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}, the list of files to leave out, cannot be read: {reason}.") from error
    return {line.strip() for line in lines} - {""}


def _decode_all(
    source: Source,
    unwanted: set[str],
    decode_one: Callable[[bytes], Pixels],
    add: Callable[[Pixels], None],
    threads: int,
    progress: bool,
) -> Listing:
    """Read `source` here, decode it in `threads` threads, and `add` the images in the order of the source."""
    from minigan.progress import tqdm

    listing = Listing(names=[], skipped=[])
    pending: deque[tuple[str, Future[Pixels]]] = deque()

    def collect() -> None:
        name, future = pending.popleft()
        try:
            image = future.result()
        except DataError as error:
            listing.skipped.append((name, str(error)))
        else:
            add(image)
            listing.names.append(name)

    # None: a bar in a terminal only, not in a log file.
    bar = tqdm(source, "decoding", source.total, unit=" images", leave=False, disable=None if progress else True)
    with pillow_warnings(), ThreadPoolExecutor(threads) as pool:
        for entry in bar:
            if entry.name in unwanted or entry.name.rsplit("/", 1)[-1] in unwanted:
                listing.left_out += 1
                continue
            try:
                data = entry.read()
            except DataError as error:
                listing.skipped.append((entry.name, str(error)))
                listing.complete &= not isinstance(error, UnreadableError)
                continue
            pending.append((entry.name, pool.submit(decode_one, data)))
            if len(pending) >= 4 * threads:  # a bound, or the files of a fast disk would pile up in memory
                collect()
        while pending:
            collect()
    listing.skipped.sort()
    return listing


def _too_few(images: ImageSet, minimum: int) -> DataError:
    usable, skipped = len(images.names), len(images.skipped)
    found = usable + skipped + images.left_out
    return DataError(
        f"{_label(images.source)} has {_counted(usable, 'usable image')}; at least {minimum:,} needed. "
        f"Found: {_counted(found, 'image file')}{images.details()}. "
        f"Give a folder or archive of more {FORMATS_IN_WORDS} images, or choose a smaller batch size."
    )


def _label(source: Path) -> str:
    return source.resolve().name + ("/" if source.is_dir() else "")


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def _printable(text: str) -> str:
    """File names may hold line ends, terminal commands, and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
