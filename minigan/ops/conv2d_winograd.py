"""The three convolution primitives on the CPU with fewer multiplications, by Winograd's minimal filtering.

In two dimensions a tile of 4 x 4 outputs of 3 x 3 taps takes 36 multiplications instead of 144, one for each of 6 x 6
points. Summed over the channels, they are a matrix product for each point, with a row for each tile (Lavin and Gray,
"Fast algorithms for convolutional neural networks", 2016). With B^T, G and A^T the matrices of `winograd.Transform`, on
both axes:

- forward: y = A^T [(G w) (B^T x)]
- weight gradient: gw = G^T [(A gy) (B^T x)]
- input gradient: another forward, of gy with the filters turned round

The groups of taps that a larger filter is cut into (see `winograd.Groups`) add up in the products. The price is
rounding: a transform's sums are larger than its results. The tests measure it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.cpu import one_blas_thread, parallel, parallel_each, scratch
from minigan.ops import winograd
from minigan.ops.conv2d_im2col import epilogue
from minigan.ops.geometry import Geometry
from minigan.ops.winograd import TILE, Groups, Matrix, Transform
from minigan.ops.winograd_loops import filters_loop, from_points_loop, pick_loop, taps_loop, to_points_loop, turn_loop

# A block of tiles goes through all steps with so many bytes, in a core's cache, but has so many tiles at least: fewer
# are not worth BLAS's repacking of the filters.
BLOCK_BYTES = 1 << 20
BLOCK_TILES = 64
# A layer is cut into so many blocks at least, for the threads, if that leaves so many tiles to each.
BLOCKS = 4
# With fewer tiles than this in all, or larger filters, the layer is cut by output channels instead, and the filters
# never stand in memory as a whole. A part has so many bytes, but about so many channels. Where that would leave few
# parts for the threads, half as many tiles are enough.
FEW_TILES = 256
FILTER_BYTES = 32 << 20
PART_BYTES = 8 << 20
PART_CHANNELS = 64
LEAST_CHANNELS = 32
# The weight gradient takes so much of its inputs at a time, and so many output channels at least.
INPUT_BYTES = 32 << 20
WIDE_CHANNELS = 128
# What it costs to bring a value of a filter, and one of the input or output, to or from the points, in multiplications
# of a matrix product; and how much less work than without all this it has to be, as a ratio.
FILTER_COST = 24
VALUE_COST = 24
GAIN = 1.2
# Less work than this is not worth a second thread: values, each of which takes several operations.
VALUES_PER_THREAD = 32_768


@cache
def suits(g: Geometry) -> bool:
    """Whether these functions can compute a layer, and are expected to take less time than gathering patches does."""
    if g.r != g.s or g.stride_h != g.stride_w or g.r == 1 or (g.stride_h > 1 and g.r > 3 * g.stride_h):
        return False
    size = winograd.group_size(g.r, g.stride_h)
    points, groups = (TILE + size - 1) ** 2, len(winograd.read_groups(size, g.r, g.stride_h, 0).taps) ** 2
    tiles = len(_Tiles(g.n, g.p, g.q))
    work = (tiles + FILTER_COST) * groups * g.c * g.k + VALUE_COST * tiles * (groups * g.c + g.k)
    return g.operations / 2 > GAIN * points * work


@cache
def _cut(g: Geometry, along: Callable[..., Groups], dtype: np.dtype) -> tuple[Transform, Groups, Groups]:
    size = winograd.group_size(g.r, g.stride_h)
    rows, columns = along(size, g.r, g.stride_h, g.top), along(size, g.s, g.stride_w, g.left)
    return winograd.transform(size, dtype), rows, columns


def _share(kernel: Callable[..., None], indices: range, alone: bool, *arguments: Any) -> None:
    """Runs a kernel over some indices, on all threads, unless `alone`; the last argument is what it fills."""
    if alone:
        kernel(indices.start, indices.stop, *arguments)
        return

    def shifted(start: int, stop: int) -> None:
        kernel(indices.start + start, indices.start + stop, *arguments)

    parallel(shifted, len(indices), grain=max(1, VALUES_PER_THREAD * len(indices) // arguments[-1].size))


@cache
def _table(numbers: tuple[int, ...] | tuple[tuple[int, ...], ...]) -> Array:
    """For the loops: the same as an array, which nobody may change."""
    return np.array(numbers)


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
        return self.stride, _table(self.rows), _table(self.columns)


class _Tiles:
    """All tiles of N images of height x width outputs; they are handled by rows of them."""

    def __init__(self, n: int, height: int, width: int) -> None:
        self.h, self.w = -(-height // TILE), -(-width // TILE)
        self.rows = range(n * self.h)

    def __len__(self) -> int:
        return len(self.rows) * self.w

    def cut(self, tiles: int) -> list[range]:
        """The rows of tiles in parts of about equal size and at most so many tiles; if in parts, an even number."""
        rows, count = len(self.rows), -(-len(self.rows) // max(1, tiles // self.w))
        count = min(count + (count % 2 if count > 1 else 0), rows)
        return [self.rows[rows * i // count : rows * (i + 1) // count] for i in range(count)]


class _Values:
    """The values of x at the points, (points^2, tiles, groups C), for some rows of tiles at a time."""

    def __init__(self, x: Array, pixels: _Pixels, tiles: _Tiles, window: int, matrix: Matrix, name: str) -> None:
        x = np.ascontiguousarray(x)
        self.dtype, self.width, self.name = x.dtype, pixels.groups * x.shape[3], name
        self.points, self.tiles = len(matrix.coefficients), tiles
        self.arguments = x, tiles.h, tiles.w, *pixels.arguments(), window, matrix.coefficients, matrix.columns

    def of(self, rows: range, alone: bool) -> Array:
        """In scratch memory, made on all threads, unless `alone`."""
        values = scratch((self.points**2, len(rows) * self.tiles.w, self.width), self.dtype, self.name)
        _share(to_points_loop, rows, alone, rows.start, *self.arguments, values)
        return values


class _Filters:
    """G w for each group of taps: (points^2, groups, inputs, some of the outputs), in scratch memory.

    The right factors of products are best with the output channels side by side, so taps are brought into that order.
    """

    def __init__(self, w: Array, t: Transform, *groups: Groups) -> None:
        self.w, self.t = np.ascontiguousarray(w), t
        self.tables = [_table(axis.taps) for axis in groups]
        self.groups = math.prod(len(table) for table in self.tables)

    def forward(self, channels: range, alone: bool) -> Array:
        """Of w (K, R, S, C): inputs C, outputs K."""
        _, r, s, c = self.w.shape
        taps = self._taps(c, len(channels))
        chosen = self.w[channels.start : channels.stop].reshape(len(channels), -1)
        _share(turn_loop, range(r * s * c), alone, chosen, taps.reshape(-1, len(channels)))
        return self._values(taps, alone)

    def input_grad(self, channels: range, alone: bool) -> Array:
        """Of w (K, R, S, C): inputs K, outputs C."""
        k, r, s, c = self.w.shape
        taps = self._taps(k, len(channels))
        _share(pick_loop, range(k), alone, self.w.reshape(k, r * s, c), channels.start, taps)
        return self._values(taps, alone)

    def _taps(self, inputs: int, outputs: int) -> Array:
        _, r, s, _ = self.w.shape
        taps = scratch((r * s + 1, inputs, outputs), self.w.dtype, "taps")
        taps[-1] = 0
        return taps

    def _values(self, taps: Array, alone: bool) -> Array:
        values = scratch((self.t.points**2, self.groups, *taps.shape[1:]), taps.dtype, "filters")
        flat, matrix = taps.reshape(len(taps), -1), self.t.filter
        filters = range(flat.shape[1])
        arguments = len(filters), flat, *self.tables, matrix.coefficients, matrix.columns, values
        _share(filters_loop, filters, alone, *arguments)
        return values


def _correlate(
    x: Array,
    read: _Pixels,
    y: Array,
    written: _Pixels,
    t: Transform,
    filters: Callable[[range, bool], Array],
    bias: Array | None,
    slope: float,
) -> None:
    """Fills y: at the points, the values of x times those of the filters of some output channels.

    Groups that are written are products of their own; where only one is, those that are read add up.
    """
    channels = range(y.shape[3])
    tiles = _Tiles(len(y), -(-y.shape[1] // written.stride), -(-y.shape[2] // written.stride))
    values = _Values(x, read, tiles, t.points, t.input, "values")
    output = tiles.h, tiles.w, *written.arguments(), t.output.coefficients, t.output.columns
    behind = epilogue(bias, slope, len(channels), y.dtype)

    def multiply(rows: range, left: Array, right: Array, channel: int) -> None:
        right = right.reshape(len(right), written.groups, -1, right.shape[3])
        size = left.shape[:2]
        result = scratch((*size, written.groups, right.shape[3]), y.dtype, "products")
        # All groups that are written read one window, or each has its own.
        np.matmul(left.reshape(*size, -1, right.shape[2]).swapaxes(1, 2), right, out=result.swapaxes(1, 2))
        from_points_loop(rows.start, rows.stop, rows.start, result, y, channel, *output, *behind)

    point_bytes = t.points**2 * y.dtype.itemsize
    inputs, outputs = values.width, written.groups * len(channels)
    few = FEW_TILES if len(channels) >= 4 * LEAST_CHANNELS else FEW_TILES // 2
    if len(tiles) >= few and point_bytes * inputs * outputs <= FILTER_BYTES:
        right = filters(channels, False)

        def block(rows: range) -> None:
            multiply(rows, values.of(rows, alone=True), right, 0)

        fits = BLOCK_BYTES // (point_bytes * (inputs + outputs))
        parallel_each(block, tiles.cut(max(BLOCK_TILES, min(fits, len(tiles) // BLOCKS))))
    else:
        left = values.of(tiles.rows, alone=False)
        step = PART_BYTES // (point_bytes * written.groups * (len(tiles) + inputs)) // 8 * 8
        step = max(LEAST_CHANNELS, min(max(PART_CHANNELS, step), len(channels) // 32 * 8))

        def part(some: range) -> None:
            multiply(tiles.rows, left, filters(some, True), some.start)

        parallel_each(part, [channels[i : i + step] for i in range(0, len(channels), step)])


def forward(x: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0) -> Array:
    """(N, H, W, C), (K, R, S, C) and perhaps (K,) -> (N, P, Q, K). slope: of a LeakyReLU behind it."""
    y = np.empty(g.y_shape, x.dtype)
    t, rows, columns = _cut(g, winograd.read_groups, x.dtype)
    read, written = _Pixels(g.stride_h, rows.offsets, columns.offsets), _Pixels(1, (0,), (0,))
    with one_blas_thread():
        _correlate(x, read, y, written, t, _Filters(w, t, rows, columns).forward, bias, slope)
    return y


def input_grad(gy: Array, w: Array, g: Geometry, bias: Array | None = None, slope: float = 1.0) -> Array:
    """(N, P, Q, K), (K, R, S, C) and perhaps (C,) -> (N, H, W, C). slope: as of forward."""
    gx = np.empty(g.x_shape, gy.dtype)
    t, rows, columns = _cut(g, winograd.turned_groups, gy.dtype)
    offsets = [rows.offsets, columns.offsets]
    if g.stride_h > 1 and all(len(set(axis)) == 1 for axis in offsets):  # the remainders read the same windows
        offsets = [axis[:1] for axis in offsets]
    read, written = _Pixels(1, *offsets), _Pixels(g.stride_h, tuple(range(g.stride_h)), tuple(range(g.stride_w)))
    with one_blas_thread():
        _correlate(gy, read, gx, written, t, _Filters(w, t, rows, columns).input_grad, bias, slope)
    return gx


def weight_grad(x: Array, gy: Array, g: Geometry) -> Array:
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C)."""
    gw, channels = np.zeros(g.w_shape, x.dtype), range(g.k)
    t, rows, columns = _cut(g, winograd.read_groups, x.dtype)
    read = _Pixels(g.stride_h, rows.offsets, columns.offsets)
    tiles = _Tiles(g.n, g.p, g.q)
    values = _Values(x, read, tiles, t.points, t.input, "values")
    gradients = _Values(gy, _Pixels(1, (0,), (0,)), tiles, TILE, t.gradient, "gradients")
    back = _table(rows.taps), _table(columns.taps), t.filter_gradient.coefficients, t.filter_gradient.columns
    point_bytes = t.points**2 * x.dtype.itemsize
    step = max(WIDE_CHANNELS, PART_BYTES // (point_bytes * values.width))

    def add(left: Array, right: Array, some: range) -> None:
        """To the gradient of some output channels."""
        sums = scratch((t.points**2, len(some), read.groups, g.c), x.dtype, "products")
        products = sums.reshape(t.points**2, len(some), -1)

        def multiply(points: slice) -> None:
            np.matmul(left[points, :, some.start : some.stop].swapaxes(1, 2), right[points], out=products[points])

        points = [slice(i, i + 3) for i in range(0, t.points**2, 3)]
        parallel_each(multiply, points, 2 * sums.size * right.shape[1])
        _share(taps_loop, range(len(some)), False, sums, *back, some.start, gw)

    with one_blas_thread():
        for part in tiles.cut(INPUT_BYTES // (point_bytes * (values.width + g.k))):
            right, left = values.of(part, alone=False), gradients.of(part, alone=False)
            for i in range(0, g.k, step):
                add(left, right, channels[i : i + step])
    return gw
