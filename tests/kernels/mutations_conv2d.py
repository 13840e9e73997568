"""Bugs to plant in the convolution ladder, and the check that has to notice each of them. mutate.py plants them."""

import numpy as np
import test_conv2d_ladder as ladder
import test_conv2d_moments as observed
import test_half_convolutions as halves
from minigan.kernels.emulator import options
from mutate import Mutation

from minigan.ops import conv2d_launch

NAIVE, IM2COL, IMPLICIT = "conv2d/1_naive.cu", "conv2d/2_im2col.cu", "conv2d/3_implicit_gemm.cu"
REGISTERS, COPIES, TENSOR, HALVES = (
    "conv2d/4_register_tiles.cu",
    "conv2d/5_async_copies.cu",
    "conv2d/6_tensor_cores_tf32.cu",
    "conv2d/7_tensor_cores_16_bits.cu",
)
GEOMETRY, TILE, RING = "conv2d/geometry.cuh", "conv2d/tile.cuh", "conv2d/ring.cuh"
THREE = "conv2d/three_columns.cu"
PASSES, SLICES, LAST = "conv2d/passes.cuh", "conv2d/slices.cuh", "last_block.cuh"
LINES = "conv2d/line_sums.cuh"
WARPGROUPS, ROUNDING, PASSES_16 = "conv2d/9_wgmma.cu", "conv2d/rounding.cuh", "conv2d/passes_16_bits.cuh"
WARPGROUPS_TF32, SHARED_BY_WARPGROUPS = "conv2d/11_wgmma_tf32.cu", "conv2d/warpgroups.cuh"
FRAGMENTS, WITH_MOMENTS = "conv2d/fragments.cuh", "conv2d/passes_with_moments.cuh"
OUTPUT = "conv2d/output.cuh"
PTX = "ptx.cuh"

# The rungs that a file is part of; for headers, enough of them.
CONCERNED = {
    NAIVE: (1,),
    IM2COL: (2,),
    IMPLICIT: (3,),
    REGISTERS: (4,),
    COPIES: (5,),
    TENSOR: (6,),
    HALVES: (7, 8),
    THREE: (),
    GEOMETRY: (3, 5),
    TILE: (3, 4, 5, 6, 7),
    RING: (5, 6, 7),
    PASSES: (3, 5),
    SLICES: (3, 7, 11),
    LINES: (3, 4, 6),
    LAST: (3,),
    WARPGROUPS: (9, 10),
    ROUNDING: (7, 8, 9),
    PASSES_16: (7, 9),
    WARPGROUPS_TF32: (11,),
    SHARED_BY_WARPGROUPS: (9, 11),
    FRAGMENTS: (6, 7),
    WITH_MOMENTS: (),
    OUTPUT: (),
    PTX: (9, 10, 11),
}

FIRST_BARRIER = "    __syncthreads();  // the tiles are complete\n"
SECOND_BARRIER = "    __syncthreads();  // and may be overwritten\n"
INSIDE = "h < 0 || h >= g.h || column < 0 || column >= g.w"

MUTATIONS = [
    # -- 1: naive
    Mutation("naive: one thread too many", NAIVE, "g.p * g.q * g.k) return;", "g.p * g.q * g.k + 1) return;"),
    Mutation("naive: no lower bound", NAIVE, INSIDE, "h >= g.h || column < 0 || column >= g.w"),
    Mutation("naive: last column lost", NAIVE, INSIDE, INSIDE.replace(">= g.w", ">= g.w - 1")),
    Mutation("naive: parity without the padding", NAIVE, "int r = (h + g.top) % g.stride_h", "int r = h % g.stride_h"),
    Mutation("naive: stride 1 over the taps", NAIVE, "s += g.stride_w", "s++"),
    Mutation("naive: r and s swapped", NAIVE, "((k * g.r + r) * g.s + s)", "((k * g.s + s) * g.r + r)"),
    Mutation("naive: last image lost", NAIVE, "n < g.n;", "n < g.n - 1;"),
    # -- 2: im2col
    Mutation(
        "im2col: no zeros outside",
        IM2COL,
        "  columns[index] = inside ? x[((n * g.h + h) * g.w + column) * g.c + c] : 0;",
        "  if (inside) columns[index] = x[((n * g.h + h) * g.w + column) * g.c + c];",
    ),
    Mutation("im2col: no first barrier", IM2COL, FIRST_BARRIER, ""),
    Mutation("im2col: no second barrier", IM2COL, SECOND_BARRIER, ""),
    Mutation("im2col: slices overlap", IM2COL, "blockIdx.z * slice_depth,", "blockIdx.z * (slice_depth - 1),"),
    Mutation("im2col: slice without an end", IM2COL, "end = min(depth, begin + slice_depth)", "end = depth"),
    Mutation("im2col: tail of the depth lost", IM2COL, "d < end; d += TILE", "d + TILE <= end; d += TILE"),
    Mutation("im2col: rows unguarded", IM2COL, "if (row < rows && column", "if (column"),
    Mutation("col2im: wrong parity", IM2COL, "(column + g.left) % g.stride_w", "column % g.stride_w"),
    # -- 3: implicit GEMM
    Mutation("implicit: no first barrier", IMPLICIT, FIRST_BARRIER, ""),
    Mutation("implicit: no second barrier", IMPLICIT, SECOND_BARRIER, ""),
    Mutation("implicit: no zeros", IMPLICIT, "a_index < 0 ? 0 : a[a_index]", "a[max(a_index, 0)]"),
    Mutation("implicit: tail of the depth lost", IMPLICIT, "d < pass.end;", "d + BK <= pass.end;"),
    Mutation("implicit: columns unguarded", IMPLICIT, " && column < pass.columns", ""),
    Mutation("implicit: bias of the row", IMPLICIT, "bias, column)", "bias, row % pass.columns)"),
    # -- the end of a sum
    Mutation("naive: no LeakyReLU", NAIVE, "y[index] = leaky(sum, g.slope)", "y[index] = sum"),
    Mutation("naive: no LeakyReLU in gx", NAIVE, "gx[index] = leaky(sum, g.slope)", "gx[index] = sum"),
    Mutation("im2col: no LeakyReLU", IM2COL, "Epilogue{slope}", "Epilogue{1}"),
    Mutation("im2col: no LeakyReLU in gx", IM2COL, "leaky(sum, g.slope)", "sum"),
    Mutation("end: the wrong side", GEOMETRY, "return y > 0 ? y", "return y < 0 ? y"),
    Mutation(
        "end: LeakyReLU before the bias",
        GEOMETRY,
        "leaky(value, slope)",
        "leaky(sum, slope) + (bias ? bias[column] : 0)",
    ),
    Mutation(
        "end: ELU before the bias",
        GEOMETRY,
        "elu_of(value, static_cast<T>(slope))",
        "elu_of(sum, static_cast<T>(slope)) + (bias ? bias[column] : 0)",
    ),
    Mutation("end: no ELU", GEOMETRY, "elu_of(value, static_cast<T>(slope))", "value"),
    Mutation("end: LeakyReLU for ELU", GEOMETRY, "elu_of(value, static_cast<T>(slope))", "leaky(value, slope)"),
    Mutation("end: ELU's alpha is 1", GEOMETRY, "elu_of(value, static_cast<T>(slope))", "elu_of(value, T(1))"),
    Mutation(
        "end: no LeakyReLU in y", GEOMETRY, ": Epilogue{g.slope}, rows(g.n * g.p", ": Epilogue{1}, rows(g.n * g.p"
    ),
    Mutation("end: no LeakyReLU in gx", GEOMETRY, ": Epilogue{g.slope}, rows(g.n * v.", ": Epilogue{1}, rows(g.n * v."),
    # -- three columns
    Mutation("three: no first barrier", THREE, FIRST_BARRIER, ""),
    Mutation("three: no second barrier", THREE, SECOND_BARRIER, ""),
    Mutation("three: no zeros below", THREE, "inside = h >= 0 && h < of.height &&", "inside = h < of.height &&"),
    Mutation("three: no zeros to the right", THREE, "w >= 0 && w < of.width &&", "w >= 0 &&"),
    Mutation("three: channels unguarded", THREE, " && c0 + c < of.channels", ""),
    Mutation(
        "three: filters unguarded",
        THREE,
        "c < of.channels ? tap * of.channels + c : pass.end",
        "tap * of.channels + c",
        equivalent="the image has zeros there, and filters are finite",
    ),
    Mutation("three: taps forwards", THREE, "of.direction * r) *", "r) *"),
    Mutation("three: rows unguarded", THREE, "row >= of.pixels_h || ", ""),
    Mutation("three: columns of pixels unguarded", THREE, " || column >= of.pixels_w", ""),
    Mutation("three: fourth colour", THREE, "if (k < pass.columns) ", ""),
    Mutation("three: the last channels lost", THREE, "c0 < of.channels; c0 +=", "c0 + CHANNELS <= of.channels; c0 +="),
    Mutation("three: tiles of the largest class", THREE, "if (static_cast<int>(blockIdx.x) < g.n * tiles) ", ""),
    Mutation("three: always class 0", THREE, "pass(g, blockIdx.z)", "pass(g, 0)"),
    Mutation("three: half of the depth", THREE, "c < CHANNELS; c += 4", "c < CHANNELS / 2; c += 4"),
    Mutation("three: rows of a warp overlap", THREE, "threadIdx.x / 32 * ROWS", "threadIdx.x / 32"),
    # -- geometry
    Mutation("lines: no address for a copy, filters", GEOMETRY, "patches.channels : NOWHERE", "patches.channels : -1"),
    Mutation("lines: no address for a copy, gy", GEOMETRY, "i < lines ? i : NOWHERE", "i < lines ? i : -1"),
    Mutation(
        "lines: no address for a copy, filters of a class",
        GEOMETRY,
        "NOWHERE; }\n  __device__ __forceinline__ Step step(int d) const { return patches",
        "-1; }\n  __device__ __forceinline__ Step step(int d) const { return patches",
    ),
    Mutation("class: first tap without the padding", GEOMETRY, "first = (remainder + before)", "first = remainder"),
    Mutation(
        "class: offset without the padding",
        GEOMETRY,
        "offset = (remainder + before - first)",
        "offset = (remainder - first)",
    ),
    Mutation("class: last tap lost", GEOMETRY, "ceil_div(taps - first, stride)", "(taps - first) / stride"),
    Mutation("class: last pixel lost", GEOMETRY, "ceil_div(size - remainder, stride)", "(size - remainder) / stride"),
    Mutation(
        "class: remainders swapped",
        GEOMETRY,
        "at.row * stride_h + row_remainder",
        "at.row * stride_h + column_remainder",
    ),
    Mutation(
        "class: columns by rows",
        GEOMETRY,
        "number / g.stride_w, number % g.stride_w,",
        "number % g.stride_h, number / g.stride_h,",
    ),
    Mutation(
        "class: filter taps backwards", GEOMETRY, "first_r + step.row * stride_h", "first_r - step.row * stride_h"
    ),
    Mutation("class: patches forwards", GEOMETRY, "v.count, h.count, -1,", "v.count, h.count, 1,"),
    Mutation("slice: wrong begin", GEOMETRY, "begin(slice * slice_depth)", "begin(slice * (slice_depth - 1))"),
    Mutation("slice: no end", GEOMETRY, "min(g.n * g.p * g.q, begin + slice_depth)", "g.n * g.p * g.q"),
    Mutation("slice: beyond the pixels", GEOMETRY, "min(g.n * g.p * g.q, begin + slice_depth)", "begin + slice_depth"),
    Mutation(
        "patch: no lower bound",
        GEOMETRY,
        "static_cast<unsigned>(h + direction * row) < static_cast<unsigned>(height)",
        "h + direction * row < height",
    ),
    Mutation(
        "patch: one column too many",
        GEOMETRY,
        "(w + direction * column) < static_cast<unsigned>(width)",
        "(w + direction * column) <= static_cast<unsigned>(width)",
    ),
    Mutation("patch: a line too many", GEOMETRY, "if (i >= lines) return", "if (i > lines) return"),
    Mutation(
        "patch: tap transposed", GEOMETRY, "return {row, column, rest - column", "return {column, row, rest - column"
    ),
    Mutation(
        "patch: index of a tap forwards", GEOMETRY, "return direction * (tap.row * width", "return (tap.row * width"
    ),
    Mutation(
        "padding: a first tap too many left out", GEOMETRY, "direction > 0 ? -highest :", "direction > 0 ? -lowest :"
    ),
    Mutation("padding: a last tap too many left out", GEOMETRY, "? size - lowest :", "? size - highest :"),
    Mutation("padding: backwards, a first tap too many", GEOMETRY, ": lowest - size + 1", ": highest - size + 1"),
    Mutation("padding: backwards, a last tap too many", GEOMETRY, ": highest + 1)", ": lowest + 1)"),
    Mutation("padding: columns of one pixel for many", GEOMETRY, "one_row = first.h == last.h", "one_row = true"),
    Mutation("padding: patches begin where they did", GEOMETRY, "first_w += direction * columns.begin,", ""),
    Mutation(
        "padding: patches begin too late", GEOMETRY, "first_h += direction * rows.begin,", "first_h += rows.begin,"
    ),
    Mutation("padding: taps decoded as before", GEOMETRY, "    by_tap_row = Divider(taps_w * channels);\n", ""),
    Mutation("padding: filters begin where they did", GEOMETRY, "first_r += taps.row, first_s", "first_s"),
    Mutation(
        "padding: filters of a class by 1", GEOMETRY, "first_s += taps.column * stride_w", "first_s += taps.column"
    ),
    Mutation("padding: the depth as before", GEOMETRY, "    pass.end = of.taps_h * of.taps_w * of.channels;\n", ""),
    Mutation(
        "padding: image by image",
        GEOMETRY,
        "if (of.together > 1) {",
        "if (pass.rows > 1) {",
    ),
    Mutation("padding: of the last tile alone", GEOMETRY, "first + count, pass.rows) - 1", "first + 1, pass.rows) - 1"),
    Mutation(
        "together: image of position 0", GEOMETRY, "group * together + rest - place * together", "group * together"
    ),
    Mutation(
        "together: groups of one", GEOMETRY, "by_group(pixels_h * pixels_w * together)", "by_group(pixels_h * pixels_w)"
    ),
    Mutation(
        "filters: no next row of taps", GEOMETRY, "step.place -= row_length(), step.index +=", "step.index += 0 *"
    ),
    Mutation(
        "filters: next row where columns are left out",
        GEOMETRY,
        "step.index += s * patches.channels - row_length();",
        "step.index += 0;",
    ),
    Mutation("advance: channels without a carry", GEOMETRY, "tap.channel -= channels, tap.column++;", "tap.column++;"),
    Mutation(
        "advance: no next column of taps",
        GEOMETRY,
        "tap.channel -= channels, tap.column++;",
        "tap.channel -= channels;",
    ),
    Mutation("advance: a column of taps too late", GEOMETRY, "tap.column >= taps_w", "tap.column > taps_w"),
    Mutation("advance: no rows of taps", GEOMETRY, ", tap.row += by.row;", ";"),
    Mutation("advance: no next row of pixels", GEOMETRY, "step_w * pixels_w, pixel.h += step_h;", "step_w * pixels_w;"),
    Mutation(
        "advance: padding added again",
        GEOMETRY,
        "pixel.h += by.h - first_h, pixel.image",
        "pixel.h += by.h, pixel.image",
    ),
    Mutation("advance: a row of pixels too late", GEOMETRY, "if (pixel.h >= first_h", "if (pixel.h > first_h"),
    Mutation("advance: always the same image", GEOMETRY, "pixel.image += height * width;", "pixel.image += 0;"),
    Mutation("patch: top and left swapped", GEOMETRY, "-g.top, -g.left", "-g.left, -g.top"),
    Mutation("patch: strides swapped", GEOMETRY, "first_h + step_h * at.row", "first_h + step_w * at.row"),
    Mutation("division: multiplier rounded down", GEOMETRY, "+ divisor - 1) / divisor", ") / divisor"),
    Mutation("division: shift off by one", GEOMETRY, "31 - __clz", "30 - __clz"),
    Mutation("element: a step too many", GEOMETRY, "if (d >= end) return -1;", "if (d > end) return -1;"),
    # -- slices, passes
    Mutation("im2col: last slice lost", IM2COL, "slice < slices;", "slice < slices - 1;"),
    Mutation("im2col: first slice twice", IM2COL, "slice = 1;", "slice = 0;"),
    Mutation("slices: every thread counts", LAST, "counts && atomicInc", "atomicInc"),
    Mutation(
        "slices: one counter for all tiles", SLICES, "counters + group * tiles + tile", "counters + group * tiles"
    ),
    Mutation("slices: one counter for all groups", SLICES, "counters + group * tiles + tile", "counters + tile"),
    Mutation("slices: groups of groups count with the same", SLICES, "    counters += groups * tiles;\n", ""),
    Mutation("slices: the last group is full", SLICES, "min(GROUP, count - group * GROUP)", "GROUP"),
    Mutation("slices: groups as far apart as slices", SLICES, "stride *= GROUP, number", "number"),
    Mutation("slices: groups are not added up", SLICES, "if (groups == 1) return true;", "return true;"),
    Mutation("slices: the first of a group twice", SLICES, "first = 1; first < members", "first = 0; first < members"),
    Mutation("slices: not all on their way", SLICES, "first += AHEAD) {", "first += AHEAD + 1) {"),
    Mutation("slices: beyond the group", SLICES, "if (first + i < members) sum", "sum"),
    Mutation("slices: backwards", SLICES, "sum = sum + values[i]", "sum = sum + values[AHEAD - 1 - i]"),
    Mutation("slices: the group's sum is lost", SLICES, "if (!whole) *at = sum;", ""),
    Mutation("slices: rows unguarded", SLICES, "row >= rows || ", ""),
    Mutation("slices: columns unguarded", SLICES, "whole && column + e < columns", "whole"),
    Mutation("slices: tiles overlap", SLICES, "(partial) + tile * FOURS", "(partial) + tile"),
    Mutation(
        "slices: its own sums are not complete", SLICES, "if (members == 1) __syncthreads();", "if (members == 1) {}"
    ),
    Mutation("slices: line sums are not added up", SLICES, "*at = sum_of(at, stride * slice, members);", ""),
    Mutation("slices: line sums of the first slice", SLICES, "line_sums + first * slice", "line_sums"),
    Mutation("bias: every tile", LINES, "turn = sharers(pass.summed) - 1;", "turn = 0;"),
    Mutation("bias: the first tile alone", LINES, "turn = sharers(pass.summed) - 1;", "turn = -1;"),
    Mutation("bias: no taps of x", LINES, "!meets_a_pixel_once(pass.b)", "true"),
    Mutation("bias: lines of A for x", LINES, "if (pass.summed == OF_GY) add", "if (true) add"),
    Mutation("bias: one part for all", LINES, "step + threadIdx.x / LINES", "step"),
    Mutation(
        "bias: waits for too many",
        LINES,
        "OF_GY ? gridDim.x : gridDim.y))) return",
        "OF_GY ? gridDim.x : gridDim.y) + 1)) return",
    ),
    Mutation(
        "bias: all taps of x",
        LINES,
        "!meets_a_pixel_once(pass.b)",
        "false",
        equivalent="the sums of other taps are not read; leaving them out saves time",
    ),
    Mutation("bias: steps overlap", LINES, "step < BK; step += PARTS", "step < BK - PARTS + 1; step++"),
    Mutation("bias: sums of slice 0 alone", LINES, "(blockIdx.z * gridDim.y + blockIdx.y)", "blockIdx.y"),
    Mutation("bias: parts lost", LINES, "part < THREADS; part", "part < LINES; part"),
    Mutation("bias: one sharer", LINES, "if (i < count)", "if (i < 1)"),
    Mutation("bias: others count, too", LINES, "  if (sharer(pass.summed) >= count) return;\n", ""),
    Mutation("bias: the first to come", LINES, "if (!last_block(", "if (last_block("),
    Mutation("bias: channels of the other array", PASSES, "? g.k : g.c", "? g.c : g.k"),
    Mutation("bias: rows of taps as columns", LINES, "(r * x.taps_w + s)", "(s * x.taps_w + r)"),
    Mutation("bias: lines of tile 0", LINES, "c / BM, c % BM", "0, c % BM"),
    Mutation("bias: columns of tile 0", LINES, "column / BN * gridDim.x, column % BN", "0, column % BN"),
    Mutation("bias: sharers' tiles as lines'", LINES, "c % BM, gridDim.x, count", "c % BM, 1, count"),
    Mutation("bias: its counter is the first tile's", PASSES, "counters + 1", "counters"),
    Mutation("slices: tiles of one slice", GEOMETRY, "(blockIdx.z * gridDim.y + blockIdx.y)", "blockIdx.y"),
    Mutation("slices: rows of the whole matrix", GEOMETRY, "pitch = tile_columns;", "pitch = columns;"),
    Mutation("passes: always class 0", PASSES, "pass(g, blockIdx.z);", "pass(g, 0);"),
    Mutation("passes: slices are not added up", PASSES, "partial ? partial : gw", "gw"),
    # -- tile
    Mutation("tile: vectors overlap", TILE, "v % (LINES / VECTOR) * VECTOR", "v % (LINES / VECTOR)"),
    Mutation("tile: lines of other vectors", TILE, "first.line + i * ROWS);", "first.line + (COUNT - 1 - i) * ROWS);"),
    Mutation("tile: all vectors at one step", TILE, "begin + first.step + i * ROWS", "begin + first.step"),
    Mutation("tile: a step too many", TILE, "first.step + below(i).step < left", "first.step + below(i).step <= left"),
    Mutation("tile: the end of the first vector", TILE, "first.step + below(i).step < left", "first.step < left"),
    Mutation("tile: steps do not advance", TILE, "operand.advance(step, tile);", "(void)step;"),
    Mutation("tile: rows one on another", TILE, "step * PITCH + line", "step * (LINES - 4) + line"),
    # -- 4: register tiles
    Mutation("registers: no first barrier", REGISTERS, FIRST_BARRIER, ""),
    Mutation("registers: no second barrier", REGISTERS, SECOND_BARRIER, ""),
    Mutation(
        "registers: a tile left out",
        REGISTERS,
        "  a_stage.load(a, pass.end - pass.begin);\n",
        "  a_stage.loader.next(0, [](int, int, bool) {});\n  a_stage.load(a, pass.end - pass.begin);\n",
    ),
    Mutation("registers: no zeros", REGISTERS, "inside ? from[index] : 0", "from[inside ? index : 0]"),
    Mutation(
        "registers: no vector of zeros",
        REGISTERS,
        "inside ? *reinterpret_cast<const float4*>(from + index) : make_float4(0, 0, 0, 0)",
        "*reinterpret_cast<const float4*>(from + (inside ? index : 0))",
    ),
    Mutation("registers: not transposed", REGISTERS, "tile[at.step + e][at.line] =", "tile[at.step][at.line + e] ="),
    Mutation("registers: groups of four overlap", REGISTERS, "i / 4 * 4 * threads", "i / 4 * 2 * threads"),
    Mutation(
        "registers: a row too many", REGISTERS, "if (row >= pass.rows) continue;", "if (row > pass.rows) continue;"
    ),
    Mutation("registers: a column too many", REGISTERS, "column < pass.columns", "column <= pass.columns"),
    # -- ring
    Mutation("ring: waits for one group too few", RING, "cp_async_wait<SLOTS - 2>", "cp_async_wait<SLOTS - 1>"),
    Mutation("ring: no barrier", RING, "    __syncthreads();              // so have", "    // so have"),
    Mutation("ring: wrong slot copied to", RING, "    free = slot;\n", ""),
    Mutation("ring: a slot too many", RING, "slot + 1 < SLOTS ? slot + 1 : 0", "slot + 1 <= SLOTS ? slot + 1 : 0"),
    Mutation("ring: slot still in use", RING, "copy(tile + SLOTS - 1, free);", "copy(tile + SLOTS - 1, slot);"),
    Mutation("ring: a tile left out at the end", RING, "copy(tile + SLOTS - 1, free);", "copy(tile + SLOTS, free);"),
    Mutation("ring: a tile too few ahead", RING, "tile < SLOTS - 1; tile++", "tile < SLOTS - 2; tile++"),
    Mutation(
        "ring: no empty groups at the end", RING, "    cp_async_commit();", "    if (tile < tiles) cp_async_commit();"
    ),
    Mutation("ring: no commit", RING, "    cp_async_commit();", "    //"),
    Mutation(
        "ring: no zeros",
        RING,
        "cp_async4(to, from + index, inside)",
        "cp_async4(to, from + (inside ? index : 0), true)",
    ),
    Mutation(
        "ring: no vector of zeros",
        RING,
        "cp_async16(to, from + index, inside)",
        "cp_async16(to, from + (inside ? index : 0), true)",
    ),
    Mutation(
        "ring: no short vector of zeros",
        RING,
        "cp_async8(to, from + index, inside)",
        "cp_async8(to, from + (inside ? index : 0), true)",
    ),
    Mutation("ring: last tile lost", RING, "ceil_div(end - begin, DEPTH)", "(end - begin) / DEPTH"),
    # -- 5: asynchronous copies
    Mutation("copies: one step four times", COPIES, "own_line<false>(i, t), step + s)", "own_line<false>(i, t), step)"),
    Mutation("copies: groups of four overlap", COPIES, "i / 4 * 64", "i / 4 * 32"),
    Mutation(
        "copies: rows as columns",
        COPIES,
        "read_lines<A, BM>(a_values, a_tile, step, ty)",
        "read_lines<A, BM>(a_values, a_tile, step, tx)",
    ),
    Mutation("copies: rows unguarded", COPIES, "if (row >= pass.rows) continue;", ""),
    # -- 6: tensor cores
    Mutation(
        "tensor: truncated, not rounded", TENSOR, "__float_as_uint(x + power_of_two * 0x1p-11f)", "__float_as_uint(x)"
    ),
    Mutation("tensor: a whole unit added", TENSOR, "power_of_two * 0x1p-11f", "power_of_two * 0x1p-10f"),
    Mutation("tensor: rounded upwards", TENSOR, "& 0xff800000", "& 0x7f800000"),
    Mutation(
        "tensor: a NaN overflows",
        TENSOR,
        "__float_as_uint(x + power_of_two * 0x1p-11f)",
        "__float_as_uint(x) + 0x1000 + 0 * __float_as_uint(power_of_two)",
    ),
    Mutation(
        "tensor: infinity becomes NaN",
        TENSOR,
        "x + power_of_two * 0x1p-11f",
        "x + (power_of_two * 0x1.002p0f - power_of_two)",
    ),
    Mutation(
        "tensor: matrices swapped in ldmatrix",
        TENSOR,
        "line + lane / 16 * 8 + lane % 8, lane / 8 % 2 * 4",
        "line + lane % 16, lane / 16 * 4",
    ),
    Mutation("tensor: groups swapped in ldmatrix", TENSOR, "values[i + 1][1] = both[3]", "values[i + 1][1] = both[2]"),
    Mutation(
        "tensor: fragment of A transposed",
        TENSOR,
        "{upper[0], lower[0], upper[1], lower[1]}",
        "{upper[0], upper[1], lower[0], lower[1]}",
    ),
    Mutation("tensor: the same steps twice", TENSOR, "step + half * 4", "step"),
    Mutation("tensor: groups of four overlap", TENSOR, "group / 4 * 32 + g * 4", "group / 4 * 16 + g * 4"),
    Mutation(
        "tensor: lines beside each other",
        TENSOR,
        "return along_depth ? group * 8 + g :",
        "return true ? group * 8 + g :",
    ),
    Mutation(
        "tensor: the same part by two warps",
        TENSOR,
        "warp_column = warp / WARPS_M * WARP_N",
        "warp_column = warp % WARPS_M * WARP_N",
    ),
    Mutation("tensor: half of the depth", TENSOR, "step < BK; step += 8", "step < BK / 2; step += 8"),
    # -- 7, 8: tensor cores, 16 bits
    Mutation("halves: bf16 truncated", PTX, "y = to_bf16(x);", "y.bits = __float_as_uint(x) >> 16;"),
    Mutation("halves: fp16 rounded away", PTX, "y = to_fp16(x);", "y = to_fp16(x * 1.0004f);"),
    Mutation("halves: bf16 taken for fp16", HALVES, "mma_m16n8k16_bf16(c, a, b)", "mma_m16n8k16_fp16(c, a, b)"),
    Mutation("halves: fp16 taken for bf16", HALVES, "mma_m16n8k16_fp16(c, a, b)", "mma_m16n8k16_bf16(c, a, b)"),
    Mutation("halves: no channels of zeros", ROUNDING, "if (channel + e < p.channels) values", "values"),
    Mutation("halves: no vectors of zeros", ROUNDING, "if (channel < p.channels) {", "{"),
    Mutation("halves: no rows of zeros", ROUNDING, "if (row < p.rows) {", "{"),
    Mutation("halves: rows as wide as padded", ROUNDING, "from + row * p.channels", "from + row * p.padded_channels"),
    Mutation("halves: neighbours swapped", ROUNDING, "pack(rounded[0], rounded[1])", "pack(rounded[1], rounded[0])"),
    Mutation("halves: pairs swapped", ROUNDING, "pack(rounded[2], rounded[3])", "pack(rounded[0], rounded[1])"),
    Mutation("halves: one thread too many", HALVES, "if (i < first_count)", "if (i <= first_count)"),
    Mutation("halves: second too long", HALVES, "i - first_count < second_count", "i - first_count <= second_count"),
    Mutation("halves: second one too far", HALVES, "<int>(i - first_count)", "<int>(i - first_count + 1)"),
    Mutation(
        "halves: matrices of A swapped",
        HALVES,
        "line + lane % 16, lane / 16 * 8",
        "line + lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8",
    ),
    Mutation(
        "halves: transposed matrices of A swapped",
        HALVES,
        "line + lane / 8 % 2 * 8, lane / 16 * 8 + lane % 8",
        "line + lane / 16 * 8, lane % 16",
    ),
    Mutation("halves: A not transposed", HALVES, "ldmatrix_x4_trans(fragments[i]", "ldmatrix_x4(fragments[i]"),
    Mutation(
        "halves: matrices of B swapped",
        HALVES,
        "line + lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8",
        "line + lane % 16, lane / 16 * 8",
    ),
    Mutation(
        "halves: transposed matrices of B swapped",
        HALVES,
        "line + lane / 16 * 8, lane % 16",
        "line + lane / 8 % 2 * 8, lane / 16 * 8 + lane % 8",
    ),
    Mutation("halves: B not transposed", HALVES, "ldmatrix_x4_trans(both", "ldmatrix_x4(both"),
    Mutation("halves: one block of B twice", HALVES, "fragments[j + 1][0] = both[2]", "fragments[j + 1][0] = both[0]"),
    Mutation("halves: half of the depth", HALVES, "step < BK; step += 16", "step < BK / 2; step += 16"),
    Mutation(
        "halves: the same part by two warps",
        HALVES,
        "warp_column = warp / WARPS_M * WARP_N",
        "warp_column = warp % WARPS_M * WARP_N",
    ),
    Mutation(
        "halves: padding written to y", PASSES_16, "pass.columns = channels;\n  product(pass, x", "product(pass, x"
    ),
    Mutation(
        "halves: padding written to gx", PASSES_16, "  pass.columns = channels;\n  if (blockIdx", "  if (blockIdx"
    ),
    Mutation("halves: sums of padded filters", PASSES_16, "if (c < channels) gw", "gw"),
    Mutation("halves: filters of zeros, too", PASSES_16, "counters + 1, filters, pass", "counters + 1, g.k, pass"),
    Mutation("halves: gw as wide as padded", PASSES_16, "+ tap) * channels + c", "+ tap) * g.c + c"),
    Mutation("halves: always class 0", PASSES_16, "pass(g, blockIdx.z);", "pass(g, 0);"),
    # -- 9, 10: products of warpgroups
    Mutation(
        "warpgroups: not swizzled", WARPGROUPS, "row * 64 + ((column / 8 ^ row % 8) * 8", "row * 64 + (column / 8 * 8"
    ),
    Mutation(
        "warpgroups: packed as if not swizzled",
        WARPGROUPS,
        "(i / 8 % 8 ^ row % 8) * 8 + i % 8",
        "i / 8 % 8 * 8 + i % 8",
    ),
    Mutation("warpgroups: swizzled by other rows", WARPGROUPS, "(column / 8 ^ row % 8)", "(column / 8 ^ row / 8)"),
    Mutation(
        "warpgroups: blocks overlap", WARPGROUPS, "return line / 64 * BLOCK + row", "return line / 64 * BLOCK / 2 + row"
    ),
    Mutation(
        "warpgroups: lines and steps swapped",
        WARPGROUPS,
        "const int row = by_lines ? step",
        "const int row = !by_lines ? step",
    ),
    Mutation(
        "warpgroups: packed in the other majorness", WARPGROUPS, "return by_lines ? Place", "return !by_lines ? Place"
    ),
    Mutation("warpgroups: steps as if by depth", WARPGROUPS, "(by_lines ? step * 64 : step)", "step"),
    Mutation("warpgroups: no distance of lines", WARPGROUPS, "by_lines ? BLOCK * 2 : 16,", "16,"),
    Mutation("warpgroups: stride of 4 rows", WARPGROUPS, ", 8 * 128);", ", 4 * 128);"),
    Mutation("warpgroups: one warpgroup's lines for all", WARPGROUPS, "warpgroup * 64, step),", "0, step),"),
    Mutation(
        "warpgroups: wrong majorness of A",
        WARPGROUPS,
        "<TileA::by_lines, TileB::by_lines>",
        "<1 - TileA::by_lines, TileB::by_lines>",
    ),
    Mutation(
        "warpgroups: wrong majorness of B",
        WARPGROUPS,
        "<TileA::by_lines, TileB::by_lines>",
        "<TileA::by_lines, 1 - TileB::by_lines>",
    ),
    Mutation(
        "warpgroups: ring not aligned",
        WARPGROUPS,
        "memory + (-shared_address(memory) & (ALIGNMENT - 1))",
        "memory + 0 * shared_address(memory)",
    ),
    Mutation("warpgroups: half of the depth", WARPGROUPS, "step < BK; step += 16", "step < BK / 2; step += 16"),
    Mutation(
        "warpgroups: no fence of the copies",
        WARPGROUPS,
        "    fence_proxy_async();          // and wgmma",
        "    // and wgmma",
    ),
    Mutation(
        "warpgroups: mbarriers not fenced",
        WARPGROUPS,
        "mbarrier_init(&full[slot], 1);\n    fence_proxy_async();",
        "mbarrier_init(&full[slot], 1);",
    ),
    Mutation("warpgroups: no barrier", WARPGROUPS, "    __syncthreads();              // so have", "    // so have"),
    Mutation(
        "warpgroups: waits for one group too few", WARPGROUPS, "cp_async_wait<STAGES - 3>", "cp_async_wait<STAGES - 2>"
    ),
    Mutation(
        "warpgroups: no wait for the TMA unit",
        WARPGROUPS,
        "    mbarrier_wait(&full[tile % STAGES], tile / STAGES % 2);\n",
        "",
    ),
    Mutation("warpgroups: always phase 0", WARPGROUPS, "tile / STAGES % 2);", "0);"),
    Mutation("warpgroups: the other phase", WARPGROUPS, "tile / STAGES % 2);", "1 - tile / STAGES % 2);"),
    Mutation(
        "warpgroups: too few bytes expected",
        SHARED_BY_WARPGROUPS,
        "mbarrier_arrive_expect(full, SIZE * sizeof(T))",
        "mbarrier_arrive_expect(full, SIZE)",
    ),
    Mutation(
        "warpgroups: half a tile copied",
        SHARED_BY_WARPGROUPS,
        "first + tile * pitch, SIZE * sizeof(T),",
        "first + tile * pitch, SIZE * sizeof(T) / 2,",
    ),
    Mutation("warpgroups: every thread copies", SHARED_BY_WARPGROUPS, "    if (threadIdx.x != 0) return;\n", ""),
    Mutation("warpgroups: slot still in use", WARPGROUPS, "copy(tile + STAGES - 2);", "copy(tile + STAGES - 1);"),
    Mutation("warpgroups: slot of products under way", WARPGROUPS, "wgmma_wait<1>(sums)", "wgmma_wait<2>(sums)"),
    Mutation("warpgroups: no wait in the loop", WARPGROUPS, "    wgmma_wait<1>(sums);", "    "),
    Mutation("warpgroups: no last wait", WARPGROUPS, "  wgmma_wait<0>(sums);\n", ""),
    Mutation("warpgroups: last wait too lax", WARPGROUPS, "  wgmma_wait<0>(sums);\n", "  wgmma_wait<1>(sums);\n"),
    Mutation("warpgroups: no fence of registers", WARPGROUPS, "    wgmma_fence(sums);\n", ""),
    Mutation("warpgroups: no commit", WARPGROUPS, "    wgmma_commit();\n", ""),
    Mutation(
        "warpgroups: no empty groups at the end",
        WARPGROUPS,
        "    cp_async_commit();",
        "    if (tile < tiles) cp_async_commit();",
    ),
    Mutation(
        "warpgroups: a tile too few ahead",
        WARPGROUPS,
        "tile < STAGES - 2; tile++) copy",
        "tile < STAGES - 3; tile++) copy",
    ),
    Mutation("warpgroups: copies behind the end", WARPGROUPS, "if (tile < tiles) {", "if (tile <= tiles) {"),
    Mutation(
        "warpgroups: last tile lost", WARPGROUPS, "ceil_div(pass.end - pass.begin, BK)", "(pass.end - pass.begin) / BK"
    ),
    Mutation("warpgroups: dense tiles of class 0", WARPGROUPS, "blockIdx.z * gridDim.y + blockIdx.y", "blockIdx.y"),
    Mutation("warpgroups: dense tiles without classes", WARPGROUPS, "gridDim.z * gridDim.y", "gridDim.y"),
    Mutation("warpgroups: every slice begins at 0", SHARED_BY_WARPGROUPS, "(first_depth * count + number)", "number"),
    Mutation(
        "warpgroups: classes before depth",
        WARPGROUPS,
        "choose(rest % packing.classes)",
        "choose(rest / packing.depth_tiles)",
    ),
    Mutation(
        "warpgroups: packed lines of tile 0", WARPGROUPS, "tile % packing.line_tiles * LINES + at.line", "at.line"
    ),
    Mutation("warpgroups: packed depth of tile 0", WARPGROUPS, "rest / packing.classes * BK + at.step", "at.step"),
    Mutation(
        "warpgroups: packed without zeros",
        WARPGROUPS,
        "else if (index >= 0) four = four_rounded(second, second_padding, index /",
        "else four = four_rounded(second, second_padding, max(index, 0) /",
    ),
    Mutation(
        "warpgroups: packed without zeros, 16 bits",
        WARPGROUPS,
        "if (index >= 0 && second_half) four = *reinterpret_cast<const uint2*>(second_half + index)",
        "if (second_half) four = *reinterpret_cast<const uint2*>(second_half + max(index, 0))",
    ),
    Mutation(
        "warpgroups: packed of one place, 16 bits", WARPGROUPS, "(second_half + index)", "(second_half + 0 * index)"
    ),
    Mutation(
        "warpgroups: packed beyond the depth",
        WARPGROUPS,
        "depth, pass.end);",
        "depth, depth + 1);",
    ),
    Mutation(
        "warpgroups: one thread too many packs",
        WARPGROUPS,
        "thread - rounded_fours < packed_fours",
        "thread - rounded_fours <= packed_fours",
    ),
    Mutation(
        "warpgroups: one thread too many rounds",
        WARPGROUPS,
        "if (thread < rounded_fours)",
        "if (thread <= rounded_fours)",
    ),
    Mutation("warpgroups: halves of C swapped", SHARED_BY_WARPGROUPS, "j * 4 + half * 2;", "j * 4 + 2 - half * 2;"),
    Mutation(
        "warpgroups: rows of warps swapped",
        SHARED_BY_WARPGROUPS,
        "warp * 16 + lane / 4 + half * 8",
        "warp * 8 + lane / 4 + half * 32",
    ),
    Mutation("warpgroups: rows unguarded", SHARED_BY_WARPGROUPS, "if (row >= pass.rows) continue;", ""),
    Mutation(
        "warpgroups: a pair too many", SHARED_BY_WARPGROUPS, "if (column < pass.columns)", "if (column <= pass.columns)"
    ),
    Mutation(
        "warpgroups: a column too many",
        SHARED_BY_WARPGROUPS,
        "if (column + e < pass.columns)",
        "if (column + e <= pass.columns)",
    ),
    Mutation("warpgroups: pairs of odd columns", SHARED_BY_WARPGROUPS, "pass.columns % 2 == 0;", "pass.columns > 1;"),
    Mutation("warpgroups: pairs down the columns", SHARED_BY_WARPGROUPS, "columns_apart == 1 && pass", "pass"),
    Mutation("warpgroups: columns side by side", SHARED_BY_WARPGROUPS, "(column + e) * columns_apart", "(column + e)"),
    Mutation(
        "warpgroups: bias of the row",
        SHARED_BY_WARPGROUPS,
        "two[1], bias, column + 1)",
        "two[1], bias, row % pass.columns)",
    ),
    Mutation(
        "warpgroups: one bias for two", SHARED_BY_WARPGROUPS, "two[1], bias, column + 1)", "two[1], bias, column)"
    ),
    # -- 11: TF32 by warpgroups
    Mutation(
        "warpgroups tf32: packed without rounding",
        WARPGROUPS_TF32,
        "__uint_as_float(to_tf32(from[index]))",
        "from[index]",
    ),
    Mutation(
        "warpgroups tf32: packed by the first class", WARPGROUPS_TF32, "choose(rest % packing.classes)", "choose(0)"
    ),
    Mutation(
        "warpgroups tf32: packed lines of tile 0",
        WARPGROUPS_TF32,
        "tile % packing.line_tiles * LINES + number",
        "number",
    ),
    Mutation("warpgroups tf32: packed lines of the first square", WARPGROUPS_TF32, "number % SQUARES * 32", "0"),
    Mutation("warpgroups tf32: packed depth of tile 0", WARPGROUPS_TF32, "rest / packing.classes * BK;", "0;"),
    Mutation(
        "warpgroups tf32: packed beyond the depth",
        WARPGROUPS_TF32,
        "depth + step, pass.end);",
        "depth + step, depth + step + 1);",
    ),
    Mutation(
        "warpgroups tf32: packed without zeros",
        WARPGROUPS_TF32,
        "index < 0 ? 0 : __uint_as_float(to_tf32(from[index]))",
        "__uint_as_float(to_tf32(from[max(index, 0)]))",
    ),
    Mutation(
        "warpgroups tf32: no barrier in the square",
        WARPGROUPS_TF32,
        "  }\n  __syncthreads();\n  const int line",
        "  }\n  const int line",
    ),
    Mutation(
        "warpgroups tf32: not transposed", WARPGROUPS_TF32, "square[step][line] = index", "square[line][step] = index"
    ),
    Mutation("warpgroups tf32: not swizzled", WARPGROUPS_TF32, "(thread % 8 ^ line % 8) * 4", "thread % 8 * 4"),
    Mutation(
        "warpgroups tf32: swizzled by other rows", WARPGROUPS_TF32, "(thread % 8 ^ line % 8)", "(thread % 8 ^ line / 4)"
    ),
    Mutation(
        "warpgroups tf32: fragments' rows swapped with steps",
        WARPGROUPS_TF32,
        "line + lane % 16, i * 8 + lane / 16 * 4",
        "line + lane % 8 + lane / 16 * 8, i * 8 + lane / 8 % 2 * 4",
    ),
    Mutation(
        "warpgroups tf32: rows 8 apart swapped",
        WARPGROUPS_TF32,
        "line + lane / 4 + e % 2 * 8, i * 8 + lane % 4 + e / 2 * 4",
        "line + lane / 4 + e / 2 * 8, i * 8 + lane % 4 + e % 2 * 4",
    ),
    Mutation(
        "warpgroups tf32: patches cut off",
        WARPGROUPS_TF32,
        "fragments[i][e] = to_tf32(__uint_as_float(fragments[i][e]))",
        "fragments[i][e] = fragments[i][e]",
    ),
    Mutation(
        "warpgroups tf32: rows of the first warpgroup",
        WARPGROUPS_TF32,
        "line = threadIdx.x / 32 * 16;",
        "line = threadIdx.x / 32 % 4 * 16;",
    ),
    Mutation(
        "warpgroups tf32: one set of fragments",
        WARPGROUPS_TF32,
        "step(tile + 1, fragments[1])",
        "step(tile + 1, fragments[0])",
    ),
    Mutation(
        "warpgroups tf32: last odd tile lost", WARPGROUPS_TF32, "  if (tiles % 2) step(tiles - 1, fragments[0]);\n", ""
    ),
    Mutation(
        "warpgroups tf32: ring not aligned",
        WARPGROUPS_TF32,
        "memory + (-shared_address(memory) & (ALIGNMENT - 1))",
        "memory + 0 * shared_address(memory)",
    ),
    Mutation(
        "warpgroups tf32: half of the depth",
        WARPGROUPS_TF32,
        "for (int i = 0; i < BK / 8; i++) wgmma",
        "for (int i = 0; i < BK / 16; i++) wgmma",
    ),
    Mutation("warpgroups tf32: steps too far apart", WARPGROUPS_TF32, "b + i * 32, 16", "b + i * 64, 16"),
    Mutation("warpgroups tf32: stride of 4 rows", WARPGROUPS_TF32, "16, 8 * 128)", "16, 4 * 128)"),
    Mutation(
        "warpgroups tf32: mbarriers not fenced",
        WARPGROUPS_TF32,
        "mbarrier_init(&full[slot], 1);\n    fence_proxy_async();",
        "mbarrier_init(&full[slot], 1);",
    ),
    Mutation(
        "warpgroups tf32: no barrier", WARPGROUPS_TF32, "    __syncthreads();              // so have", "    // so have"
    ),
    Mutation(
        "warpgroups tf32: waits for one group too few",
        WARPGROUPS_TF32,
        "cp_async_wait<STAGES - 3>",
        "cp_async_wait<STAGES - 2>",
    ),
    Mutation(
        "warpgroups tf32: no wait for the TMA unit",
        WARPGROUPS_TF32,
        "    mbarrier_wait(&full[tile % STAGES], tile / STAGES % 2);\n",
        "",
    ),
    Mutation("warpgroups tf32: always phase 0", WARPGROUPS_TF32, "tile / STAGES % 2);", "0);"),
    Mutation(
        "warpgroups tf32: slot still in use", WARPGROUPS_TF32, "copy(tile + STAGES - 2);", "copy(tile + STAGES - 1);"
    ),
    Mutation(
        "warpgroups tf32: slot of products under way", WARPGROUPS_TF32, "wgmma_wait<1>(sums)", "wgmma_wait<2>(sums)"
    ),
    Mutation("warpgroups tf32: no wait in the loop", WARPGROUPS_TF32, "    wgmma_wait<1>(sums);", "    "),
    Mutation("warpgroups tf32: no last wait", WARPGROUPS_TF32, "  wgmma_wait<0>(sums);\n", ""),
    Mutation("warpgroups tf32: no fence of registers", WARPGROUPS_TF32, "    wgmma_fence(sums, a);\n", ""),
    Mutation("warpgroups tf32: no commit", WARPGROUPS_TF32, "    wgmma_commit();\n", ""),
    Mutation(
        "warpgroups tf32: no empty groups at the end",
        WARPGROUPS_TF32,
        "    cp_async_commit();",
        "    if (tile < tiles) cp_async_commit();",
    ),
    Mutation(
        "warpgroups tf32: a tile too few ahead",
        WARPGROUPS_TF32,
        "tile < STAGES - 2; tile++) copy",
        "tile < STAGES - 3; tile++) copy",
    ),
    Mutation("warpgroups tf32: copies behind the end", WARPGROUPS_TF32, "if (tile < tiles) {", "if (tile <= tiles) {"),
    Mutation(
        "warpgroups tf32: filters of class 0",
        WARPGROUPS_TF32,
        "blockIdx.z * gridDim.y + blockIdx.y, gridDim.z * gridDim.y,",
        "blockIdx.y, gridDim.z * gridDim.y,",
    ),
    Mutation(
        "warpgroups tf32: gy of other filters",
        WARPGROUPS_TF32,
        "x, gy, blockIdx.y, gridDim.y,",
        "x, gy, blockIdx.x, gridDim.y,",
    ),
    Mutation(
        "warpgroups tf32: weight gradient not transposed",
        WARPGROUPS_TF32,
        "gridDim.y, pass.pitch, bias",
        "gridDim.y, 1, bias",
    ),
    Mutation(
        "warpgroups tf32: tiles of slices not transposed",
        SLICES,
        "TILE_ROWS = BN, TILE_COLUMNS = BM;",
        "TILE_ROWS = BM, TILE_COLUMNS = BN;",
    ),
    Mutation(
        "warpgroups tf32: tiles of slices by rows",
        SLICES,
        "tile_row() { return blockIdx.y; }",
        "tile_row() { return blockIdx.x; }",
    ),
    Mutation("warpgroups tf32: sums of all tiles in one", WARPGROUPS_TF32, "return origin + row; }", "return row; }"),
    # -- what tensor cores' tiles write, and leave for batch norm
    Mutation(
        "fragments: halves of C swapped",
        FRAGMENTS,
        "finish(sums[i][j][half * 2 + e]",
        "finish(sums[i][j][e * 2 + half]",
    ),
    Mutation("fragments: rows unguarded", FRAGMENTS, "if (row >= pass.rows) continue;", ""),
    Mutation("three columns: read outside", THREE, "if (inside) values = load", "values = load"),
    Mutation("three columns: one number of a vector", THREE, "widened(values.of[v])", "widened(values.of[0])"),
    Mutation("fragments: columns unguarded", FRAGMENTS, "if (second < columns) y[begin", "y[begin"),
    Mutation("fragments: bias of no column", FRAGMENTS, "if (columns[e] >= pass.columns) continue;", ""),
    Mutation(
        "output: neighbours swapped", OUTPUT, "rounded(first), rounded(second))", "rounded(second), rounded(first))"
    ),
    Mutation("output: columns unguarded, 16 bits", OUTPUT, "if (first < columns) write_pair", "write_pair"),
    Mutation("output: columns unguarded", OUTPUT, "if (second < columns) write", "write"),
    Mutation("output: moments of what is not rounded", OUTPUT, "y.halves ? to_float(rounded(value)) : value", "value"),
    Mutation("bias, 16 bits: channels of the other array", PASSES_16, "? filters : channels", "? channels : filters"),
    Mutation("bias, 16 bits: of a slice", PASSES_16, "pass.columns, line_sums,", "pass.columns, nullptr,"),
    Mutation(
        "bias, 16 bits: one step of gy",
        HALVES,
        "to_float(a_tile[Layout<A, BM, BK, HALF>::at(line, step)])",
        "to_float(a_tile[Layout<A, BM, BK, HALF>::at(line, 0)])",
    ),
    Mutation(
        "bias, 16 bits: one line of x",
        HALVES,
        "to_float(b_tile[Layout<B, BN, BK, HALF>::at(line, step)])",
        "to_float(b_tile[Layout<B, BN, BK, HALF>::at(0, step)])",
    ),
    Mutation("bias, 16 bits: not stored", HALVES, "  line_sums.store(pass);\n", ""),
    Mutation("moments: before the bias", FRAGMENTS, "sums[i][j][half * 2 + e] = stored(y, values[e]);", ";"),
    Mutation("moments: rows that are not there", FRAGMENTS, "if (row_of(group, lane / 4) < count) sum +=", "sum +="),
    Mutation(
        "moments: squares of rows that are not there",
        FRAGMENTS,
        "if (row_of(group, lane / 4) < count) square +=",
        "square +=",
    ),
    Mutation(
        "moments: nothing subtracted",
        FRAGMENTS,
        "first = __shfl_sync(FULL_WARP, values[0][j][e], lane % 4)",
        "first = 0",
    ),
    Mutation(
        "moments: each lane's own first value",
        FRAGMENTS,
        "__shfl_sync(FULL_WARP, values[0][j][e], lane % 4)",
        "values[0][j][e]",
    ),
    Mutation("moments: another column's first value", FRAGMENTS, "values[0][j][e], lane % 4)", "values[0][j][e], 0)"),
    Mutation("moments: half of the lanes", FRAGMENTS, "lanes < 32;", "lanes < 16;"),
    Mutation("moments: other columns' lanes", FRAGMENTS, "int lanes = 4;", "int lanes = 2;"),
    Mutation("moments: squares about the first value", FRAGMENTS, "- first - mean;", "- first;"),
    Mutation("moments: a mean of float", FRAGMENTS, "static_cast<double>(first) + mean", "first + mean"),
    Mutation("moments: every part is whole", FRAGMENTS, "1.0f / count", "1.0f / PART_ROWS"),
    Mutation("moments: one part a tile", FRAGMENTS, "first_row / PART_ROWS)", "first_row / BM)"),
    Mutation("moments: of parts that are not there", FRAGMENTS, "if (count <= 0) return;", "if (false) return;"),
    Mutation("moments: columns unguarded", FRAGMENTS, "lane < 4 && column < pass.columns", "lane < 4"),
    Mutation("moments: all classes in one place", WITH_MOMENTS, "static_cast<int>(blockIdx.z) * parts", "0"),
    Mutation("moments: of the first class alone", WITH_MOMENTS, "of_class(g, blockIdx.z)", "of_class(g, 0)"),
    Mutation(
        "moments: padded channels are written",
        WITH_MOMENTS,
        "  pass.columns = channels;\n  product(pass, x",
        "  product(pass, x",
    ),
    Mutation(
        "moments: padded channels of gx are written",
        WITH_MOMENTS,
        "  pass.columns = channels;\n  product(pass, gy",
        "  product(pass, gy",
    ),
    Mutation("ptx: descriptor without a swizzle", PTX, " | 1ull << 62;", ";"),
    Mutation(
        "ptx: lead and stride swapped",
        PTX,
        "encode(lead) << 16 | encode(stride) << 32",
        "encode(lead) << 32 | encode(stride) << 16",
    ),
    Mutation("ptx: address in bytes", PTX, "return encode(address) |", "return address |"),
]


def check(files: set[str]) -> None:
    """Every rung that uses a file: all tiles and passes on sizes that straddle tiles, in three orders of warps."""
    if GEOMETRY in files:
        check_division()
    if THREE in files:
        for name in ("forward", "input_grad"):
            for g in ladder.of_three_columns(name):
                if g.h * g.w * g.c * g.k < 100_000:
                    check_one(ladder.PASSES[name], g, ladder.THREE_COLUMNS, None)
    if TENSOR in files:
        for tile in (0, 1):
            ladder.test_what_is_rounded_to_tf32(tile)
    if files & {FRAGMENTS, WITH_MOMENTS}:
        check_moments()
    check_halves(files)
    rungs = {rung for file in files for rung in CONCERNED[file]}
    for rung, tile in ladder.EVERY_TILE:
        if rung not in rungs:
            continue
        for name, what in ladder.PASSES.items():
            for g in ladder.SIZES:
                if ladder.fits(name, g, rung, tile):
                    check_one(what, g, rung, tile)
            if GEOMETRY in files and name != "weight_grad":
                for g in ladder.SIZES[2:4]:
                    if ladder.fits(name, g, rung, tile):
                        ladder.check_elu(name, g, rung, tile, 1)
        if rung > 2 and files & {SLICES, LAST, PASSES, PASSES_16}:
            check_slices(rung, tile)
        if (rung, tile) in ladder.SUMMING and files & {SLICES, PASSES, LINES}:
            for g in ladder.biases(rung, tile):
                ladder.check_bias(g, rung, tile)


def check_halves(files: set[str]) -> None:
    """Operands, results and moments of 16 bits."""
    if THREE in files:
        for name in ("forward", "input_grad"):
            halves.test_three_columns_read_16_bits(name, "bf16")
    for rung, tile in halves.HALF_TILES:
        of_rung = {HALVES} if rung < 9 else {WARPGROUPS, SHARED_BY_WARPGROUPS}
        if not files & {OUTPUT, PASSES_16, *of_rung}:
            continue
        for name in ladder.PASSES:
            halves.test_convolutions(name, rung, tile)
            if rung < 9 and OUTPUT in files and name != "weight_grad":
                observed.test_moments_of_what_is_kept_in_16_bits(rung, tile, name)
        halves.test_a_nan_stays_in_its_filter(rung, tile)
        if rung < 9 and files & {HALVES, PASSES_16}:
            halves.test_the_bias_gradient_is_summed_along(rung, tile)


def check_one(what: ladder.Pass, g: ladder.Geometry, rung: int, tile: int | None) -> None:
    arrays = ladder.random_inputs(what, g)
    slope = 0.3 if len(arrays) == 3 and g.n != 1 else 1.0
    given = arrays if slope == 1 else [*arrays, slope]
    results = []
    for seed in (0, 1, 2):
        allocated: list[np.ndarray] = []
        conv2d_launch.empty = ladder.poisoned(allocated)
        with options(seed=seed):
            results.append(ladder.run(what, g, given, **ladder.forced(rung, tile)))
        for array in allocated:
            ladder.check_guards(array)
    precision = ladder.RUNGS[rung].precision if rung else "float32"
    ladder.assert_right(what, g, arrays, results[0], precision, slope)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
    ladder.check_nan_stays(what, g, rung, tile)
    # What is beside the operands is not even read: there, the process dies.
    ladder.run(what, g, [ladder.fenced(a) for a in arrays], **ladder.forced(rung, tile))


def check_moments() -> None:
    for rung, tile in observed.TILES:
        for name in ("forward", "input_grad"):
            for g in observed.suiting(name, rung, tile) if rung < 8 else []:
                observed.check_moments(name, g, rung, tile, 1000.0)
                observed.check_nan_stays(name, g, rung, tile)


def check_slices(rung: int, tile: int | None) -> None:
    """More slices than a group has, twice with the same counters."""
    what = ladder.PASSES["weight_grad"]
    for g in [ladder.deep(g, rung, tile) for g in ladder.DEEP]:
        if ladder.fits("weight_grad", g, rung, tile):
            arrays = ladder.random_inputs(what, g)
            results = []
            for seed in (0, 1, 2):
                allocated: list[np.ndarray] = []
                conv2d_launch.empty = ladder.poisoned(allocated)
                with options(seed=seed):
                    results.append(ladder.run(what, g, arrays, **ladder.forced(rung, tile), slices=33))
                for array in allocated:
                    ladder.check_guards(array)
            ladder.assert_right(what, g, arrays, results[0], ladder.RUNGS[rung].precision)
            for other in results[1:]:
                np.testing.assert_array_equal(results[0], other)


def check_division() -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        ladder.test_division_by_multiplication(Path(folder))
