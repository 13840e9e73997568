"""The three convolution primitives on the CPU, as matrix products with patches of the input ("im2col").

A convolution is the product of a matrix with one row for each output pixel, holding all input values that the pixel
reads (Chellapilla et al., "High performance convolutional neural networks for document processing", 2006), and the
filters; `patches` makes that matrix, a block of rows at a time.

- forward: y[block] = patches(x)[block] @ w^T
- weight gradient: gw += gy[block]^T @ patches(x)[block]
- input gradient: with stride t, input pixels fall into t x t parity classes, by their remainders; those of one class
  are reached by the same few filter taps only, each from an output pixel at a fixed offset. So a class is a stride-1
  convolution of gy with that part of the filters, and nothing is scattered or multiplied by inserted zeros. For few
  input channels that product would be too narrow: there all taps' products come first, and then their sums.
"""

from collections.abc import Sequence

import numpy as np

from minigan.backend import Array
from minigan.cpu import ELEMENTS_PER_THREAD, jit, one_blas_thread, parallel, parallel_each, scratch
from minigan.ops.geometry import Geometry
from minigan.ops.matmul import product
from minigan.ops.patches import NARROW, Patches, Planes, gather_loop, lines_in_block, patches_of

# A single block is cut by columns, into so many at best, for as many threads,
COLUMNS = 8
# which are so many wide at least.
LEAST_COLUMNS = 64
# The weight gradient is summed in so many partial sums at most, of so many bytes together.
PARTIAL_SUMS = 8
PARTIAL_BYTES = 64 << 20

# With so many input channels, the weight gradient is a product for each tap, if the pixels that it reads take no more
# than this.
WIDE = 128
TAP_BYTES = 4 << 20
# And so is the input gradient, for so few rows: the filters are not copied then.
FEW_ROWS = 256


@jit
def _finish_loop(start, stop, y, first, last, bias, slope, least):  # type: ignore[no-untyped-def]
    """Columns first ... last - 1 of y (M, K), in rows start ... stop - 1, become leaky(y + bias)."""
    for i in range(start, stop):
        for k in range(np.uintp(first), np.uintp(last)):  # unsigned, as in `parallel_flat`
            value = y[i, k] + bias[k]
            below = slope * (least if value < least else value)
            y[i, k] = value if value > 0 else below


Epilogue = tuple[Array, np.floating, np.floating]


def epilogue(bias: Array | None, slope: float, channels: int, dtype: np.dtype) -> Epilogue:
    """What follows a sum, for the loops: a bias, perhaps of zeros, a LeakyReLU's slope, and the least factor of it.

    Less than that is taken for that, so that a slope of 0 gives 0 for infinity too.
    """
    least = np.finfo(dtype).min if slope == 0 else dtype.type(-np.inf)
    return np.zeros(channels, dtype) if bias is None else np.ascontiguousarray(bias), dtype.type(slope), least


def _input_patches(x: Array, g: Geometry) -> Patches | Planes:
    return patches_of(x, g.p, g.q, (g.stride_h, g.stride_w), (-g.top, -g.left), g.r, g.s)


def forward(x: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0) -> Array:
    """(N, H, W, C), (K, R, S, C) and perhaps (K,) -> (N, P, Q, K). slope: of a LeakyReLU behind it."""
    y = np.empty(g.y_shape, x.dtype)
    patches = _input_patches(x, g)
    rows, filters = y.reshape(-1, g.k), w.reshape(g.k, -1).T
    if g.k < NARROW:  # BLAS is slow with these
        filters = np.ascontiguousarray(filters)
    # A single block is cut by columns, for the threads.
    parts = max(1, min(COLUMNS, g.k // LEAST_COLUMNS)) if patches.blocks == 1 else 1
    columns = [slice(g.k * i // parts, g.k * (i + 1) // parts) for i in range(parts)]
    plain, behind = bias is None and slope == 1, epilogue(bias, slope, g.k, x.dtype)

    def multiply(product: tuple[int, slice]) -> None:
        block, part = product
        at, values = patches.make(block)
        np.matmul(values, filters[:, part], out=rows[at, part])
        if not plain:  # while the block is still in the cache
            _finish_loop(at.start, at.stop, rows, part.start, part.stop, *behind)

    with one_blas_thread():
        parallel_each(multiply, [(block, part) for block in range(patches.blocks) for part in columns], g.operations)
    return y


def weight_grad(x: Array, gy: Array, g: Geometry) -> Array:
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C)."""
    wide = g.c >= WIDE and g.n * g.p * g.q * g.c * x.itemsize <= TAP_BYTES
    return _weight_grad_by_tap(x, gy, g) if wide else _weight_grad_by_block(x, gy, g)


def _weight_grad_by_tap(x: Array, gy: Array, g: Geometry) -> Array:
    """gw of a tap is the product of gy with the pixels that the tap reads: no partial sums, which are large here."""
    x, gw, rows = np.ascontiguousarray(x), np.empty(g.w_shape, x.dtype), gy.reshape(-1, g.k).T

    def multiply(tap: tuple[int, int]) -> None:
        pixels = scratch((rows.shape[1], g.c), x.dtype)
        offset = tap[0] - g.top, tap[1] - g.left
        gather_loop(0, len(pixels), 0, x, g.p, g.q, g.stride_h, g.stride_w, *offset, 1, 1, pixels)
        np.matmul(rows, pixels, out=gw[:, tap[0], tap[1]])

    with one_blas_thread():
        parallel_each(multiply, [(a, b) for a in range(g.r) for b in range(g.s)], g.operations)
    return gw


@jit
def _add_loop(start, stop, sums, total):  # type: ignore[no-untyped-def]
    """total[i] = sums[0, i] + sums[1, i] + ... for i from start to stop - 1."""
    for i in range(np.uintp(start), np.uintp(stop)):
        total[i] = sums[0, i]
    for part in range(1, len(sums)):
        for i in range(np.uintp(start), np.uintp(stop)):
            total[i] += sums[part, i]


def _weight_grad_by_block(x: Array, gy: Array, g: Geometry) -> Array:
    patches, rows = _input_patches(x, g), gy.reshape(-1, g.k)
    size = max(1, g.k * patches.width * x.itemsize)
    count = max(1, min(PARTIAL_SUMS, patches.blocks, PARTIAL_BYTES // size))
    gw = (np.empty if patches.blocks else np.zeros)(g.w_shape, x.dtype)
    sums = gw.reshape(1, g.k, -1) if count == 1 else np.empty((count, g.k, patches.width), x.dtype)

    def multiply(gy: Array, values: Array, out: Array) -> None:
        if isinstance(patches, Planes):  # BLAS is slow with two transposed matrices
            out[...] = (values.T @ gy).T
        else:
            np.matmul(gy.T, values, out=out)

    def add_up(i: int) -> None:
        # Every count-th block belongs to partial sum i, whichever thread it is that adds them up.
        for block in range(i, patches.blocks, count):
            at, values = patches.make(block)
            if block == i:
                multiply(rows[at], values, sums[i])
            else:
                more = scratch(sums[i].shape, x.dtype, "products")
                multiply(rows[at], values, more)
                np.add(sums[i], more, out=sums[i])

    with one_blas_thread():
        parallel_each(add_up, range(count), g.operations)
    if count > 1:
        parallel(_add_loop, gw.size, sums.reshape(count, -1), gw.reshape(-1), grain=ELEMENTS_PER_THREAD // count)
    return gw


def input_grad(gy: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0) -> Array:
    """(N, P, Q, K), (K, R, S, C) and perhaps (C,) -> (N, H, W, C). slope: as of forward."""
    behind = epilogue(bias, slope, g.c, gy.dtype)
    if (g.p, g.q, g.top, g.left, g.h, g.w) == (1, 1, 0, 0, g.r, g.s):  # the filters are as large as the image
        gx = product("cpu", gy.reshape(g.n, g.k), w.reshape(g.k, -1)).reshape(g.x_shape)
        if bias is not None or slope != 1:
            pixels = gx.reshape(-1, g.c)
            parallel(_finish_loop, len(pixels), pixels, 0, g.c, *behind, grain=max(1, ELEMENTS_PER_THREAD // g.c))
        return gx
    return _input_grad_narrow(gy, w, g, behind) if g.c < NARROW else _input_grad_by_parity(gy, w, g, behind)


def _taps(remainder: int, pad: int, taps: int, stride: int) -> tuple[range, int]:
    """Which taps reach input positions with this remainder, last first, and the output offset of the last one.

    Position h = stride i + remainder is read by tap t of output (h + pad - t) / stride, where that is whole.
    """
    first = (remainder + pad) % stride
    reaching = range(first, taps, stride)[::-1]
    return reaching, (remainder + pad - reaching[0]) // stride if reaching else 0


@jit
def _place_loop(start, stop, rows, p, q, row, column, stride_h, stride_w, bias, slope, least, gx):  # type: ignore[no-untyped-def]
    """Puts leaky(row m + bias), pixel (n, i, j) of a parity class, to gx[n, i stride_h + row, j stride_w + column]."""
    _, height, width, channels = gx.shape
    source, target = rows.reshape(-1), gx.reshape(-1)
    for m in range(start, stop):
        n, i, j = m // (p * q), m // q % p, m % q
        at = np.uintp(((n * height + i * stride_h + row) * width + j * stride_w + column) * channels)
        begin = np.uintp((m - start) * channels)
        for c in range(np.uintp(channels)):
            value = source[begin + c] + bias[c]
            below = slope * (least if value < least else value)
            target[at + c] = value if value > 0 else below


@jit
def _order_loop(start, stop, w, taps, filters):  # type: ignore[no-untyped-def]
    """Filters start ... stop - 1 of w (K, R S, C), tap by tap in a given order: filters (taps, K, C)."""
    for k in range(start, stop):
        for i in range(len(taps)):
            for c in range(w.shape[2]):
                filters[i, k, c] = w[k, taps[i], c]


def _ordered(w: Array, taps: Sequence[int]) -> Array:
    filters = np.empty((len(taps), len(w), w.shape[3]), w.dtype)
    by_tap = np.ascontiguousarray(w).reshape(len(w), -1, w.shape[3])
    grain = max(1, ELEMENTS_PER_THREAD * len(w) // max(1, filters.size))
    parallel(_order_loop, len(w), by_tap, np.array(taps), filters, grain=grain)
    return filters


def _input_grad_by_parity(gy: Array, w: Array, g: Geometry, behind: Epilogue) -> Array:
    gx = np.empty(g.x_shape, gy.dtype)
    products: list[tuple[list[tuple[Patches, Array]], int, tuple[int, ...]]] = []  # patches and filters, block, class
    for a in range(min(g.stride_h, g.h)):
        tap_rows, offset_h = _taps(a, g.top, g.r, g.stride_h)
        for b in range(min(g.stride_w, g.w)):
            tap_columns, offset_w = _taps(b, g.left, g.s, g.stride_w)
            _, p, q, _ = gx[:, a :: g.stride_h, b :: g.stride_w].shape
            if not tap_rows or not tap_columns:  # no output pixel reads these
                gx[:, a :: g.stride_h, b :: g.stride_w] = np.where(behind[0] > 0, behind[0], behind[1] * behind[0])
                continue
            if g.k >= WIDE and g.n * p * q <= FEW_ROWS:  # a product for each tap, with its filters as they are
                terms = [
                    (Patches(gy, p, q, (1, 1), (offset_h + i, offset_w + j), 1, 1), w[:, r, s])
                    for i, r in enumerate(tap_rows)
                    for j, s in enumerate(tap_columns)
                ]
            else:
                # (K, R', S', C) -> (R' S' K, C): in the order of the patches of gy
                filters = _ordered(w, [r * g.s + s for r in tap_rows for s in tap_columns]).reshape(-1, g.c)
                shape = len(tap_rows), len(tap_columns)
                terms = [(Patches(gy, p, q, (1, 1), (offset_h, offset_w), *shape), filters)]
            products += [(terms, block, (p, q, a, b)) for block in range(terms[0][0].blocks)]

    def multiply(product: tuple[list[tuple[Patches, Array]], int, tuple[int, ...]]) -> None:
        terms, block, class_ = product
        at, values = terms[0][0].make(block)
        rows = np.matmul(values, terms[0][1], out=scratch((len(values), g.c), gx.dtype, "products"))
        for patches, filters in terms[1:]:
            rows += patches.make(block)[1] @ filters
        _place_loop(at.start, at.stop, rows, *class_, g.stride_h, g.stride_w, *behind, gx)

    with one_blas_thread():
        products.sort(key=lambda product: -len(product[0]))  # the longest first: no thread is left with one at the end
        parallel_each(multiply, products, g.operations)
    return gx


@jit
def _add_taps_loop(start, stop, products, q, stride_h, stride_w, top, left, r, s, gx):  # type: ignore[no-untyped-def]
    """Adds what each output pixel of rows start ... stop - 1 gives its input pixels to the image gx (H, W, C).

    products: ((stop - start) q, r s C). In NHWC what a row of taps gives is one run, as in `patches.gather_loop`.
    """
    height, width, channels = gx.shape
    source, target = products.reshape(-1), gx.reshape(-1)
    for i in range(start, stop):
        for a in range(r):
            row = i * stride_h - top + a
            if 0 <= row < height:
                for j in range(q):
                    column = j * stride_w - left
                    first, last = max(-column, 0), min(width - column, s)
                    at = np.uintp((row * width + column + first) * channels)
                    begin = np.uintp(((((i - start) * q + j) * r + a) * s + first) * channels)
                    for t in range(np.uintp(max(last - first, 0) * channels)):
                        target[at + t] += source[begin + t]


def _input_grad_narrow(gy: Array, w: Array, g: Geometry, behind: Epilogue) -> Array:
    """For few input channels: the products of some rows of gy with all taps first, then their sums."""
    gx = np.zeros(g.x_shape, gy.dtype)
    filters = np.ascontiguousarray(w).reshape(g.k, -1)
    sizes = g.q, g.stride_h, g.stride_w, g.top, g.left, g.r, g.s
    lines = lines_in_block(g.q)

    def multiply(n: int) -> None:
        for start in range(0, g.p, lines):
            rows = gy[n, start : start + lines].reshape(-1, g.k)
            products = np.matmul(rows, filters, out=scratch((len(rows), filters.shape[1]), gy.dtype, "products"))
            _add_taps_loop(start, start + len(rows) // g.q, products, *sizes, gx[n])
        pixels = gx[n].reshape(-1, g.c)
        _finish_loop(0, len(pixels), pixels, 0, g.c, *behind)

    with one_blas_thread():
        parallel_each(multiply, range(g.n), g.operations)
    return gx
