"""The three convolution primitives on the GPU and on its emulator: the host side of kernels/conv2d, the ladder.

Each function chooses a rung, a tile and a grid, provides the workspace, and launches. geometry.cuh says how each pass
is a matrix product with rows, columns and a depth that is summed over.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from minigan.backend import PRECISIONS, Array, array_module, cuda_architecture, is_cuda, matmul_precision, on_device
from minigan.kernel_launch import launch
from minigan.ops import conv2d_tune
from minigan.ops.conv2d_tune import Choice
from minigan.ops.geometry import Geometry

# The kernels count with int. This much is left for the last tile, which may reach beyond the end.
LARGEST = 2**31 - 1 - 4096
# geometry.cuh's NOWHERE lies beyond every padded image.
LARGEST_SIDE = 2**28

# The weight gradient is cut into slices until so many blocks are there, which keep any GPU of today busy; the number is
# a constant, so that results are the same on all of them.
BLOCKS = 256
# But a slice is at least so many tiles deep, and the workspace takes so many bytes at most.
SLICE_TILES = 4
WORKSPACE_BYTES = 256 << 20

EMULATED_ARCHITECTURE = 90  # what the emulator has twins for
THREADS = 256  # of kernels with one thread an element
C_TYPES = {"float32": "float", "float64": "double"}
HALF_DTYPES = {"bf16": np.dtype(np.uint16), "fp16": np.dtype(np.float16)}  # NumPy has no bf16: its bits


@dataclass(frozen=True)
class Tile:
    """What a block makes, bm x bn outputs with bk steps of the depth at a time, and the macros that say so."""

    bm: int
    bn: int
    bk: int
    threads: int
    macros: Mapping[str, int | str] = field(default_factory=dict)
    # (1, 1), (4, 1), (4, 4): how many numbers of operands A and B are loaded at once
    vectors: tuple[tuple[int, int], ...] = ((1, 1),)
    # Whether the dense operand is written in whole, swizzled tiles before the product (9_wgmma.cu).
    packed: bool = False


@dataclass(frozen=True)
class Rung:
    source: str
    tiles: tuple[Tile, ...]  # the first is for all problems; the others for large and for narrow ones
    dtypes: tuple[str, ...] = ("float32",)
    architecture: int = 75
    newest: int | None = None  # the last architecture that has its instructions, where not all later ones do
    precision: str = "float32"

    def supports(self, arch: int) -> bool:
        return self.architecture <= arch <= (self.newest or arch)

    @property
    def architectures(self) -> str:
        return f"from sm_{self.architecture} on" if self.newest is None else f"on sm_{self.architecture} only"

    @property
    def half(self) -> bool:
        """Whether its operands are rounded to 16 bits, and padded, before it multiplies them."""
        return self.precision in HALF_DTYPES


def _register_tile(bm: int, bn: int, bk: int, tm: int, tn: int, *vectors: tuple[int, int]) -> Tile:
    macros = {"BM": bm, "BN": bn, "BK": bk, "TM": tm, "TN": tn}
    return Tile(bm, bn, bk, (bm // tm) * (bn // tn), macros, vectors)


def _ring_tile(bm: int, bn: int, stages: int, threads: int, *vectors: tuple[int, int]) -> Tile:
    return Tile(bm, bn, 16, threads, {"BM": bm, "BN": bn, "BK": 16, "STAGES": stages}, vectors)


def _half_tile(half: str, bm: int, bn: int, stages: int, threads: int, *vectors: tuple[int, int]) -> Tile:
    return Tile(bm, bn, 32, threads, {"HALF": half, "BM": bm, "BN": bn, "BK": 32, "STAGES": stages}, vectors)


def _half_rung(half: str) -> Rung:
    every = ((8, 8), (8, 4), (4, 8), (4, 4))
    tiles = _half_tile(half, 64, 64, 3, 128, *every), _half_tile(half, 128, 128, 4, 256, (8, 8))
    return Rung("7_tensor_cores_16_bits.cu", tiles, architecture=80, precision=half)


def _warpgroup_rung(half: str) -> Rung:
    every = ((8, 8), (8, 4), (4, 8), (4, 4))
    tiles = []
    for size, vectors in ((64, every), (128, ((8, 8),))):
        macros: dict[str, int | str] = {"HALF": half, "BM": size, "BN": size, "BK": 64, "STAGES": 4}
        tiles.append(Tile(size, size, 64, 2 * size, macros, vectors, packed=True))
    return Rung("9_wgmma.cu", tuple(tiles), architecture=90, newest=90, precision=half)


_ALL_VECTORS = ((4, 4), (4, 1), (1, 1))
_SMALL = Tile(16, 16, 16, 256)

RUNGS: dict[int, Rung] = {
    1: Rung("1_naive.cu", (), ("float32", "float64")),
    2: Rung("2_im2col.cu", (_SMALL,), ("float32", "float64")),
    3: Rung("3_implicit_gemm.cu", (_SMALL,), ("float32", "float64")),
    4: Rung(
        "4_register_tiles.cu",
        (
            _register_tile(64, 64, 16, 4, 4, *_ALL_VECTORS),
            _register_tile(128, 128, 8, 8, 8, (4, 4)),
            _register_tile(128, 16, 16, 4, 4, (4, 1), (1, 1)),
        ),
    ),
    5: Rung(
        "5_async_copies.cu",
        (_ring_tile(64, 64, 3, 256, *_ALL_VECTORS), _ring_tile(128, 128, 3, 256, (4, 4))),
        architecture=80,
    ),
    6: Rung(
        "6_tensor_cores_tf32.cu",
        (_ring_tile(64, 64, 3, 128, *_ALL_VECTORS), _ring_tile(128, 128, 4, 256, (4, 4))),
        architecture=80,
        precision="tf32",
    ),
    # One source in two number formats.
    7: _half_rung("bf16"),
    8: _half_rung("fp16"),
    # The same again for sm_90a. Nobody has measured them on a GPU, so choose_rung does not take them: by name only.
    9: _warpgroup_rung("bf16"),
    10: _warpgroup_rung("fp16"),
}

FOLDER = "conv2d"

# three_columns.cu, not a rung: see there. For the same bytes it computes 3 columns, where the ladder's narrowest tile
# has 16 (rung 4), or 64 (on tensor cores, whose peak rate is not 21 times that of the other units).
THREE_COLUMNS = 0


def suits_three_columns(what: str, g: Geometry) -> bool:
    """Whether three_columns.cu computes such a pass."""
    if what == "forward":
        return g.k <= 3 and g.stride_h == g.stride_w == 1 and max(g.r, g.s) <= 5
    return what == "input_grad" and g.c <= 3 and max(-(-g.r // g.stride_h), -(-g.s // g.stride_w)) <= 5


# ---- choices --------------------------------------------------------------------------------------------------------


def architecture(device: str) -> int:
    """80 for sm_80; for the emulator, the newest one whose instructions it knows."""
    return cuda_architecture(device) if is_cuda(device) else EMULATED_ARCHITECTURE


def choose_rung(g: Geometry, dtype: str, arch: int, precision: str = "float32") -> int:
    """The rung for a problem on a GPU of this architecture (80 for sm_80)."""
    if dtype == "float64":
        return 3  # for gradient checks and references: shared memory, and nothing that is for float32 alone
    for rung, spec in RUNGS.items():
        if spec.half and spec.precision == precision:
            if not spec.supports(arch):
                raise ValueError(
                    f"conv2d: precision {precision!r} needs a GPU from sm_{spec.architecture} on, "
                    f"this is an sm_{arch}; set_matmul_precision('float32') works there"
                )
            return rung  # the first one: 9 and 10 are taken by name only
    if precision == "tf32" and arch >= 80:
        return 6  # only where the caller allows TF32
    # cp.async came with sm_80. Tiles of three columns (an image's gradient) are rung 4's: it has a narrow one.
    return 5 if arch >= 80 and min(g.c, g.k) > 16 else 4


def choose_tile(
    rung: int, rows: int, columns: int, vectors: tuple[int, int], tile: int | None = None
) -> tuple[Tile, Any]:
    """The tile of a rung for a product of this size, and the widest loads that it has among those allowed.

    tile: its number in RUNGS, to force one.
    """
    tiles = RUNGS[rung].tiles
    usable = [t for t in tiles if _widest(t, vectors) is not None]
    if tile is not None:
        if tiles[tile] not in usable:
            raise ValueError(f"rung {rung}, tile {tile}: loads of {vectors} numbers are not enough for {tiles[tile]}")
        chosen = tiles[tile]
    else:
        # A larger tile reads less, if it leaves work for all of the GPU; a narrow one computes fewer columns in vain.
        narrow = [t for t in usable if t.bn < tiles[0].bn and columns <= t.bn]
        large = [
            t
            for t in usable
            if t.bn > tiles[0].bn and -(-rows // t.bm) * -(-columns // t.bn) >= BLOCKS and columns > tiles[0].bn
        ]
        chosen = (narrow or large or usable)[0]
    return chosen, _widest(chosen, vectors)


def _widest(tile: Tile, allowed: tuple[int, int]) -> tuple[int, int] | None:
    """The widest pair of a tile's vectors that does not exceed the allowed one."""
    return max((v for v in tile.vectors if v[0] <= allowed[0] and v[1] <= allowed[1]), default=None)


def choose_slices(
    tiles: int, depth: int, bk: int, outputs: int, itemsize: int, slices: int | None = None
) -> tuple[int, int]:
    """(slices, depth of each, whole tiles) of a weight gradient of so many tiles, by the problem's size alone.

    slices: about how many, if the memory suffices; else as many as keep a GPU busy.
    """
    steps = max(1, -(-depth // bk))
    affordable = max(1, min(WORKSPACE_BYTES // max(1, outputs * itemsize), LARGEST // max(1, outputs), 65535))
    wanted = max(1, min(-(-BLOCKS // tiles), steps // SLICE_TILES, affordable))
    if slices is not None:
        wanted = max(1, min(slices, steps, affordable))
    slice_steps = -(-steps // wanted)
    return -(-steps // slice_steps), slice_steps * bk


def vector(array: Array, channels: int) -> int:
    """How many floats at once may be loaded from an array: 4 where no vector crosses a pixel and all are aligned."""
    address = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return 4 if channels % 4 == 0 and address % 16 == 0 else 1


def padded(g: Geometry) -> Geometry:
    """The geometry of operands in 16 bits: 8 numbers are loaded at once, 4 where there are no more channels."""
    c, k = (4 if channels <= 4 else -(-channels // 8) * 8 for channels in (g.c, g.k))
    return replace(g, c=c, k=k)


# ---- tuning ---------------------------------------------------------------------------------------------------------


def candidates(what: str, g: Geometry, arch: int, precision: str, widths: tuple[int, int]) -> Iterator[Choice]:
    """The ways to compute a pass in float32 arrays that round its factors as `precision` does, or not at all.

    The default is the first. widths: how many floats at once may be loaded from the two operands.
    """
    default = choose_rung(g, "float32", arch, precision)
    yield Choice(THREE_COLUMNS if suits_three_columns(what, g) else default)
    for rung, spec in RUNGS.items():
        if rung < 4 or not spec.supports(arch) or spec.precision not in ("float32", precision):
            continue
        inner = padded(g) if spec.half else g
        channels = {"forward": (g.c, g.c), "input_grad": (g.k, g.c), "weight_grad": (g.k, g.c)}[what]
        allowed = tuple(4 if c <= 4 else 8 for c in channels) if spec.half else widths
        for number, tile in enumerate(spec.tiles):
            if _widest(tile, (allowed[0], allowed[1])) is None:
                continue
            if what != "weight_grad":
                yield Choice(rung, number)
                continue
            rows, columns, depth = inner.k, inner.r * inner.s * inner.c, g.n * g.p * g.q
            tiles = int(np.prod(_tiles(rows, columns, tile)))
            usual, _ = choose_slices(tiles, depth, tile.bk, rows * columns, 4)
            for slices in sorted({max(1, usual // 4), max(1, usual // 2), usual, 2 * usual}):
                yield Choice(rung, number, slices)


def _tuned(what: str, run: Callable[..., Array], device: str, g: Geometry, precision: str | None, arrays: Any) -> Array:
    """A pass by the fastest of its candidates."""
    precision = matmul_precision(device) if precision is None else precision
    first, second = _contiguous(device, *arrays[:2])
    a, b = {"forward": (g.c, g.c), "input_grad": (g.k, g.c), "weight_grad": (g.k, g.c)}[what]
    swapped = what == "weight_grad"  # its operand A is gy, its second argument
    widths = vector(second if swapped else first, a), vector(first if swapped else second, b)
    ways = list(candidates(what, g, architecture(device), precision, widths))

    def compute(way: Choice) -> Array:
        split = {} if way.slices is None else {"slices": way.slices}
        return run(device, first, second, g, *arrays[2:], precision=precision, rung=way.rung, tile=way.tile, **split)

    sizes = " ".join(f"{name}{size}" for name, size in asdict(g).items())
    problem = f"{what} {precision} {sizes} vectors {widths[0]} {widths[1]}"
    return compute(conv2d_tune.choose(device, problem, ways, compute))


def _tunes(device: str, first: Array, g: Geometry, rung: int | None, tile: int | None) -> bool:
    return rung is None and tile is None and conv2d_tune.enabled(device) and first.dtype == np.float32 and g.n > 0


# ---- checks, memory -------------------------------------------------------------------------------------------------


def check_sizes(g: Geometry) -> None:
    """Refuses what the kernels cannot count."""
    for name, shape in (("input", g.x_shape), ("weight", g.w_shape), ("output", g.y_shape)):
        _check_count(f"{name} {shape}", *shape)
    side = max((g.p - 1) * g.stride_h + g.r, (g.q - 1) * g.stride_w + g.s, g.h + g.top, g.w + g.left)
    if side > LARGEST_SIDE:
        raise ValueError(f"conv2d: expected a padded input of at most {LARGEST_SIDE} pixels a side, got {side}")


def _check_count(what: str, *sizes: int) -> None:
    count = 1
    for size in sizes:
        count *= size
    if count > LARGEST:
        raise ValueError(f"conv2d: {what} has {count} elements, but the kernels count up to {LARGEST}; split the batch")


def _check_array(what: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"conv2d: {what}: expected {shape} {dtype}, got {array.shape} {array.dtype}")


def _empty(device: str, shape: int | tuple[int, ...], dtype: Any) -> Array:
    return array_module(device).empty(shape, dtype)


def _rung_for(g: Geometry, dtype: Any, device: str, precision: str | None, rung: int | None, what: str) -> int:
    precision = matmul_precision(device) if precision is None else precision
    if precision not in PRECISIONS:
        raise ValueError(f"conv2d: expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
    if str(dtype) not in C_TYPES:
        raise ValueError(f"conv2d: expected float32 or float64, got {dtype}")
    check_sizes(g)
    arch = architecture(device)
    suits = dtype == np.float32 and suits_three_columns(what, g)
    if rung == THREE_COLUMNS and not suits:
        raise ValueError(f"conv2d: three_columns.cu does not compute such a {what} pass in {dtype}: {g}")
    if rung == THREE_COLUMNS or (rung is None and suits):
        return THREE_COLUMNS
    if rung is None:
        rung = choose_rung(g, str(dtype), arch, precision)
    if rung not in RUNGS:
        raise ValueError(f"conv2d: there is no rung {rung}; there are {', '.join(map(str, RUNGS))}")
    if str(dtype) not in RUNGS[rung].dtypes or not RUNGS[rung].supports(arch):
        raise ValueError(
            f"conv2d: rung {rung} is for {' and '.join(RUNGS[rung].dtypes)} {RUNGS[rung].architectures}, "
            f"got {dtype} on sm_{arch}"
        )
    if RUNGS[rung].half:
        check_sizes(padded(g))
    return rung


def _widths(run: "_Launcher", *operands: tuple[Array, int]) -> tuple[int, int]:
    """How many numbers at once may be loaded from two arrays of so many channels (`padded`, in 16 bits)."""
    a, b = ((4 if c <= 4 else 8) if RUNGS[run.rung].half else vector(array, c) for array, c in operands)
    return a, b


# ---- launches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Launcher:
    """Launches the kernels of one rung."""

    device: str
    rung: int
    dtype: Any

    def __call__(
        self,
        kernel: str,
        grid: Any,
        block: Any,
        args: Any,
        tile: Tile | None = None,
        vectors: Any = (1, 1),
        shared: int = 0,
    ) -> None:
        macros: dict[str, str | int] = {}
        if tile is None or not tile.macros:
            macros["REAL"] = C_TYPES[str(self.dtype)]
        else:
            macros.update(tile.macros, VECTOR_A=vectors[0], VECTOR_B=vectors[1])
        source = f"{FOLDER}/{RUNGS[self.rung].source}"
        launch(source, kernel, grid, block, args, device=self.device, macros=macros, shared_bytes=shared)

    def each_element(self, kernel: str, count: int, args: Any, tile: Tile | None = None, vectors: Any = (1, 1)) -> None:
        self(kernel, -(-count // THREADS), THREADS, args, tile, vectors)

    def three_columns(self, kernel: str, pixels: tuple[int, int, int], classes: int, args: Any, width: int) -> None:
        """pixels: images, rows, columns of the outputs, in the largest class."""
        n, rows, columns = pixels
        grid = n * -(-rows // 16) * -(-columns // 32), 1, classes
        source, macros = f"{FOLDER}/three_columns.cu", {"VECTOR_A": width}
        launch(source, kernel, grid, 128, args, device=self.device, macros=macros)

    def empty(self, shape: int | tuple[int, ...], dtype: Any = None) -> Array:
        return _empty(self.device, shape, self.dtype if dtype is None else dtype)

    def rounded(
        self, name: str, tile: Tile, vectors: Any, g: Geometry, dense_tiles: tuple[int, int, int], *operands: Any
    ) -> list[Array]:
        """Two operands, each with the shape that it is padded to, in 16 bits: as they lie.

        Or, where the tile says so, the second one in as many whole tiles of the depth, classes and lines as
        `dense_tiles` counts. g: with padded channels.
        """
        first_shape, second_shape = (shape for _, shape in operands)
        args: list[Any] = []
        threads = 0
        packed = int(np.prod(dense_tiles)) * (tile.bm if name == "weight_grad" else tile.bn) * tile.bk
        sizes = [int(np.prod(first_shape)), packed if tile.packed else int(np.prod(second_shape))]
        for (array, shape), size in zip(operands, sizes, strict=True):
            _check_count(f"an operand of {name} in 16 bits", size)
            rows, padded_rows = (int(np.prod(s[:-1])) for s in (array.shape, shape))
            channels, padded_channels = array.shape[-1], shape[-1]
            padding = {"rows": rows, "channels": channels, "padded_rows": padded_rows}
            padding |= {"padded_channels": padded_channels, "vector": vector(array, channels)}
            args += [array, self.empty(size, HALF_DTYPES[RUNGS[self.rung].precision]), padding]
            threads += size // 4
        if threads:  # no images and their gradients
            if tile.packed:
                packing = dict(zip(("depth_tiles", "classes", "line_tiles"), dense_tiles, strict=True))
                self.each_element(f"prepare_{name}", threads, [*args, packing, _conv(g)], tile, vectors)
            else:
                self.each_element("round_operands", threads, args, tile, vectors)
        return [args[1], args[4]]


def _ring_bytes(tile: Tile, a_along_depth: bool, b_along_depth: bool) -> int:
    """Dynamic shared memory of rungs from 5 on: tile.cuh's Layout for both operands, STAGES times."""
    stages, itemsize = tile.macros.get("STAGES", 0), 2 if "HALF" in tile.macros else 4
    if tile.packed:  # swizzled instead of padded, and 1024 bytes to begin at a multiple of that
        return int(stages) * (tile.bm + tile.bn) * tile.bk * itemsize + 1024
    numbers = 0
    for lines, along_depth in ((tile.bm, a_along_depth), (tile.bn, b_along_depth)):
        numbers += lines * (tile.bk + 16 // itemsize) if along_depth else tile.bk * (lines + 8)
    return int(stages) * numbers * itemsize


def _summed(
    run: _Launcher,
    gw: Array,
    g: Geometry,
    grid: tuple[int, int],
    tile: Tile,
    vectors: Any,
    product: Callable[[Array, int, int], None],
    wanted: int | None = None,
) -> None:
    """product(partial sums, slices, depth of each), and their sum in the order of the slices in gw."""
    inner = padded(g) if RUNGS[run.rung].half else g  # what the product writes
    size = inner.k * inner.r * inner.s * inner.c
    slices, slice_depth = choose_slices(grid[0] * grid[1], g.n * g.p * g.q, tile.bk, size, gw.itemsize, wanted)
    if slices == 1 and inner == g:
        product(gw, 1, slice_depth)
        return
    partial = run.empty((slices, size))
    product(partial, slices, slice_depth)
    shape = [_conv(inner), g.c] if RUNGS[run.rung].half else []
    run.each_element("sum_slices", gw.size, [partial, gw, *shape, slices, gw.size], tile, vectors)


def _conv(g: Geometry, slope: float = 1.0) -> dict[str, Any]:
    """geometry.cuh's Conv."""
    return {**asdict(g), "slope": float(slope)}


def _tiles(rows: int, columns: int, tile: Tile) -> tuple[int, int]:
    return -(-rows // tile.bm), -(-columns // tile.bn)


def forward(
    device: str,
    x: Array,
    w: Array,
    g: Geometry,
    bias: Array | None = None,
    slope: float = 1.0,
    *,
    precision: str | None = None,
    rung: int | None = None,
    tile: int | None = None,
) -> Array:
    """(N, H, W, C), (K, R, S, C) and optionally (K,) -> (N, P, Q, K).

    slope: of a LeakyReLU that the outputs go through; 1 is none. precision: how operands may be rounded for tensor
    cores (set_matmul_precision); None: the one in force. rung, tile: force one (RUNGS); else the problem decides, or
    MINIGAN_AUTOTUNE.
    """
    if _tunes(device, x, g, rung, tile):
        return _tuned("forward", forward, device, g, precision, (x, w, bias, slope))
    rung = _rung_for(g, x.dtype, device, precision, rung, "forward")
    _check_array("input", x, g.x_shape, x.dtype)
    _check_array("weight", w, g.w_shape, x.dtype)
    if bias is not None:
        _check_array("bias", bias, (g.k,), x.dtype)
    run = _Launcher(device, rung, x.dtype)
    with on_device(device):
        x, w, bias = _contiguous(device, x, w, bias)
        y = run.empty(g.y_shape)
        rows, depth = g.n * g.p * g.q, g.r * g.s * g.c
        if y.size == 0:
            pass
        elif rung == THREE_COLUMNS:
            run.three_columns("conv2d_forward", (g.n, g.p, g.q), 1, [x, w, bias, y, _conv(g, slope)], vector(x, g.c))
        elif rung == 1:
            run.each_element("conv2d_forward", y.size, [x, w, bias, y, _conv(g, slope)])
        elif rung == 2:
            _product(run, _im2col(run, x, g), w, bias, y, (rows, g.k, depth, depth), (depth, 1), (depth, 1), 1, slope)
        else:
            chosen, vectors = choose_tile(rung, rows, g.k, _widths(run, (x, g.c), (w, g.c)), tile)
            grid, shared = _tiles(rows, g.k, chosen), _ring_bytes(chosen, True, True)
            args = [x, w, bias, y, _conv(g, slope)]
            if RUNGS[rung].half:
                inner = padded(g)
                w_tiles = -(-inner.r * inner.s * inner.c // chosen.bk), 1, grid[1]
                given = (x, inner.x_shape), (w, inner.w_shape)
                operands = run.rounded("forward", chosen, vectors, inner, w_tiles, *given)
                args = [*operands, bias, y, _conv(inner, slope), g.k]
            run("conv2d_forward", grid, chosen.threads, args, chosen, vectors, shared)
    return y


def input_grad(
    device: str,
    gy: Array,
    w: Array,
    g: Geometry,
    bias: Array | None = None,
    slope: float = 1.0,
    *,
    precision: str | None = None,
    rung: int | None = None,
    tile: int | None = None,
) -> Array:
    """(N, P, Q, K), (K, R, S, C) and optionally (C,) -> (N, H, W, C): transposed convolution. Else as forward."""
    if _tunes(device, gy, g, rung, tile):
        return _tuned("input_grad", input_grad, device, g, precision, (gy, w, bias, slope))
    rung = _rung_for(g, gy.dtype, device, precision, rung, "input_grad")
    _check_array("output gradient", gy, g.y_shape, gy.dtype)
    _check_array("weight", w, g.w_shape, gy.dtype)
    if bias is not None:
        _check_array("bias", bias, (g.c,), gy.dtype)
    run = _Launcher(device, rung, gy.dtype)
    with on_device(device):
        gy, w, bias = _contiguous(device, gy, w, bias)
        gx = run.empty(g.x_shape)
        if gx.size == 0:
            pass
        elif rung == THREE_COLUMNS:
            largest = g.n, -(-g.h // g.stride_h), -(-g.w // g.stride_w)
            args = [gy, w, bias, gx, _conv(g, slope)]
            run.three_columns("conv2d_input_grad", largest, g.stride_h * g.stride_w, args, vector(gy, g.k))
        elif rung == 1:
            run.each_element("conv2d_input_grad", gx.size, [gy, w, bias, gx, _conv(g, slope)])
        elif rung == 2:
            rows, taps = g.n * g.p * g.q, g.r * g.s * g.c
            _check_count("im2col's matrix", rows, taps)
            columns = run.empty((rows, taps))
            _product(run, gy, w, None, columns, (rows, taps, g.k, g.k), (g.k, 1), (1, taps), 1)
            run.each_element("col2im", gx.size, [columns, bias, gx, _conv(g, slope)])
        else:
            rows = g.n * -(-g.h // g.stride_h) * -(-g.w // g.stride_w)  # of the largest class
            chosen, vectors = choose_tile(rung, rows, g.c, _widths(run, (gy, g.k), (w, g.c)), tile)
            grid = (*_tiles(rows, g.c, chosen), g.stride_h * g.stride_w)
            shared = _ring_bytes(chosen, True, False)
            args = [gy, w, bias, gx, _conv(g, slope)]
            if RUNGS[rung].half:
                inner = padded(g)
                depth = -(-g.r // g.stride_h) * -(-g.s // g.stride_w) * inner.k  # of the class with the most taps
                w_tiles = -(-depth // chosen.bk), grid[2], grid[1]
                given = (gy, inner.y_shape), (w, inner.w_shape)
                operands = run.rounded("input_grad", chosen, vectors, inner, w_tiles, *given)
                args = [*operands, bias, gx, _conv(inner, slope), g.c]
            run("conv2d_input_grad", grid, chosen.threads, args, chosen, vectors, shared)
    return gx


def weight_grad(
    device: str,
    x: Array,
    gy: Array,
    g: Geometry,
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
        return _tuned("weight_grad", weight_grad, device, g, precision, (x, gy))
    rung = _rung_for(g, x.dtype, device, precision, rung, "weight_grad")
    _check_array("input", x, g.x_shape, x.dtype)
    _check_array("output gradient", gy, g.y_shape, x.dtype)
    run = _Launcher(device, rung, x.dtype)
    with on_device(device):
        x, gy, _ = _contiguous(device, x, gy, None)
        gw = run.empty(g.w_shape)
        columns, depth = g.r * g.s * g.c, g.n * g.p * g.q
        if gw.size == 0:
            pass
        elif rung == 1:
            run.each_element("conv2d_weight_grad", gw.size, [x, gy, gw, _conv(g)])
        elif rung == 2:
            patches, small = _im2col(run, x, g), RUNGS[2].tiles[0]

            def product(partial: Array, slices: int, slice_depth: int) -> None:
                sizes = g.k, columns, depth, slice_depth
                _product(run, gy, patches, None, partial, sizes, (1, g.k), (1, columns), slices)

            _summed(run, gw, g, _tiles(g.k, columns, small), small, (1, 1), product, slices)
        else:
            inner = padded(g) if RUNGS[rung].half else g
            rows, columns = inner.k, inner.r * inner.s * inner.c
            chosen, vectors = choose_tile(rung, rows, columns, _widths(run, (gy, g.k), (x, g.c)), tile)
            grid, shared = _tiles(rows, columns, chosen), _ring_bytes(chosen, False, False)
            if RUNGS[rung].half:
                gy_tiles = -(-depth // chosen.bk), 1, grid[0]
                given = (x, inner.x_shape), (gy, inner.y_shape)
                x, gy = run.rounded("weight_grad", chosen, vectors, inner, gy_tiles, *given)

            def product(partial: Array, slices: int, slice_depth: int) -> None:
                args = [x, gy, partial, _conv(inner), slice_depth]
                run("conv2d_weight_grad", (*grid, slices), chosen.threads, args, chosen, vectors, shared)

            _summed(run, gw, g, grid, chosen, vectors, product, slices)
    return gw


def _contiguous(device: str, *arrays: Array | None) -> list[Array]:
    xp = array_module(device)
    return [None if array is None else xp.ascontiguousarray(array) for array in arrays]


def _im2col(run: _Launcher, x: Array, g: Geometry) -> Array:
    """(N, H, W, C) -> (N P Q, R S C)."""
    rows, width = g.n * g.p * g.q, g.r * g.s * g.c
    _check_count("im2col's matrix", rows, width)
    columns = run.empty((rows, width))
    if columns.size:
        run.each_element("im2col", columns.size, [x, columns, _conv(g)])
    return columns


def _product(
    run: _Launcher,
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
    grid = (*_tiles(sizes[0], sizes[1], small), slices)
    run("product", grid, (small.bn, small.bm), [a, b, bias, y, *sizes, *a_strides, *b_strides, float(slope)])
