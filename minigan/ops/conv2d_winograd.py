"""The three convolution primitives on the CPU with fewer multiplications, by Winograd's minimal filtering.

Four outputs of a filter with r taps need not 4 r multiplications but 4 + r - 1 = n: the four outputs and the filter are
two polynomials, known by their values at n points, and values are multiplied one by one. In two dimensions a tile of 4
x 4 outputs of 3 x 3 taps takes 36 multiplications instead of 144. Summed over the channels, they are one matrix product
for each of the n^2 points, with one row for each tile (Lavin and Gray, "Fast algorithms for convolutional neural
networks", 2016). With B^T, G and A^T the matrices of `Transform`, on both axes:

- forward: y = A^T [(G w) (B^T x)]
- weight gradient: gw = G^T [(A gy) (B^T x)]
- input gradient: another forward, of gy with the filters turned round

Larger filters and strides: tap t of stride s reads pixel s p + t, so the taps t = e, e + s, e + 2 s, ... together are a
filter of stride 1 on every s-th pixel. A layer is cut into such groups of two or three taps, whose products add up.

The price is rounding: the sums of a transform are larger than its results. Points and errors are those of Barabasz et
al., "Error analysis and improving the accuracy of Winograd convolution for deep neural networks", 2020; the tests
measure them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.cpu import ELEMENTS_PER_THREAD, jit, one_blas_thread, parallel, parallel_each, scratch
from minigan.ops.geometry import Geometry

TILE = 4  # outputs of a tile on each axis
# The finite points for groups of so many taps; infinity is another one. Fractions near 1, in pairs of both signs, keep
# the powers small, and the differences from being small.
POINTS = {2: (0, 3 / 4, -3 / 4, -3 / 2), 3: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)}

# A block of tiles goes through all steps with so many bytes, in a core's cache, but has so many tiles at least: fewer
# are not worth BLAS's repacking of the filters.
BLOCK_BYTES = 1 << 20
BLOCK_TILES = 64
# With fewer tiles than this in all, or larger filters, the layer is cut by output channels instead, and the filters
# never stand in memory as a whole. A part has so many bytes, but so many channels at least.
FEW_TILES = 256
FILTER_BYTES = 32 << 20
PART_BYTES = 8 << 20
PART_CHANNELS = 64
# The same for the weight gradient.
WIDE_CHANNELS = 128
# What it costs to bring a value of a filter, and one of the input or output, to or from the points, in multiplications
# of a matrix product; and how much less work than without all this it has to be, as a ratio.
FILTER_COST = 36
VALUE_COST = 24
GAIN = 1.2
# The weight gradient takes so much of its inputs at a time.
INPUT_BYTES = 32 << 20


@dataclass(frozen=True)
class Matrix:
    """A matrix with many zeros, as `_combine` takes it: four or six coefficients of each row, and their columns."""

    coefficients: np.ndarray
    columns: np.ndarray

    @staticmethod
    def of(dense: np.ndarray, dtype: np.dtype) -> "Matrix":
        width = 4 if max(np.count_nonzero(dense, axis=1)) <= 4 else 6
        matrix = Matrix(np.zeros((len(dense), width), dtype), np.zeros((len(dense), width), np.int64))
        for i, row in enumerate(dense):
            (at,) = np.nonzero(row)
            matrix.coefficients[i, : len(at)], matrix.columns[i, : len(at)] = row[at], at
        return matrix


@dataclass(frozen=True)
class Transform:
    """The matrices of F(4, taps), with a row or a column for each of the n points.

    input: B^T (n, n). filter: G (n, taps). gradient: A (n, 4). output: A^T (4, n). filter_gradient: G^T on both axes,
    (taps^2, n^2), dense.
    """

    taps: int
    points: int
    input: Matrix
    filter: Matrix
    gradient: Matrix
    output: Matrix
    filter_gradient: np.ndarray


@cache
def transform(taps: int, dtype: np.dtype) -> Transform:
    """By Lagrange's interpolation, with its denominators in G: then B^T and A are exact in float32."""
    points = POINTS[taps]
    n = len(points) + 1
    others = [[q for q in points if q != p] for p in points]
    b, g, a = np.zeros((n, n)), np.zeros((n, taps)), np.zeros((n, TILE))
    for i, p in enumerate(points):
        b[i, :-1] = np.poly(others[i])[::-1]
        g[i] = np.power(float(p), np.arange(taps)) / np.prod([p - q for q in others[i]])
        a[i] = np.power(float(p), np.arange(TILE))
    b[-1] = np.poly(points)[::-1]
    g[-1, -1] = a[-1, -1] = 1  # infinity: the leading coefficients
    matrices = {
        name: Matrix.of(m, dtype) for name, m in (("input", b), ("filter", g), ("gradient", a), ("output", a.T))
    }
    return Transform(taps, n, **matrices, filter_gradient=np.kron(g, g).T.astype(dtype))


# ---- how a layer is cut into groups of taps ------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """The groups along one axis.

    Group i reads the windows that begin `offsets[i]` after each tile's first pixel, with filter taps `taps[i]`, where
    -1 stands for none.
    """

    offsets: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]


def _group_size(r: int, stride: int) -> int:
    """Two or three taps: whatever takes fewer multiplications."""
    return min(POINTS, key=lambda taps: (TILE + taps - 1) * -(-r // (stride * taps)))


def _read_groups(size: int, r: int, stride: int, pad: int) -> Groups:
    """Along one axis of the input, for output pixels."""
    firsts = [first + e for first in range(0, r, stride * size) for e in range(stride)]
    taps = [[t if t < r else -1 for t in range(first, first + stride * size, stride)] for first in firsts]
    return Groups(tuple(first - pad for first in firsts), tuple(map(tuple, taps)))


def _turned_groups(size: int, r: int, stride: int, pad: int) -> Groups:
    """Along one axis of the output's gradient, for input pixels.

    For stride 1 groups that add up; else one for each remainder e of the input pixels, stride i + e.

    That pixel is read by tap t of output i + k where e + pad = stride k + t.
    """
    least = [-((r - 1 - e - pad) // stride) for e in range(stride)]  # the smallest k with t < r
    if stride == 1:
        windows = [(0, least[0] + size * i) for i in range(-(-r // size))]
    else:
        last = (stride - 1 + pad) // stride
        # One window for all remainders, where it is no larger than theirs.
        windows = [(e, min(least) if last - min(least) < size else least[e]) for e in range(stride)]
    taps = [[e + pad - stride * (begin + i) for i in range(size)] for e, begin in windows]
    checked = tuple(tuple(t if 0 <= t < r else -1 for t in group) for group in taps)
    return Groups(tuple(begin for _, begin in windows), checked)


def suits(g: Geometry) -> bool:
    """Whether these functions can compute a layer, and are expected to take less time than gathering patches does.

    Time is counted in multiplications of a matrix product: the others' share is as measured, see FILTER_COST.
    """
    if g.r != g.s or g.stride_h != g.stride_w or g.r == 1 or (g.stride_h > 1 and g.r > 3 * g.stride_h):
        return False
    size = _group_size(g.r, g.stride_h)
    points, groups = (TILE + size - 1) ** 2, len(_read_groups(size, g.r, g.stride_h, 0).taps) ** 2
    tiles = len(_Tiles(g.n, g.p, g.q))
    work = (tiles + FILTER_COST) * groups * g.c * g.k + VALUE_COST * tiles * (groups * g.c + g.k)
    return g.operations / 2 > GAIN * points * work


# ---- to the points and back ----------------------------------------------------------------------------------------


@jit
def _combine(coefficients, columns, source, at, target, begin, step, length):  # type: ignore[no-untyped-def]
    """Multiplies a sparse matrix with lines: that of column j begins at source[at[j]], of row i at begin + i step."""
    for i in range(len(coefficients)):
        to = np.uintp(begin + i * step)
        c0, c1, c2, c3 = coefficients[i, 0], coefficients[i, 1], coefficients[i, 2], coefficients[i, 3]
        i0, i1 = np.uintp(at[columns[i, 0]]), np.uintp(at[columns[i, 1]])
        i2, i3 = np.uintp(at[columns[i, 2]]), np.uintp(at[columns[i, 3]])
        if coefficients.shape[1] == 4:
            for j in range(np.uintp(length)):
                target[to + j] = c0 * source[i0 + j] + c1 * source[i1 + j] + c2 * source[i2 + j] + c3 * source[i3 + j]
        else:
            c4, c5 = coefficients[i, 4], coefficients[i, 5]
            i4, i5 = np.uintp(at[columns[i, 4]]), np.uintp(at[columns[i, 5]])
            for j in range(np.uintp(length)):
                sum = c0 * source[i0 + j] + c1 * source[i1 + j] + c2 * source[i2 + j]
                target[to + j] = sum + c3 * source[i3 + j] + c4 * source[i4 + j] + c5 * source[i5 + j]


@jit
def _to_points_loop(  # type: ignore[no-untyped-def]
    start, stop, first, x, tiles_h, tiles_w, stride, offsets_h, offsets_w, window, coefficients, columns, values
):
    """The values at the points of tile rows start ... stop - 1, for each group of taps.

    values: (points^2, tiles, groups C), from tile row `first` on. A tile row's pixels are first copied, with zeros
    around the image, so that those of one place in all tiles lie side by side: then all loops are long.
    """
    _, height, width, channels = x.shape
    n, tiles, groups = len(coefficients), values.shape[1], len(offsets_h) * len(offsets_w)
    source, target = x.reshape(-1), values.reshape(-1)
    top, left = offsets_h.min(), offsets_w.min()
    step = stride * 4
    places = tiles_w + (stride * (window - 1) + offsets_w.max() - left) // step
    rows = stride * (window - 1) + offsets_h.max() - top + 1
    line = step * places * channels
    padded, lines = np.empty(rows * line, x.dtype), np.empty(n * line, x.dtype)
    length = tiles_w * channels
    at, run = np.empty(window, np.int64), np.empty(n * length, x.dtype)
    for tile_row in range(start, stop):
        image, i = tile_row // tiles_h, tile_row % tiles_h
        for r in range(rows):
            row = step * i + top + r
            for rest in range(step):
                for place in range(places):
                    column = left + place * step + rest
                    to = np.uintp(((r * step + rest) * places + place) * channels)
                    if 0 <= row < height and 0 <= column < width:
                        begin = np.uintp(((image * height + row) * width + column) * channels)
                        for c in range(np.uintp(channels)):
                            padded[to + c] = source[begin + c]
                    else:
                        for c in range(np.uintp(channels)):
                            padded[to + c] = 0
        for group_h in range(len(offsets_h)):
            for k in range(window):
                at[k] = (stride * k + offsets_h[group_h] - top) * line
            _combine(coefficients, columns, padded, at, lines, 0, line, line)
            for group_w in range(len(offsets_w)):
                group = group_h * len(offsets_w) + group_w
                for a in range(n):
                    for k in range(window):
                        column = stride * k + offsets_w[group_w] - left
                        at[k] = a * line + (column % step * places + column // step) * channels
                    to = ((a * n * tiles + (tile_row - first) * tiles_w) * groups + group) * channels
                    if groups == 1:
                        _combine(coefficients, columns, lines, at, target, to, tiles * channels, length)
                    else:
                        _combine(coefficients, columns, lines, at, run, 0, length, length)
                        for b in range(n):
                            for j in range(tiles_w):
                                put = np.uintp(to + (b * tiles + j) * groups * channels)
                                begin = np.uintp(b * length + j * channels)
                                for c in range(np.uintp(channels)):
                                    target[put + c] = run[begin + c]


@jit
def _from_points_loop(  # type: ignore[no-untyped-def]
    start, stop, first, values, y, channel, tiles_h, tiles_w, stride, offsets_h, offsets_w, coefficients, columns, bias
):
    """The outputs of tile rows start ... stop - 1, from values (points^2, tiles, groups, C).

    Output (i, j) of group (a, b) goes to y[n, stride i + offsets_h[a], stride j + offsets_w[b], channel ...].
    """
    _, height, width, all_channels = y.shape
    _, tiles, groups, channels = values.shape
    n = columns.max() + 1
    source, target = values.reshape(-1), y.reshape(-1)
    line = tiles_w * groups * channels
    lines, outputs = np.empty(4 * n * line, y.dtype), np.empty(4 * 4 * line, y.dtype)
    at = np.empty(n, np.int64)
    for tile_row in range(start, stop):
        image, i = tile_row // tiles_h, tile_row % tiles_h
        for b in range(n):
            for a in range(n):
                at[a] = ((a * n + b) * tiles + (tile_row - first) * tiles_w) * groups * channels
            _combine(coefficients, columns, source, at, lines, b * line, n * line, line)
        for a in range(4):
            for b in range(n):
                at[b] = (a * n + b) * line
            _combine(coefficients, columns, lines, at, outputs, a * 4 * line, line, line)
        for a in range(4):
            for group_h in range(len(offsets_h)):
                row = stride * (4 * i + a) + offsets_h[group_h]
                if row < height:
                    for b in range(4):
                        for group_w in range(len(offsets_w)):
                            group = group_h * len(offsets_w) + group_w
                            for j in range(
                                min(tiles_w, (width - 1 - offsets_w[group_w] - stride * b) // (stride * 4) + 1)
                            ):
                                column = stride * (4 * j + b) + offsets_w[group_w]
                                begin = np.uintp((a * 4 + b) * line + (j * groups + group) * channels)
                                to = np.uintp(((image * height + row) * width + column) * all_channels + channel)
                                for c in range(np.uintp(channels)):
                                    target[to + c] = outputs[begin + c] + bias[channel + c]


@jit
def _filters_loop(  # type: ignore[no-untyped-def]
    start, stop, w, strides, channel, taps_h, taps_w, coefficients, columns, groups_first, values
):
    """G w for inputs start ... stop - 1 and the output channels from `channel` on, at the points, for each group.

    strides: of w's axes for inputs and taps; the output channels lie side by side.
    """
    size, n = taps_h.shape[1], len(coefficients)
    groups, channels = len(taps_h) * len(taps_w), values.shape[-1]
    filters = values.shape[2] if groups_first else values.shape[1]
    source, target = w.reshape(-1), values.reshape(-1)
    taps, lines = np.zeros((size * size + 1) * channels, w.dtype), np.empty(n * size * channels, w.dtype)
    at = np.empty(size, np.int64)
    for k in range(start, stop):
        for group in range(groups):
            chosen_h, chosen_w = taps_h[group // len(taps_w)], taps_w[group % len(taps_w)]
            for i in range(size):
                for j in range(size):
                    to = np.uintp((i * size + j) * channels)
                    if chosen_h[i] >= 0 and chosen_w[j] >= 0:
                        begin = np.uintp(k * strides[0] + chosen_h[i] * strides[1] + chosen_w[j] * strides[2] + channel)
                        for c in range(np.uintp(channels)):
                            taps[to + c] = source[begin + c]
                    else:
                        for c in range(np.uintp(channels)):
                            taps[to + c] = 0
            for i in range(size):
                at[i] = i * size * channels
            _combine(coefficients, columns, taps, at, lines, 0, size * channels, size * channels)
            row = group * filters + k if groups_first else k * groups + group
            for a in range(n):
                for j in range(size):
                    at[j] = (a * size + j) * channels
                to = (a * n * filters * groups + row) * channels
                _combine(coefficients, columns, lines, at, target, to, filters * groups * channels, channels)


@jit
def _turn_loop(start, stop, w, turned):  # type: ignore[no-untyped-def]
    """The transpose of a matrix, columns start ... stop - 1 of it, a cache line's worth at a time."""
    for first in range(start, stop, 16):
        for i in range(np.uintp(len(w))):
            for j in range(np.uintp(first), np.uintp(min(first + 16, stop))):
                turned[j, i] = w[i, j]


def _filters(
    w: Array, inputs: int, channels: range, groups: tuple[Groups, Groups], t: Transform, groups_first: bool, alone: bool
) -> Array:
    """G w for each group, in scratch memory: (points^2, groups, I, o) or (points^2, I, groups, o).

    w is (I, R, S, O) or (R, S, I, O), with `inputs` the axis of the input channels I; o are some of the output ones.
    """
    count, size = len(groups[0].taps) * len(groups[1].taps), w.shape[inputs]
    order = (count, size) if groups_first else (size, count)
    values = scratch((t.points**2, *order, len(channels)), w.dtype, "filters")
    strides = np.array([w.strides[axis] // w.itemsize for axis in (inputs, *(a for a in range(3) if a != inputs))])
    taps = (np.array(axis.taps) for axis in groups)
    matrix = t.filter.coefficients, t.filter.columns
    _share(_filters_loop, range(size), alone, w, strides, channels.start, *taps, *matrix, groups_first, values)
    return values


def _share(kernel: Callable[..., None], indices: range, alone: bool, *arguments: Any) -> None:
    """Runs a kernel over some indices, on all threads, unless `alone`; the last argument is what it fills."""
    if alone:
        kernel(indices.start, indices.stop, *arguments)
    else:
        grain = max(1, ELEMENTS_PER_THREAD // (arguments[-1].size // len(indices)))

        def shifted(start: int, stop: int) -> None:
            kernel(indices.start + start, indices.start + stop, *arguments)

        parallel(shifted, len(indices), grain=grain)


# ---- the three primitives ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pixels:
    """Pixels stride i + offset, on both axes, for each of some offsets."""

    stride: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def groups(self) -> int:
        return len(self.rows) * len(self.columns)

    def arguments(self) -> tuple[int, Array, Array]:
        return self.stride, np.array(self.rows), np.array(self.columns)


class _Tiles:
    """All tiles of N images of height x width outputs; they are handled by rows of them."""

    def __init__(self, n: int, height: int, width: int) -> None:
        self.h, self.w = -(-height // TILE), -(-width // TILE)
        self.rows = range(n * self.h)

    def __len__(self) -> int:
        return len(self.rows) * self.w

    def cut(self, tiles: int) -> list[range]:
        """The rows of tiles in parts of about so many tiles."""
        step = max(1, tiles // self.w)
        return [self.rows[i : i + step] for i in range(0, len(self.rows), step)]


class _Values:
    """The values of x at the points, (points^2, tiles, groups C), for some rows of tiles at a time."""

    def __init__(self, x: Array, pixels: _Pixels, tiles: _Tiles, window: int, matrix: Matrix, name: str) -> None:
        self.dtype, self.width, self.name = x.dtype, pixels.groups * x.shape[3], name
        self.points, self.tiles = len(matrix.coefficients), tiles
        self.arguments = x, tiles.h, tiles.w, *pixels.arguments(), window, matrix.coefficients, matrix.columns

    def of(self, rows: range, alone: bool) -> Array:
        """In scratch memory, made on all threads, unless `alone`."""
        values = scratch((self.points**2, len(rows) * self.tiles.w, self.width), self.dtype, self.name)
        _share(_to_points_loop, rows, alone, rows.start, *self.arguments, values)
        return values


def _correlate(
    x: Array,
    read: _Pixels,
    y: Array,
    written: _Pixels,
    t: Transform,
    filters: Callable[[range, bool], Array],
    bias: Array | None,
) -> None:
    """Fills y: at the points, the values of x times `filters` of some output channels.

    Those are (points^2, B, M, columns) for B separate products, whose columns are the written groups' channels.
    """
    channels = range(y.shape[3])
    tiles = _Tiles(len(y), -(-y.shape[1] // written.stride), -(-y.shape[2] // written.stride))
    values = _Values(x, read, tiles, t.points, t.input, "values")
    output = tiles.h, tiles.w, *written.arguments(), t.output.coefficients, t.output.columns
    bias = np.zeros(len(channels), y.dtype) if bias is None else bias

    def multiply(rows: range, left: Array, right: Array, channel: int) -> None:
        products, size = right.shape[1], left.shape[:2]
        result = scratch((*size, written.groups, products * right.shape[3] // written.groups), y.dtype, "products")
        left, out = (a.reshape(*size, products, -1).swapaxes(1, 2) for a in (left, result))
        np.matmul(left, right, out=out)
        _from_points_loop(rows.start, rows.stop, rows.start, result, y, channel, *output, bias)

    point_bytes = t.points**2 * y.dtype.itemsize
    inputs, outputs = values.width, written.groups * len(channels)
    if len(tiles) >= FEW_TILES and point_bytes * inputs * outputs <= FILTER_BYTES:
        right = filters(channels, False)

        def block(rows: range) -> None:
            multiply(rows, values.of(rows, alone=True), right, 0)

        parallel_each(block, tiles.cut(max(BLOCK_TILES, BLOCK_BYTES // (point_bytes * (inputs + outputs)))))
    else:
        left = values.of(tiles.rows, alone=False)
        step = PART_BYTES // (point_bytes * written.groups * (len(tiles) + inputs)) // 8 * 8
        step = max(16, min(max(PART_CHANNELS, step), len(channels) // 32 * 8))

        def part(some: range) -> None:
            multiply(tiles.rows, left, filters(some, True), some.start)

        parallel_each(part, [channels[i : i + step] for i in range(0, len(channels), step)])


def _groups(g: Geometry, along: Callable[..., Groups]) -> tuple[Groups, Groups]:
    size = _group_size(g.r, g.stride_h)
    return along(size, g.r, g.stride_h, g.top), along(size, g.s, g.stride_w, g.left)


def forward(x: Array, w: Array, g: Geometry, bias: Array | None = None) -> Array:
    """(N, H, W, C), (K, R, S, C) and perhaps (K,) -> (N, P, Q, K)."""
    y, w = np.empty(g.y_shape, x.dtype), np.ascontiguousarray(w)
    t, groups = transform(_group_size(g.r, g.stride_h), x.dtype), _groups(g, _read_groups)

    def filters(channels: range, alone: bool) -> Array:
        # As the right factors of products, filters are best with the output channels side by side.
        turned = scratch((g.r, g.s, g.c, len(channels)), w.dtype, "turned")
        matrix = turned.reshape(-1, len(channels))
        _share(
            _turn_loop, range(len(matrix)), alone, w[channels.start : channels.stop].reshape(len(channels), -1), matrix
        )
        values = _filters(turned, 2, range(len(channels)), groups, t, groups_first=True, alone=alone)
        return values.reshape(len(values), 1, -1, len(channels))

    with one_blas_thread():
        read = _Pixels(g.stride_h, groups[0].offsets, groups[1].offsets)
        _correlate(np.ascontiguousarray(x), read, y, _Pixels(1, (0,), (0,)), t, filters, bias)
    return y


def input_grad(gy: Array, w: Array, g: Geometry, bias: Array | None = None) -> Array:
    """(N, P, Q, K), (K, R, S, C) and perhaps (C,) -> (N, H, W, C)."""
    gx, w = np.empty(g.x_shape, gy.dtype), np.ascontiguousarray(w)
    t, groups = transform(_group_size(g.r, g.stride_h), gy.dtype), _groups(g, _turned_groups)
    offsets = [axis.offsets for axis in groups]
    together = g.stride_h > 1 and all(len(set(axis)) == 1 for axis in offsets)
    if together:  # the remainders read the same windows
        offsets = [axis[:1] for axis in offsets]

    def filters(channels: range, alone: bool) -> Array:
        values = _filters(w, 0, channels, groups, t, groups_first=not together, alone=alone)
        if together:  # the groups are columns of one product
            return values.reshape(len(values), 1, g.k, -1)
        if g.stride_h == 1:  # they are rows of one: they add up
            return values.reshape(len(values), 1, -1, len(channels))
        return values

    with one_blas_thread():
        written = _Pixels(g.stride_h, tuple(range(g.stride_h)), tuple(range(g.stride_w)))
        _correlate(np.ascontiguousarray(gy), _Pixels(1, *offsets), gx, written, t, filters, bias)
    return gx


def weight_grad(x: Array, gy: Array, g: Geometry) -> Array:
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C)."""
    gw, channels = np.zeros(g.w_shape, x.dtype), range(g.k)
    t, groups = transform(_group_size(g.r, g.stride_h), x.dtype), _groups(g, _read_groups)
    read = _Pixels(g.stride_h, groups[0].offsets, groups[1].offsets)
    tiles = _Tiles(g.n, g.p, g.q)
    values = _Values(np.ascontiguousarray(x), read, tiles, t.points, t.input, "values")
    gradients = _Values(np.ascontiguousarray(gy), _Pixels(1, (0,), (0,)), tiles, TILE, t.gradient, "gradients")
    point_bytes = t.points**2 * x.dtype.itemsize
    step = max(WIDE_CHANNELS, PART_BYTES // (point_bytes * values.width))

    def add(left: Array, right: Array, some: range) -> None:
        """To the gradient of some output channels."""
        sums = scratch((t.points**2, len(some), values.width), x.dtype, "sums")

        def multiply(at: slice) -> None:
            np.matmul(left[at, :, some.start : some.stop].swapaxes(1, 2), right[at], out=sums[at])

        def to_taps(part: range) -> None:
            taps = scratch((t.taps, t.taps, len(part), read.groups, g.c), x.dtype, "taps")
            chosen = sums[:, part.start - some.start : part.stop - some.start]
            np.matmul(t.filter_gradient, chosen.reshape(t.points**2, -1), out=taps.reshape(t.taps**2, -1))
            for group, (rs, ss) in enumerate((r, s) for r in groups[0].taps for s in groups[1].taps):
                for i, r in enumerate(rs):
                    for j, s in enumerate(ss):
                        if r >= 0 and s >= 0:
                            gw[part.start : part.stop, r, s] += taps[i, j, :, group]

        points = [slice(i, i + 3) for i in range(0, t.points**2, 3)]
        parallel_each(multiply, points, 2 * sums.size * len(right[0]))
        size = -(-len(some) // 8) if sums.size > ELEMENTS_PER_THREAD * 8 else len(some)
        parallel_each(to_taps, [some[i : i + size] for i in range(0, len(some), size)], 2 * t.taps**2 * sums.size)

    with one_blas_thread():
        for rows in tiles.cut(INPUT_BYTES // (point_bytes * (values.width + g.k))):
            right, left = values.of(rows, alone=False), gradients.of(rows, alone=False)
            for i in range(0, g.k, step):
                add(left, right, channels[i : i + step])
    return gw
