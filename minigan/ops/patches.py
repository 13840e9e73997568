"""The matrix of patches that a convolution on the CPU multiplies ("im2col"), made a block of rows at a time.

One row for each output pixel, with the R x S x C input values that it reads. The matrix is R S / stride^2 times as
large as the input, so it is never built whole: a block is gathered, multiplied while it is in the cache, and
overwritten by the next one.
"""

import numpy as np

from minigan.backend import Array
from minigan.cpu import jit, scratch

# A block of gathered rows should stay in a core's second-level cache,
BLOCK_BYTES = 1 << 20
# but have so many rows, at best, that the product with it is worth BLAS's repacking of the filters.
BLOCK_ROWS = 256
# A layer is cut into so many blocks at least, for as many threads, if that leaves half of these rows to each.
BLOCKS = 8

# With fewer channels than this, the pixels of a filter row are too short a run to be copied at once, and products with
# so few rows or columns are slow.
NARROW = 8
# A block then is some lines of output pixels of one image, about so many pixels.
BLOCK_PIXELS = 512


@jit
def gather_loop(start, stop, first, x, p, q, step_h, step_w, top, left, r, s, out):  # type: ignore[no-untyped-def]
    """Row i: the r x s pixels from (oh step_h + top, ow step_w + left) on, where first + i is output pixel (n, oh, ow).

    In NHWC the s pixels of a filter row lie side by side, so each is one copy of a run, with zeros where it leaves the
    image. Positions are unsigned for the reason that `parallel_flat` has.
    """
    _, height, width, channels = x.shape
    source, target = x.reshape(-1), out.reshape(-1)
    run = np.uintp(s * channels)
    for i in range(start, stop):
        m = first + i
        n, oh, ow = m // (p * q), m // q % p, m % q
        column = ow * step_w + left
        before = min(max(-column, 0), s)  # pixels of the run left of the image
        until = max(min(width - column, s), before)  # the first pixel right of it
        zeros, end = np.uintp(before * channels), np.uintp(until * channels)
        for a in range(r):
            row = oh * step_h + top + a
            at = np.uintp((i * r + a) * s * channels)
            if row < 0 or row >= height:
                for j in range(run):
                    target[at + j] = 0
            else:
                begin = np.uintp(((n * height + row) * width + column + before) * channels)
                for j in range(zeros):
                    target[at + j] = 0
                for j in range(end - zeros):
                    target[at + zeros + j] = source[begin + j]
                for j in range(end, run):
                    target[at + j] = 0


class Patches:
    """The patches of x (N, H, W, C): one row for each of n x p x q output pixels, r x s x channels wide."""

    def __init__(
        self, x: Array, p: int, q: int, step: tuple[int, int], offset: tuple[int, int], r: int, s: int
    ) -> None:
        """Tap (a, b) of output pixel (i, j) reads input pixel (i, j) step + offset + (a, b); zero outside of x."""
        self.x = np.ascontiguousarray(x)
        self.rows = len(x) * p * q
        self.width = r * s * x.shape[3]
        self.arguments = (p, q, *step, *offset, r, s)
        # How the rows are cut depends on the shape alone, so results do not depend on the number of threads.
        fits = max(BLOCK_ROWS, BLOCK_BYTES // max(1, self.width * self.x.itemsize))
        self.block = max(1, min(fits, max(BLOCK_ROWS // 2, -(-self.rows // BLOCKS)), self.rows))
        self.blocks = -(-self.rows // self.block)

    def make(self, block: int) -> tuple[slice, Array]:
        """Block number `block`: which rows, and their patches, in this thread's scratch memory until its next block."""
        rows = slice(block * self.block, min((block + 1) * self.block, self.rows))
        patches = scratch((rows.stop - rows.start, self.width), self.x.dtype)
        gather_loop(0, len(patches), rows.start, self.x, *self.arguments, patches)
        return rows, patches


@jit
def _planes_loop(start, stop, image, q, step_h, step_w, top, left, r, s, line, out):  # type: ignore[no-untyped-def]
    """Column (oh - start) q + ow of `out` (r, s, C, pixels): the patch of output pixel (oh, ow) of an image (H, W, C).

    An input row is laid out once, in `line` (C, step_w, columns), so that what a tap reads of it, for all ow, lies side
    by side: input column j step_w + phase + left stands at [c, phase, j].
    """
    height, width, channels = image.shape
    _, phases, columns = line.shape
    flat, target = line.reshape(-1), out.reshape(-1)
    pixels, run = (stop - start) * q, np.uintp(q)
    for i in range((stop - start - 1) * step_h + r):
        row = start * step_h + top + i
        if row < 0 or row >= height:
            line[:] = 0
        else:
            for c in range(channels):
                for phase in range(phases):
                    for j in range(columns):
                        column = j * step_w + phase + left
                        line[c, phase, j] = image[row, column, c] if 0 <= column < width else 0
        for a in range(i % step_h, r, step_h):
            oh = (i - a) // step_h
            if 0 <= oh < stop - start:
                for b in range(s):
                    for c in range(channels):
                        at = np.uintp(((a * s + b) * channels + c) * pixels + oh * q)
                        begin = np.uintp((c * phases + b % step_w) * columns + b // step_w)
                        for j in range(run):
                            target[at + j] = flat[begin + j]


def lines_in_block(q: int) -> int:
    """How many lines of q output pixels a block has, for few channels."""
    return max(1, BLOCK_PIXELS // q)


class Planes:
    """As `Patches`, for few channels: made as columns, by copying whole rows of pixels of one channel."""

    def __init__(
        self, x: Array, p: int, q: int, step: tuple[int, int], offset: tuple[int, int], r: int, s: int
    ) -> None:
        """See `Patches`."""
        self.x = np.ascontiguousarray(x)
        self.p, self.q = p, q
        self.channels = x.shape[3]
        self.width = r * s * self.channels
        self.arguments = (q, *step, *offset, r, s)
        self.line = self.channels, min(s, step[1]), q + (s - 1) // step[1]
        self.lines = min(p, lines_in_block(q))
        self.blocks_per_image = -(-p // self.lines)
        self.blocks = len(x) * self.blocks_per_image

    def make(self, block: int) -> tuple[slice, Array]:
        """See `Patches.make`; here the values of one column lie side by side in memory."""
        n, start = block // self.blocks_per_image, block % self.blocks_per_image * self.lines
        stop = min(start + self.lines, self.p)
        first = (n * self.p + start) * self.q
        rows = slice(first, first + (stop - start) * self.q)
        columns = scratch((self.width, rows.stop - rows.start), self.x.dtype)
        _planes_loop(start, stop, self.x[n], *self.arguments, scratch(self.line, self.x.dtype, "line"), columns)
        return rows, columns.T


def patches_of(
    x: Array, p: int, q: int, step: tuple[int, int], offset: tuple[int, int], r: int, s: int
) -> Patches | Planes:
    """The patches of x, made in the way that suits its channels."""
    return (Planes if x.shape[3] < NARROW else Patches)(x, p, q, step, offset, r, s)
