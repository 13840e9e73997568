"""The three convolution primitives on the CPU, as matrix products over gathered patches ("im2col").

A convolution is the product of a matrix with one row for each output pixel, holding all input values that the pixel reads
(Chellapilla et al., "High performance convolutional neural networks for document processing", 2006), and the filters. That
matrix is R S times as large as the input, so it is never built whole: a block of rows is gathered, multiplied while it is
in the cache, and overwritten by the next block. One `gather` serves all three primitives:

- forward: y[block] = gather(x)[block] @ w^T
- weight gradient: gw += gy[block]^T @ gather(x)[block]
- input gradient: with stride t, input pixels fall into t x t parity classes, by their remainders; those of one class are
  reached by the same few filter taps only, each from an output pixel at a fixed offset. So a class is a stride-1 convolution of
  gy with that part of the filters, and nothing is scattered or multiplied by inserted zeros.
"""

from collections.abc import Iterator

import numpy as np

from minigan.backend import Array
from minigan.cpu import jit, parallel
from minigan.ops.geometry import Geometry

# Bytes of a block of gathered rows: small enough for the last-level cache, large enough to keep BLAS efficient.
BLOCK_BYTES = 8 << 20

# With fewer input channels than this, the input gradient's products would be too narrow for BLAS.
NARROW = 8


@jit
def _gather_loop(start, stop, first, x, p, q, step_h, step_w, top, left, r, s, out):  # type: ignore[no-untyped-def]
    """Row i: the r x s pixels from (oh step_h + top, ow step_w + left) on, where first + i is output pixel (n, oh, ow)."""
    _, height, width, channels = x.shape
    for i in range(start, stop):
        m = first + i
        n, oh, ow = m // (p * q), m // q % p, m % q
        x0 = ow * step_w + left
        inside = x0 >= 0 and x0 + s <= width
        for a in range(r):
            y = oh * step_h + top + a
            at = a * s * channels
            if y < 0 or y >= height:
                for j in range(at, at + s * channels):
                    out[i, j] = 0
            elif inside:
                # In NHWC the s pixels of one filter row lie side by side.
                row = x[n, y].reshape(-1)
                begin = x0 * channels
                for j in range(s * channels):
                    out[i, at + j] = row[begin + j]
            else:
                for b in range(s):
                    if x0 + b < 0 or x0 + b >= width:
                        for c in range(channels):
                            out[i, at + b * channels + c] = 0
                    else:
                        for c in range(channels):
                            out[i, at + b * channels + c] = x[n, y, x0 + b, c]


class Patches:
    """The matrix of patches of x: one row for each of n x p x q pixels, r x s x channels wide; given out in blocks."""

    def __init__(self, x: Array, p: int, q: int, step: tuple[int, int], offset: tuple[int, int], r: int, s: int) -> None:
        self.x = np.ascontiguousarray(x)
        self.rows = len(x) * p * q
        self.width = r * s * x.shape[3]
        self.arguments = (p, q, *step, *offset, r, s)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Pairs (rows, their patches); each pair's patches are overwritten by the next."""
        size = max(1, min(self.rows, BLOCK_BYTES // max(1, self.width * self.x.itemsize)))
        buffer = np.empty((size, self.width), self.x.dtype)
        for first in range(0, self.rows, size):
            block = buffer[: min(size, self.rows - first)]
            parallel(_gather_loop, len(block), first, self.x, *self.arguments, block, grain=32)
            yield slice(first, first + len(block)), block


def _input_patches(x: Array, g: Geometry) -> Patches:
    return Patches(x, g.p, g.q, (g.stride_h, g.stride_w), (-g.top, -g.left), g.r, g.s)


def forward(x: Array, w: Array, g: Geometry) -> Array:
    """(N, H, W, C), (K, R, S, C) -> (N, P, Q, K)."""
    y = np.empty(g.y_shape, x.dtype)
    rows, filters = y.reshape(-1, g.k), w.reshape(g.k, -1).T
    for at, patches in _input_patches(x, g).blocks():
        np.matmul(patches, filters, out=rows[at])
    return y


def weight_grad(x: Array, gy: Array, g: Geometry) -> Array:
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C)."""
    gw = np.zeros(g.w_shape, x.dtype)
    total, rows = gw.reshape(g.k, -1), gy.reshape(-1, g.k)
    for at, patches in _input_patches(x, g).blocks():
        total += rows[at].T @ patches
    return gw


def input_grad(gy: Array, w: Array, g: Geometry) -> Array:
    """(N, P, Q, K), (K, R, S, C) -> (N, H, W, C)."""
    return _input_grad_narrow(gy, w, g) if g.c < NARROW else _input_grad_by_parity(gy, w, g)


def _taps(remainder: int, pad: int, taps: int, stride: int) -> tuple[range, int]:
    """Which taps reach input positions with this remainder, last first, and the output offset of the last one.

    Position h = stride i + remainder is read by tap t of output (h + pad - t) / stride, where that is whole.
    """
    first = (remainder + pad) % stride
    reaching = range(first, taps, stride)[::-1]
    return reaching, (remainder + pad - reaching[0]) // stride if reaching else 0


def _input_grad_by_parity(gy: Array, w: Array, g: Geometry) -> Array:
    gx = np.zeros(g.x_shape, gy.dtype)
    for a in range(min(g.stride_h, g.h)):
        tap_rows, offset_h = _taps(a, g.top, g.r, g.stride_h)
        for b in range(min(g.stride_w, g.w)):
            tap_columns, offset_w = _taps(b, g.left, g.s, g.stride_w)
            if not tap_rows or not tap_columns:
                continue  # no output pixel reads these: their gradient stays zero
            part = gx[:, a :: g.stride_h, b :: g.stride_w]
            # (K, R', S', C) -> (R' S' K, C): row order as in the patches of gy
            filters = w[:, tap_rows][:, :, tap_columns].transpose(1, 2, 0, 3).reshape(-1, g.c)
            _, p, q, _ = part.shape
            patches = Patches(gy, p, q, (1, 1), (offset_h, offset_w), len(tap_rows), len(tap_columns))
            rows = np.empty((patches.rows, g.c), gy.dtype)
            for at, block in patches.blocks():
                np.matmul(block, filters, out=rows[at])
            part[:] = rows.reshape(part.shape)
    return gx


@jit
def _sum_taps_loop(start, stop, columns, p, q, stride_h, stride_w, top, left, r, s, gx):  # type: ignore[no-untyped-def]
    """Rows start ... stop - 1 of one image's gx: each pixel adds up the taps that reach it."""
    _, width, channels = gx.shape
    for h in range(start, stop):
        for w in range(width):
            for c in range(channels):
                total = gx.dtype.type(0)
                for a in range((h + top) % stride_h, r, stride_h):
                    i = (h + top - a) // stride_h
                    if 0 <= i < p:
                        for b in range((w + left) % stride_w, s, stride_w):
                            j = (w + left - b) // stride_w
                            if 0 <= j < q:
                                total += columns[i * q + j, (a * s + b) * channels + c]
                gx[h, w, c] = total


def _input_grad_narrow(gy: Array, w: Array, g: Geometry) -> Array:
    """For few input channels: the products of gy with all taps first, an image at a time, then their sums."""
    gx = np.empty(g.x_shape, gy.dtype)
    filters = w.reshape(g.k, -1)
    columns = np.empty((g.p * g.q, filters.shape[1]), gy.dtype)
    for n in range(g.n):
        np.matmul(gy[n].reshape(-1, g.k), filters, out=columns)
        parallel(
            _sum_taps_loop, g.h, columns, g.p, g.q, g.stride_h, g.stride_w, g.top, g.left, g.r, g.s, gx[n], grain=8
        )
    return gx
