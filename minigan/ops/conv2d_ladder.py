"""The ladder of convolution kernels, kernels/conv2d: its rungs and their tiles, and which one a problem gets.

Decisions only, by sizes: conv2d_cuda.py launches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from minigan.block_counters import LIMIT
from minigan.half import HALF_DTYPES
from minigan.ops.conv2d_tune import Choice
from minigan.ops.geometry import Geometry
from minigan.ops.moments import Parts

T = TypeVar("T")

# The kernels count with int. This much is left for the last tile, which may reach beyond the end.
LARGEST = 2**31 - 1 - 4096
C_TYPES = {"float32": "float", "float64": "double"}

# The weight gradient is cut into slices until so many blocks are there, which keep any GPU of today busy; the number is
# a constant, so that results are the same on all of them.
BLOCKS = 256
# But a slice is at least so many tiles deep, and the workspace takes so many bytes at most.
SLICE_TILES = 4
WORKSPACE_BYTES = 256 << 20
# Images of so many pixels are computed together (geometry.cuh).
SMALL_IMAGE = 256
# Slices are added up by blocks that count each other (slices.cuh): by groups of GROUP.
GROUP = 16


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
    # Whether the dense operand is written in whole, swizzled tiles before the product (warpgroups.cuh).
    packed: bool = False
    # By how many rows it leaves the outputs' moments, where batch norm asks for them (fragments.cuh); 0: it cannot.
    part_rows: int = 0


@dataclass(frozen=True)
class Rung:
    source: str
    tiles: tuple[Tile, ...]  # the first is for all problems; the others for large and for narrow ones
    dtypes: tuple[str, ...] = ("float32",)
    architecture: int = 75
    newest: int | None = None  # the last architecture that has its instructions, where not all later ones do
    precision: str = "float32"
    # Whether the weight gradient is computed the other way round: rows are taps, columns filters (11_wgmma_tf32.cu).
    transposed: bool = False
    # Whether its weight gradient, which sees an operand as it is, sums it for a bias besides (line_sums.cuh).
    sums: bool = False
    # Whether its tiles may end with an ELU (geometry.cuh); behind the others it is a launch of its own.
    elu: bool = False

    def supports(self, arch: int) -> bool:
        return self.architecture <= arch <= (self.newest or arch)

    @property
    def architectures(self) -> str:
        return f"from sm_{self.architecture} on" if self.newest is None else f"on sm_{self.architecture} only"

    @property
    def half(self) -> bool:
        """Whether its operands are rounded to 16 bits, and padded, before it multiplies them."""
        return self.precision in HALF_DTYPES

    def weight_grad_sizes(self, g: Geometry) -> tuple[int, int]:
        """Rows and columns of the weight gradient's product. g: with padded channels, if it pads them."""
        filters, taps = g.k, g.r * g.s * g.c
        return (taps, filters) if self.transposed else (filters, taps)

    def operands(self, what: str, first: T, second: T) -> tuple[T, T]:
        """What belongs to a pass's two arrays, in the order of its operands A and B."""
        return (second, first) if what == "weight_grad" and not self.transposed else (first, second)


def _register_tile(bm: int, bn: int, bk: int, tm: int, tn: int, *vectors: tuple[int, int]) -> Tile:
    macros = {"BM": bm, "BN": bn, "BK": bk, "TM": tm, "TN": tn}
    return Tile(bm, bn, bk, (bm // tm) * (bn // tn), macros, vectors)


def _ring_tile(bm: int, bn: int, stages: int, threads: int, *vectors: tuple[int, int]) -> Tile:
    return Tile(bm, bn, 16, threads, {"BM": bm, "BN": bn, "BK": 16, "STAGES": stages}, vectors)


def _half_tile(half: str, bm: int, bn: int, stages: int, threads: int, *vectors: tuple[int, int]) -> Tile:
    macros: dict[str, int | str] = {"HALF": half, "BM": bm, "BN": bn, "BK": 32, "STAGES": stages}
    return Tile(bm, bn, 32, threads, macros, vectors, part_rows=bm // 2)


def _half_rung(half: str) -> Rung:
    every = ((8, 8), (8, 4), (4, 8), (4, 4))
    tiles = _half_tile(half, 64, 64, 3, 128, *every), _half_tile(half, 128, 128, 4, 128, (8, 8))
    return Rung("7_tensor_cores_16_bits.cu", tiles, architecture=80, precision=half, sums=True, elu=True)


def _warpgroup_rung(half: str) -> Rung:
    every = ((8, 8), (8, 4), (4, 8), (4, 4))
    tiles = []
    for bm, bn, vectors in ((64, 64, every), (128, 256, ((8, 8),)), (128, 128, ((8, 8),))):
        macros: dict[str, int | str] = {"HALF": half, "BM": bm, "BN": bn, "BK": 64, "STAGES": 4}
        tiles.append(Tile(bm, bn, 64, 2 * bm, macros, vectors, packed=True))
    return Rung("9_wgmma.cu", tuple(tiles), architecture=90, newest=90, precision=half)


def _warpgroup_tf32_tile(bm: int, bn: int, *vectors: tuple[int, int]) -> Tile:
    macros = {"BM": bm, "BN": bn, "BK": 32, "STAGES": 4}
    return Tile(bm, bn, 32, 2 * bm, macros, vectors, packed=True)


_ALL_VECTORS = ((4, 4), (4, 1), (1, 1))
_SMALL = Tile(16, 16, 16, 256)

RUNGS: dict[int, Rung] = {
    1: Rung("1_naive.cu", (), ("float32", "float64")),
    2: Rung("2_im2col.cu", (_SMALL,), ("float32", "float64")),
    3: Rung("3_implicit_gemm.cu", (_SMALL,), ("float32", "float64"), sums=True),
    4: Rung(
        "4_register_tiles.cu",
        (
            _register_tile(64, 64, 16, 4, 4, *_ALL_VECTORS),
            _register_tile(128, 128, 8, 8, 8, (4, 4)),
            _register_tile(128, 16, 16, 4, 4, (4, 1), (1, 1)),
        ),
        sums=True,
        elu=True,
    ),
    5: Rung(
        "5_async_copies.cu",
        (_ring_tile(64, 64, 3, 256, *_ALL_VECTORS), _ring_tile(128, 128, 3, 256, (4, 4))),
        architecture=80,
        sums=True,
        elu=True,
    ),
    6: Rung(
        "6_tensor_cores_tf32.cu",
        (
            replace(_ring_tile(64, 64, 3, 128, *_ALL_VECTORS), part_rows=32),
            replace(_ring_tile(128, 128, 4, 128, (4, 4)), part_rows=64),
        ),
        architecture=80,
        precision="tf32",
        sums=True,
        elu=True,
    ),
    # One source in two number formats.
    7: _half_rung("bf16"),
    8: _half_rung("fp16"),
    # For sm_90a. Nobody has measured these on a GPU, so choose_rung does not take them: by name only.
    9: _warpgroup_rung("bf16"),
    10: _warpgroup_rung("fp16"),
    11: Rung(
        "11_wgmma_tf32.cu",
        (
            _warpgroup_tf32_tile(64, 64, (4, 1), (1, 1)),
            _warpgroup_tf32_tile(128, 256, (4, 1)),
            _warpgroup_tf32_tile(128, 128, (4, 1)),
        ),
        architecture=90,
        newest=90,
        precision="tf32",
        transposed=True,
    ),
}

FOLDER = "conv2d"

# three_columns.cu, not a rung: see there. For the same bytes it computes 3 columns, where the ladder's narrowest tile
# has 16 (rung 4), or 64 (on tensor cores, whose peak rate is not 21 times that of the other units).
THREE_COLUMNS = 0


def ends_with_elu(rung: int) -> bool:
    """Whether a rung, or three_columns.cu, computes an ELU along."""
    return rung != THREE_COLUMNS and RUNGS[rung].elu


def suits_three_columns(what: str, g: Geometry) -> bool:
    """Whether three_columns.cu computes such a pass."""
    if what == "forward":
        return g.k <= 3 and g.stride_h == g.stride_w == 1 and max(g.r, g.s) <= 5
    return what == "input_grad" and g.c <= 3 and max(-(-g.r // g.stride_h), -(-g.s // g.stride_w)) <= 5


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
            return rung  # the first one: those of sm_90a are taken by name only
    if precision == "tf32" and arch >= 80:
        return 6  # only where the caller allows TF32
    # cp.async came with sm_80. Tiles of three columns (an image's gradient) are rung 4's: it has a narrow one.
    return 5 if arch >= 80 and min(g.c, g.k) > 16 else 4


def choose_tile(
    rung: int, rows: int, columns: int, vectors: tuple[int, int], tile: int | None = None, depth: int = 0
) -> tuple[Tile, Any]:
    """The tile of a rung for a product of this size, and the widest loads that it has among those allowed.

    tile: its number in RUNGS, to force one. depth: where slices of it may share a tile, as in weight gradients.
    """
    tiles = RUNGS[rung].tiles
    usable = [t for t in tiles if widest(t, vectors) is not None]
    if tile is not None:
        if tiles[tile] not in usable:
            raise ValueError(f"rung {rung}, tile {tile}: loads of {vectors} numbers are not enough for {tiles[tile]}")
        chosen = tiles[tile]
    else:
        # A larger tile reads less, if it leaves work for all of the GPU; a narrow one computes fewer columns in vain.
        def blocks(t: Tile) -> int:
            slices = -(-depth // t.bk) // SLICE_TILES if t.packed else 1  # wgmma needs large tiles most
            return -(-rows // t.bm) * -(-columns // t.bn) * max(1, slices)

        narrow = [t for t in usable if t.bn < tiles[0].bn and columns <= t.bn]
        large = [t for t in usable if t.bn > tiles[0].bn and blocks(t) >= BLOCKS and columns > t.bn // 2]
        chosen = (narrow or large or usable)[0]
    return chosen, widest(chosen, vectors)


def parts_of(tile: Tile, g: Geometry, what: str, groups: int) -> Parts | None:
    """The parts whose moments this tile leaves; None, and batch norm reads x, where it has none or they would not do.

    They would not where a part has rows of two groups: of images one after the other, if the rows of a group are no
    multiple of a part's, and of small ones (geometry.cuh, images_together), if its images are none; nor where the
    classes of a transposed convolution differ in size. No layer is too small: what is left has 12 bytes for 128 or 256.
    """
    classes, height, width, even = 1, g.p, g.q, True
    if what == "input_grad":
        classes, height, width = g.stride_h * g.stride_w, g.h // g.stride_h, g.w // g.stride_w
        even = g.h % g.stride_h == g.w % g.stride_w == 0
    if not tile.part_rows or not even or g.n % groups:
        return None
    images, pixels = g.n // groups, height * width
    rows = images * pixels
    together = images if pixels <= SMALL_IMAGE else rows  # rows of a group that are neighbours
    if groups > 1 and together % tile.part_rows:
        return None
    parts = -(-rows // tile.part_rows)
    return Parts(tile.part_rows, rows, parts, classes, groups, parts if groups == 1 else together // tile.part_rows)


def widest(tile: Tile, allowed: tuple[int, int]) -> tuple[int, int] | None:
    """The widest pair of a tile's vectors that does not exceed the allowed one."""
    return max((v for v in tile.vectors if v[0] <= allowed[0] and v[1] <= allowed[1]), default=None)


def choose_slices(
    tiles: int, depth: int, bk: int, outputs: int, itemsize: int, slices: int | None = None
) -> tuple[int, int]:
    """(slices, depth of each, whole tiles) of a weight gradient of so many tiles, by the problem's size alone.

    slices: about how many, if the memory suffices; else as many as keep a GPU busy.
    """
    steps = max(1, -(-depth // bk))
    affordable = min(WORKSPACE_BYTES // max(1, outputs * itemsize), LARGEST // max(1, outputs), 65535)
    affordable = max(1, min(affordable, LIMIT // tiles))  # a tile needs at most half as many counters as slices
    wanted = max(1, min(-(-BLOCKS // tiles), steps // SLICE_TILES, affordable))
    if slices is not None:
        wanted = max(1, min(slices, steps, affordable))
    slice_steps = -(-steps // wanted)
    return -(-steps // slice_steps), slice_steps * bk


def counters_of(tiles: int, slices: int) -> int:
    """How many counters a weight gradient needs: one for each tile and group, group of groups, and so on (slices.cuh).

    And one for a bias's gradient (line_sums.cuh).
    """
    count = 1
    while slices > 1:
        slices = -(-slices // GROUP)
        count += tiles * slices
    return count


def padded(g: Geometry) -> Geometry:
    """The geometry of operands in 16 bits: 8 numbers are loaded at once, 4 where there are no more channels."""
    c, k = (4 if channels <= 4 else -(-channels // 8) * 8 for channels in (g.c, g.k))
    return replace(g, c=c, k=k)


def shared_bytes(tile: Tile, a_along_depth: bool, b_along_depth: bool) -> int:
    """Dynamic shared memory of rungs from 5 on: tile.cuh's Layout for both operands, STAGES times.

    What wgmma reads there is swizzled instead of padded, and needs 1024 bytes more to begin at a multiple of that.
    """
    stages, half = tile.macros.get("STAGES", 0), "HALF" in tile.macros
    itemsize, numbers = 2 if half else 4, 0
    swizzled = tile.packed and half, tile.packed  # of A and B; in TF32, A is read by threads
    for lines, along_depth, dense in zip((tile.bm, tile.bn), (a_along_depth, b_along_depth), swizzled, strict=True):
        padding = 0 if dense else lines * (16 // itemsize) if along_depth else tile.bk * 8
        numbers += lines * tile.bk + padding
    return int(stages) * numbers * itemsize + (1024 if tile.packed else 0)


def tiles_of(rows: int, columns: int, tile: Tile) -> tuple[int, int]:
    """How many tiles a product has along its rows and its columns."""
    return -(-rows // tile.bm), -(-columns // tile.bn)


def channels(what: str, g: Geometry) -> tuple[int, int]:
    """Of a pass's two arrays; they are loaded along them."""
    return {"forward": (g.c, g.c), "input_grad": (g.k, g.c), "weight_grad": (g.c, g.k)}[what]


def candidates(what: str, g: Geometry, arch: int, precision: str, widths: tuple[int, int]) -> Iterator[Choice]:
    """The ways to compute a pass in float32 arrays that round its factors as `precision` does, or not at all.

    The default is the first. widths: how many floats at once may be loaded from the pass's two arrays.
    """
    default = choose_rung(g, "float32", arch, precision)
    yield Choice(THREE_COLUMNS if suits_three_columns(what, g) else default)
    for rung, spec in RUNGS.items():
        if rung < 4 or not spec.supports(arch) or spec.precision not in ("float32", precision):
            continue
        inner = padded(g) if spec.half else g
        first, second = (4 if c <= 4 else 8 for c in channels(what, g)) if spec.half else widths
        allowed = spec.operands(what, first, second)
        for number, tile in enumerate(spec.tiles):
            if widest(tile, allowed) is None:
                continue
            if what != "weight_grad":
                yield Choice(rung, number)
                continue
            (rows, columns), depth = spec.weight_grad_sizes(inner), g.n * g.p * g.q
            tiles = int(np.prod(tiles_of(rows, columns, tile)))
            usual, _ = choose_slices(tiles, depth, tile.bk, tiles * tile.bm * tile.bn, 4)
            for slices in sorted({max(1, usual // 4), max(1, usual // 2), usual, 2 * usual}):
                yield Choice(rung, number, slices)
