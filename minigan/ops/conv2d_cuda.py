"""The three convolution primitives on the GPU and on its emulator: the host side of kernels/conv2d, the ladder.

Each function chooses a rung, a tile and a grid, provides the workspace, and launches. geometry.cuh says how each pass
is a matrix product with rows, columns and a depth that is summed over.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from minigan.backend import Array, contiguous, matmul_precision, on_device
from minigan.block_counters import block_counters
from minigan.half import FLOAT32, is_half, real_dtype
from minigan.ops import conv2d_tune
from minigan.ops.conv2d_ladder import (
    RUNGS,
    THREE_COLUMNS,
    Tile,
    candidates,
    channels,
    choose_slices,
    choose_tile,
    counters_of,
    ends_with_elu,
    padded,
    parts_of,
    shared_bytes,
    tiles_of,
)
from minigan.ops.conv2d_launch import (
    Launcher,
    architecture,
    check_array,
    check_count,
    conv,
    rung_for,
    vector,
    widths,
)
from minigan.ops.conv2d_tune import Choice
from minigan.ops.elu import elu_forward
from minigan.ops.geometry import Geometry
from minigan.ops.moments import Moments
from minigan.ops.rounded import Copies

# What is summed beside a weight gradient, in the order of line_sums.cuh's numbers from 1 on; how many sums those are.
SUMMED: dict[str, Callable[[Geometry], int]] = {"gy": lambda g: g.k, "x": lambda g: g.c}


def forward(
    device: str,
    x: Array,
    w: Array,
    g: Geometry,
    bias: Array | None = None,
    slope: float = 1.0,
    copies: Copies = (None, None),
    half: bool = False,
    moments: Moments | None = None,
    elu: bool = False,
    *,
    precision: str | None = None,
    rung: int | None = None,
    tile: int | None = None,
) -> Array:
    """(N, H, W, C), (K, R, S, C) and optionally (K,) -> (N, P, Q, K).

    slope: of a LeakyReLU that the outputs go through; 1 is none. elu: it is an ELU, and slope its alpha. copies: of x
    and w in 16 bits, which other passes share. half: the result may have 16 bits, as x may. moments: those of the
    outputs are left there, if the kernel can; those that end with ELU cannot.
    precision: how operands may be rounded for tensor cores (set_matmul_precision); None: the one in force. rung, tile:
    force one (RUNGS); else the problem decides, or MINIGAN_AUTOTUNE.
    """
    if _tunes(device, x, g, rung, tile):
        way = _way("forward", forward, device, g, precision, (x, w, bias, slope), half, elu)
        rung, tile = way.rung, way.tile
    dtype = real_dtype(x)
    rung = rung_for(g, dtype, device, precision, rung, "forward")
    if elu and not ends_with_elu(rung):
        y = forward(device, x, w, g, bias, 1.0, copies, half, precision=precision, rung=rung, tile=tile)
        return elu_forward(device, y, slope)
    check_array("input", x, g.x_shape, dtype, half=True)
    check_array("weight", w, g.w_shape, dtype)
    if bias is not None:
        check_array("bias", bias, (g.k,), dtype)
    run = Launcher(device, rung, dtype)
    with on_device(device):
        x, w, bias = contiguous(device, run.as_read(x), w, bias)
        y = run.result(g.y_shape, half)
        rows, depth = g.n * g.p * g.q, g.r * g.s * g.c
        if y.size == 0:
            pass
        elif rung == THREE_COLUMNS:
            run.three_columns("conv2d_forward", (g.n, g.p, g.q), 1, [x, w, bias, y, conv(g, slope)])
        elif rung == 1:
            run.each_element("conv2d_forward", y.size, [x, w, bias, y, conv(g, slope)])
        elif rung == 2:
            _product(run, _im2col(run, x, g), w, bias, y, (rows, g.k, depth, depth), (depth, 1), (depth, 1), 1, slope)
        else:
            chosen, vectors = choose_tile(rung, rows, g.k, widths(run, (x, g.c), (w, g.c)), tile)
            grid, shared = tiles_of(rows, g.k, chosen), shared_bytes(chosen, True, True)
            args = [x, w, bias, y, conv(g, slope)]
            inner = padded(g) if RUNGS[rung].half else g
            w_tiles = -(-inner.r * inner.s * inner.c // chosen.bk), 1, grid[1]
            if RUNGS[rung].half:
                given = (x, inner.x_shape, copies[0]), (w, inner.w_shape, copies[1])
                operands = run.rounded("forward", chosen, vectors, inner, w_tiles, *given)
                args = [*operands, bias, *_either(y), conv(inner, slope), g.k]
            elif chosen.packed:
                args[1] = run.packed("forward", chosen, vectors, g, w_tiles, w)
            kernel, args = _observed(run, "forward", chosen, g, args, y, None if elu else moments)
            run(kernel, grid, chosen.threads, args, chosen, vectors, shared, elu)
    return y


def input_grad(
    device: str,
    gy: Array,
    w: Array,
    g: Geometry,
    bias: Array | None = None,
    slope: float = 1.0,
    copies: Copies = (None, None),
    half: bool = False,
    moments: Moments | None = None,
    elu: bool = False,
    *,
    precision: str | None = None,
    rung: int | None = None,
    tile: int | None = None,
) -> Array:
    """(N, P, Q, K), (K, R, S, C) and optionally (C,) -> (N, H, W, C): transposed convolution. Else as forward."""
    if _tunes(device, gy, g, rung, tile):
        way = _way("input_grad", input_grad, device, g, precision, (gy, w, bias, slope), half, elu)
        rung, tile = way.rung, way.tile
    dtype = real_dtype(gy)
    rung = rung_for(g, dtype, device, precision, rung, "input_grad")
    if elu and not ends_with_elu(rung):
        gx = input_grad(device, gy, w, g, bias, 1.0, copies, half, precision=precision, rung=rung, tile=tile)
        return elu_forward(device, gx, slope)
    check_array("output gradient", gy, g.y_shape, dtype, half=True)
    check_array("weight", w, g.w_shape, dtype)
    if bias is not None:
        check_array("bias", bias, (g.c,), dtype)
    run = Launcher(device, rung, dtype)
    with on_device(device):
        gy, w, bias = contiguous(device, run.as_read(gy), w, bias)
        gx = run.result(g.x_shape, half)
        if gx.size == 0:
            pass
        elif rung == THREE_COLUMNS:
            largest = g.n, -(-g.h // g.stride_h), -(-g.w // g.stride_w)
            args = [gy, w, bias, gx, conv(g, slope)]
            run.three_columns("conv2d_input_grad", largest, g.stride_h * g.stride_w, args)
        elif rung == 1:
            run.each_element("conv2d_input_grad", gx.size, [gy, w, bias, gx, conv(g, slope)])
        elif rung == 2:
            rows, taps = g.n * g.p * g.q, g.r * g.s * g.c
            check_count("im2col's matrix", rows, taps)
            columns = run.empty((rows, taps))
            _product(run, gy, w, None, columns, (rows, taps, g.k, g.k), (g.k, 1), (1, taps), 1)
            run.each_element("col2im", gx.size, [columns, bias, gx, conv(g, slope)])
        else:
            rows = g.n * -(-g.h // g.stride_h) * -(-g.w // g.stride_w)  # of the largest class
            chosen, vectors = choose_tile(rung, rows, g.c, widths(run, (gy, g.k), (w, g.c)), tile)
            grid = (*tiles_of(rows, g.c, chosen), g.stride_h * g.stride_w)
            shared = shared_bytes(chosen, True, False)
            args = [gy, w, bias, gx, conv(g, slope)]
            inner = padded(g) if RUNGS[rung].half else g
            depth = -(-g.r // g.stride_h) * -(-g.s // g.stride_w) * inner.k  # of the class with the most taps
            w_tiles = -(-depth // chosen.bk), grid[2], grid[1]
            if RUNGS[rung].half:
                given = (gy, inner.y_shape, copies[0]), (w, inner.w_shape, copies[1])
                operands = run.rounded("input_grad", chosen, vectors, inner, w_tiles, *given)
                args = [*operands, bias, *_either(gx), conv(inner, slope), g.c]
            elif chosen.packed:
                args[1] = run.packed("input_grad", chosen, vectors, g, w_tiles, w)
            kernel, args = _observed(run, "input_grad", chosen, g, args, gx, None if elu else moments)
            run(kernel, grid, chosen.threads, args, chosen, vectors, shared, elu)
    return gx


def weight_grad(
    device: str,
    x: Array,
    gy: Array,
    g: Geometry,
    copies: Copies = (None, None),
    *,
    precision: str | None = None,
    rung: int | None = None,
    tile: int | None = None,
    slices: int | None = None,
) -> Array:
    """(N, H, W, C), (N, P, Q, K) -> (K, R, S, C). Else as forward. The same inputs always give the same bits.

    slices: about how many the depth is cut into, if not as choose_slices says.
    """
    if _tunes(device, x, g, rung, tile):
        way = _way("weight_grad", weight_grad, device, g, precision, (x, gy))
        rung, tile, slices = way.rung, way.tile, way.slices
    return _weight_grad(device, x, gy, g, copies, None, precision, rung, tile, slices)[0]


def weight_and_bias_grad(
    device: str,
    x: Array,
    gy: Array,
    g: Geometry,
    of: str,
    copies: Copies = (None, None),
    *,
    precision: str | None = None,
    rung: int | None = None,
    tile: int | None = None,
    slices: int | None = None,
) -> tuple[Array, Array] | None:
    """weight_grad, and in the same launch the array `of`, "gy" or "x", summed over all pixels: (K,) or (C,).

    So it is read once less. None, and nothing is computed, where a rung cannot, where the array is rounded before the
    launch, and where not all pixels of x are met by the layer's taps.
    """
    if _tunes(device, x, g, rung, tile):
        way = _way("weight_grad", weight_grad, device, g, precision, (x, gy))
        rung, tile, slices = way.rung, way.tile, way.slices
    rung = rung_for(g, real_dtype(x), device, precision, rung, "weight_grad")
    every_pixel = (  # line_sums.cuh: pixel h is tap top + h % stride of output h / stride
        g.h <= g.p * g.stride_h and g.w <= g.q * g.stride_w and g.top + g.stride_h <= g.r and g.left + g.stride_w <= g.s
    )
    run, array = Launcher(device, rung, real_dtype(x)), x if of == "x" else gy
    as_it_is = array.dtype == run.half_dtype or not RUNGS[rung].half
    if not (RUNGS[rung].sums and as_it_is) or (of == "x" and not every_pixel):
        return None
    gw, gb = _weight_grad(device, x, gy, g, copies, of, precision, rung, tile, slices)
    return gw, gb


def _weight_grad(
    device: str,
    x: Array,
    gy: Array,
    g: Geometry,
    copies: Copies,
    summed: str | None,
    precision: str | None,
    rung: int | None,
    tile: int | None,
    slices: int | None,
) -> tuple[Array, Array | None]:
    dtype = real_dtype(x)
    rung = rung_for(g, dtype, device, precision, rung, "weight_grad")
    check_array("input", x, g.x_shape, dtype, half=True)
    check_array("output gradient", gy, g.y_shape, dtype, half=True)
    run = Launcher(device, rung, dtype)
    with on_device(device):
        x, gy = contiguous(device, run.as_read(x), run.as_read(gy))
        gw = run.empty(g.w_shape)
        gb = None if summed is None else run.empty((SUMMED[summed](g),))
        columns, depth = g.r * g.s * g.c, g.n * g.p * g.q
        if gw.size == 0:
            pass
        elif rung == 1:
            run.each_element("conv2d_weight_grad", gw.size, [x, gy, gw, conv(g)])
        elif rung == 2:
            patches, small = _im2col(run, x, g), RUNGS[2].tiles[0]

            grid = tiles_of(g.k, columns, small)
            slices, slice_depth = choose_slices(grid[0] * grid[1], depth, small.bk, gw.size, gw.itemsize, slices)
            partial = gw if slices == 1 else run.empty((slices, gw.size))
            sizes = g.k, columns, depth, slice_depth
            _product(run, gy, patches, None, partial, sizes, (1, g.k), (1, columns), slices)
            if slices > 1:
                run.each_element("sum_slices", gw.size, [partial, gw, slices, gw.size])
        else:
            inner = padded(g) if RUNGS[rung].half else g
            rows, columns = RUNGS[rung].weight_grad_sizes(inner)
            operands = RUNGS[rung].operands("weight_grad", (x, g.c), (gy, g.k))
            chosen, vectors = choose_tile(rung, rows, columns, widths(run, *operands), tile, depth)
            grid, shared = tiles_of(rows, columns, chosen), shared_bytes(chosen, False, False)
            gy_tiles = -(-depth // chosen.bk), 1, grid[1 if RUNGS[rung].transposed else 0]
            if RUNGS[rung].half:
                given = (x, inner.x_shape, copies[0]), (gy, inner.y_shape, copies[1])
                x, gy = run.rounded("weight_grad", chosen, vectors, inner, gy_tiles, *given)
            elif chosen.packed:
                gy = run.packed("weight_grad", chosen, vectors, g, gy_tiles, gy)
            tiles, size = grid[0] * grid[1], grid[0] * grid[1] * chosen.bm * chosen.bn
            slices, slice_depth = choose_slices(tiles, depth, chosen.bk, size, gw.itemsize, slices)
            partial = None if slices == 1 and inner == g else run.empty((slices, size))
            line_sums = None if gb is None else run.empty((slices, tiles * chosen.threads))
            number = 0 if summed is None else 1 + list(SUMMED).index(summed)
            padded_from = (g.k, g.c) if RUNGS[rung].half else ()
            with block_counters(device, counters_of(tiles, slices)) as count:
                args = [x, gy, gw, gb, partial, line_sums, count, conv(inner), *padded_from, slice_depth, number]
                run("conv2d_weight_grad", (*grid, slices), chosen.threads, args, chosen, vectors, shared)
    return gw, gb


def _either(y: Array) -> tuple[Array | None, Array | None]:
    """output.cuh's two pointers."""
    return (None, y) if is_half(y) else (y, None)


def _observed(
    run: Launcher, what: str, chosen: Tile, g: Geometry, args: list[Any], y: Array, moments: Moments | None
) -> tuple[str, list[Any]]:
    """The kernel of a pass, and its arguments: the one that leaves the moments of y where it can, if it shall.

    args: of the kernel that does not.
    """
    parts = None if moments is None else parts_of(chosen, g, what, moments.groups)
    if moments is None or parts is None:
        return f"conv2d_{what}", args
    count, channels = 5 if RUNGS[run.rung].half else 4, y.shape[-1]  # operands, bias, and one pointer to y or two
    means, squares = (run.empty((parts.count, channels), dtype) for dtype in (np.float64, np.float32))
    moments.leave(y, (parts, means, squares))
    return f"conv2d_{what}_moments", [*args[:count], means, squares, args[count], channels]


def _im2col(run: Launcher, x: Array, g: Geometry) -> Array:
    """(N, H, W, C) -> (N P Q, R S C)."""
    rows, width = g.n * g.p * g.q, g.r * g.s * g.c
    check_count("im2col's matrix", rows, width)
    columns = run.empty((rows, width))
    if columns.size:
        run.each_element("im2col", columns.size, [x, columns, conv(g)])
    return columns


def _product(
    run: Launcher,
    a: Array,
    b: Array,
    bias: Array | None,
    y: Array,
    sizes: tuple[int, int, int, int],
    a_strides: tuple[int, int],
    b_strides: tuple[int, int],
    slices: int,
    slope: float = 1.0,
) -> None:
    """Rung 2's product; sizes: rows, columns, depth, slice depth; strides: of a line, of a step of the depth."""
    small = RUNGS[2].tiles[0]
    grid = (*tiles_of(sizes[0], sizes[1], small), slices)
    run("product", grid, (small.bn, small.bm), [a, b, bias, y, *sizes, *a_strides, *b_strides, float(slope)])


def _way(
    what: str,
    run: Callable[..., Array],
    device: str,
    g: Geometry,
    precision: str | None,
    arrays: Any,
    half: bool = False,
    elu: bool = False,
) -> Choice:
    """The fastest of a pass's candidates, which are judged, and timed with all that they round and widen."""
    precision = matmul_precision(device) if precision is None else precision
    first, second = contiguous(device, *arrays[:2])
    a, b = channels(what, g)
    widths = vector(first, a), vector(second, b)
    ways = list(candidates(what, g, architecture(device), precision, widths))

    given = first, second, *arrays[2:]

    def compute(way: Choice, arrays: Any) -> Array:
        first, second, *rest = arrays
        more: dict[str, Any] = {} if way.slices is None else {"slices": way.slices}
        if half and arrays is given:  # judged are they in float32
            more["half"] = True
        if elu:
            more["elu"] = True
        return run(device, first, second, g, *rest, precision=precision, rung=way.rung, tile=way.tile, **more)

    sizes = " ".join(f"{name}{size}" for name, size in asdict(g).items())
    problem = f"{what} {precision} {sizes} vectors {widths[0]} {widths[1]}"
    if any(halves := (is_half(first), is_half(second), half)):
        problem += " 16 bits " + " ".join(str(int(one)) for one in halves)
    problem += " elu" if elu else ""
    return conv2d_tune.choose(device, problem, ways, compute, given)


def _tunes(device: str, first: Array, g: Geometry, rung: int | None, tile: int | None) -> bool:
    return rung is None and tile is None and conv2d_tune.enabled(device) and real_dtype(first) == FLOAT32 and g.n > 0
