"""Winograd's transforms as loops for the CPU: images and filters to the points, products and gradients back.

All of them multiply small matrices with long lines of numbers that lie side by side, on one axis and then the other. A
matrix is given by its `coefficients` and their `columns`, see `winograd.Matrix`.
"""

import numpy as np

from minigan.cpu import jit


@jit
def _combine(coefficients, columns, source, at, target, begin, step, length):  # type: ignore[no-untyped-def]
    """Multiplies a sparse matrix with lines: that of column j begins at source[at[j]], of row i at begin + i step.

    A `begin` that is written as a number would make Numba compile this anew for it; np.int64(0) does not.
    """
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
def _ends(numbers):  # type: ignore[no-untyped-def]
    """The least and the largest. NumPy's functions for that would take half a second to compile."""
    least = largest = numbers[0]
    for i in range(len(numbers)):
        least, largest = min(least, numbers[i]), max(largest, numbers[i])
    return least, largest


@jit
def to_points_loop(  # type: ignore[no-untyped-def]
    start, stop, first, x, tiles_h, tiles_w, stride, offsets_h, offsets_w, window, coefficients, columns, values
):
    """The values at the points of tile rows start ... stop - 1, for each group of taps.

    values: (points^2, tiles, groups C), from tile row `first` on. A tile row's pixels are first copied, with zeros
    around the image, so that those of one place in all tiles lie side by side: then all loops are long.
    """
    _, height, width, channels = x.shape
    n, tiles, groups = len(coefficients), values.shape[1], len(offsets_h) * len(offsets_w)
    source, target = x.reshape(-1), values.reshape(-1)
    (top, bottom), (left, right) = _ends(offsets_h), _ends(offsets_w)
    step = stride * 4
    places = tiles_w + (stride * (window - 1) + right - left) // step
    rows = stride * (window - 1) + bottom - top + 1
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
            _combine(coefficients, columns, padded, at, lines, np.int64(0), line, line)
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
                        _combine(coefficients, columns, lines, at, run, np.int64(0), length, length)
                        for b in range(n):
                            for j in range(tiles_w):
                                put = np.uintp(to + (b * tiles + j) * groups * channels)
                                begin = np.uintp(b * length + j * channels)
                                for c in range(np.uintp(channels)):
                                    target[put + c] = run[begin + c]


@jit
def from_points_loop(  # type: ignore[no-untyped-def]
    start, stop, first, values, y, channel, tiles_h, tiles_w, stride, offsets_h, offsets_w, coefficients, columns,
    bias, slope, least,
):  # fmt: skip
    """leaky(the outputs + bias) of tile rows start ... stop - 1, from values (points^2, tiles, groups, C).

    bias, slope, least: see `conv2d_im2col.epilogue`.

    Output (i, j) of group (a, b) goes to y[n, stride i + offsets_h[a], stride j + offsets_w[b], channel ...].
    """
    _, height, width, all_channels = y.shape
    _, tiles, groups, channels = values.shape
    n = _ends(columns.reshape(-1))[1] + 1
    source, target, shift = values.reshape(-1), y.reshape(-1), bias[channel : channel + channels]
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
                                    value = outputs[begin + c] + shift[c]
                                    below = slope * (least if value < least else value)
                                    target[to + c] = value if value > 0 else below


@jit
def filters_loop(start, stop, size, taps, taps_h, taps_w, coefficients, columns, values):  # type: ignore[no-untyped-def]
    """The values at the points of filters start ... stop - 1 of `size`, for each group of taps.

    taps: (R S + 1, size), the last of zeros, for a tap that a group has not. values: (points^2, groups, size).
    """
    width, n, groups = taps_h.shape[1], len(coefficients), len(taps_h) * len(taps_w)
    across = _ends(taps_w.reshape(-1))[1] + 1
    source, target = taps.reshape(-1), values.reshape(-1)
    length = 256  # so many filters at a time, for the cache
    lines, at = np.empty(n * width * length, taps.dtype), np.empty(width, np.int64)
    for first in range(start, stop, length):
        some = min(length, stop - first)
        for group in range(groups):
            chosen_h, chosen_w = taps_h[group // len(taps_w)], taps_w[group % len(taps_w)]
            for j in range(width):
                for i in range(width):
                    there = chosen_h[i] >= 0 and chosen_w[j] >= 0
                    tap = chosen_h[i] * across + chosen_w[j] if there else len(taps) - 1
                    at[i] = tap * size + first
                _combine(coefficients, columns, source, at, lines, j * length, width * length, some)
            for a in range(n):
                for j in range(width):
                    at[j] = (a * width + j) * length
                to = (a * n * groups + group) * size + first
                _combine(coefficients, columns, lines, at, target, to, groups * size, some)


@jit
def taps_loop(start, stop, values, taps_h, taps_w, coefficients, columns, first, gw):  # type: ignore[no-untyped-def]
    """Adds to gw (K, R, S, C), from output channel `first` on, what the values of channels start ... stop - 1 come to.

    values: (points^2, some of K, groups, C).
    """
    _, count, groups, channels = values.shape
    _, r, s, _ = gw.shape
    width, n = len(coefficients), _ends(columns.reshape(-1))[1] + 1
    source, target = values.reshape(-1), gw.reshape(-1)
    line = groups * channels
    lines, taps = np.empty(width * n * line, gw.dtype), np.empty(width * width * line, gw.dtype)
    at = np.empty(n, np.int64)
    for k in range(start, stop):
        for b in range(n):
            for a in range(n):
                at[a] = ((a * n + b) * count + k) * line
            _combine(coefficients, columns, source, at, lines, b * line, n * line, line)
        for i in range(width):
            for b in range(n):
                at[b] = (i * n + b) * line
            _combine(coefficients, columns, lines, at, taps, i * width * line, line, line)
        for group in range(groups):
            chosen_h, chosen_w = taps_h[group // len(taps_w)], taps_w[group % len(taps_w)]
            for i in range(width):
                for j in range(width):
                    if chosen_h[i] >= 0 and chosen_w[j] >= 0:
                        begin = np.uintp((i * width + j) * line + group * channels)
                        to = np.uintp((((first + k) * r + chosen_h[i]) * s + chosen_w[j]) * channels)
                        for c in range(np.uintp(channels)):
                            target[to + c] += taps[begin + c]


@jit
def turn_loop(start, stop, matrix, turned):  # type: ignore[no-untyped-def]
    """Columns start ... stop - 1 of a matrix as rows of its transpose, a cache line's worth at a time."""
    for first in range(start, stop, 16):
        for i in range(np.uintp(len(matrix))):
            for j in range(np.uintp(first), np.uintp(min(first + 16, stop))):
                turned[j, i] = matrix[i, j]


@jit
def pick_loop(start, stop, w, channel, taps):  # type: ignore[no-untyped-def]
    """Filters start ... stop - 1 of w (K, R S, C), from `channel` on, to taps (R S + 1, K, some of C)."""
    source, target = w.reshape(-1), taps.reshape(-1)
    count, size, all_channels = w.shape
    channels = taps.shape[2]
    for k in range(start, stop):
        for tap in range(size):
            begin = np.uintp((k * size + tap) * all_channels + channel)
            to = np.uintp((tap * count + k) * channels)
            for c in range(np.uintp(channels)):
                target[to + c] = source[begin + c]
