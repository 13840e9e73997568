"""What the passes of conv2d_cuda.py have in common: checks, memory, and the launches of a rung's kernels."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minigan.backend import PRECISIONS, Array, address, array_module, cuda_architecture, is_cuda, matmul_precision
from minigan.half import C_HALVES, HALF_DTYPES, aligned, is_half, real_dtype, widened
from minigan.kernel_launch import launch
from minigan.ops.conv2d_ladder import (
    C_TYPES,
    FOLDER,
    LARGEST,
    RUNGS,
    THREE_COLUMNS,
    Tile,
    choose_rung,
    padded,
    suits_three_columns,
)
from minigan.ops.geometry import Geometry

# geometry.cuh's NOWHERE lies beyond every padded image.
LARGEST_SIDE = 2**28

EMULATED_ARCHITECTURE = 90  # what the emulator has twins for
THREADS = 256  # of kernels with one thread an element


def architecture(device: str) -> int:
    """80 for sm_80; for the emulator, the newest one whose instructions it knows."""
    return cuda_architecture(device) if is_cuda(device) else EMULATED_ARCHITECTURE


def vector(array: Array, channels: int) -> int:
    """How many floats at once may be loaded from an array: 4 where no vector crosses a pixel and all are aligned."""
    return 4 if channels % 4 == 0 and address(array) % 16 == 0 else 1


def check_sizes(g: Geometry) -> None:
    """Refuses what the kernels cannot count."""
    for name, shape in (("input", g.x_shape), ("weight", g.w_shape), ("output", g.y_shape)):
        check_count(f"{name} {shape}", *shape)
    side = max((g.p - 1) * g.stride_h + g.r, (g.q - 1) * g.stride_w + g.s, g.h + g.top, g.w + g.left)
    if side > LARGEST_SIDE:
        raise ValueError(f"conv2d: expected a padded input of at most {LARGEST_SIDE} pixels a side, got {side}")


def check_count(what: str, *sizes: int) -> None:
    count = 1
    for size in sizes:
        count *= size
    if count > LARGEST:
        raise ValueError(f"conv2d: {what} has {count} elements, but the kernels count up to {LARGEST}; split the batch")


def check_array(what: str, array: Array, shape: tuple[int, ...], dtype: Any, half: bool = False) -> None:
    """half: whether it may have 16 bits instead of float32."""
    found = real_dtype(array) if half else array.dtype
    if array.shape != shape or found != dtype:
        raise ValueError(f"conv2d: {what}: expected {shape} {dtype}, got {array.shape} {found}")


def empty(device: str, shape: int | tuple[int, ...], dtype: Any) -> Array:
    return array_module(device).empty(shape, dtype)


def rung_for(g: Geometry, dtype: Any, device: str, precision: str | None, rung: int | None, what: str) -> int:
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


def widths(run: "Launcher", *operands: tuple[Array, int]) -> tuple[int, int]:
    """How many numbers at once may be loaded from two arrays of so many channels (`padded`, in 16 bits)."""
    a, b = ((4 if c <= 4 else 8) if RUNGS[run.rung].half else vector(array, c) for array, c in operands)
    return a, b


@dataclass(frozen=True)
class Launcher:
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
        elu: bool = False,
    ) -> None:
        macros: dict[str, str | int] = {}
        if tile is None or not tile.macros:
            macros["REAL"] = C_TYPES[str(self.dtype)]
        else:
            macros.update(tile.macros, VECTOR_A=vectors[0], VECTOR_B=vectors[1], **({"ELU": 1} if elu else {}))
        source = f"{FOLDER}/{RUNGS[self.rung].source}"
        launch(source, kernel, grid, block, args, device=self.device, macros=macros, shared_bytes=shared)

    def each_element(self, kernel: str, count: int, args: Any, tile: Tile | None = None, vectors: Any = (1, 1)) -> None:
        self(kernel, -(-count // THREADS), THREADS, args, tile, vectors)

    def three_columns(self, kernel: str, pixels: tuple[int, int, int], classes: int, args: Any) -> None:
        """pixels: images, rows, columns of the outputs, in the largest class."""
        n, rows, columns = pixels
        grid = n * -(-rows // 16) * -(-columns // 32), 1, classes
        source, a = f"{FOLDER}/three_columns.cu", args[0]
        macros = {"VECTOR_A": vector(a, a.shape[-1]), "A_TYPE": C_HALVES.get(a.dtype, "float")}
        launch(source, kernel, grid, 128, args, device=self.device, macros=macros)

    def empty(self, shape: int | tuple[int, ...], dtype: Any = None) -> Array:
        return empty(self.device, shape, self.dtype if dtype is None else dtype)

    def as_read(self, array: Array) -> Array:
        """The array as the rung's kernels read it: 16 bits only in its own format, and where they need no padding."""
        own = is_half(array) and (self.rung == THREE_COLUMNS or array.dtype == self.half_dtype)
        return aligned(array) if own and array.shape[-1] % 8 == 0 else widened(self.device, array)

    @property
    def half_dtype(self) -> np.dtype | None:
        """Of what the rung multiplies, if that has 16 bits."""
        return HALF_DTYPES.get(RUNGS[self.rung].precision) if self.rung in RUNGS else None

    def result(self, shape: tuple[int, ...], half: bool) -> Array:
        """Memory for what a pass computes. half: of 16 bits, if the rung multiplies such, and they need no padding."""
        return self.empty(shape, self.half_dtype if half and shape[-1] % 8 == 0 else None)

    def rounded(
        self, name: str, tile: Tile, vectors: Any, g: Geometry, dense_tiles: tuple[int, int, int], *operands: Any
    ) -> list[Array]:
        """Two operands, each with the shape that it is padded to and its Rounded or None, in 16 bits: as they lie.

        Those that have 16 bits already are themselves.

        Or, where the tile says so, the second one in as many whole tiles of the depth, classes and lines as
        `dense_tiles` counts; such tiles are one pass's own. g: with padded channels.
        """
        precision = RUNGS[self.rung].precision
        packed_size = int(np.prod(dense_tiles)) * (tile.bm if name == "weight_grad" else tile.bn) * tile.bk
        args: list[Any] = []
        copies: list[Array] = []
        threads = 0
        for (array, shape, kept), packed in zip(operands, (False, tile.packed), strict=True):
            known = {} if kept is None or packed else kept.copies
            half = is_half(array)
            copy = array if half and not packed else known.get((precision, shape))
            size = packed_size if packed else int(np.prod(shape))
            rows, padded_rows = (int(np.prod(s[:-1])) for s in (array.shape, shape))
            channels, padded_channels = array.shape[-1], shape[-1]
            padding = {"rows": rows, "channels": channels, "padded_channels": padded_channels}
            padding |= {"padded_rows": padded_rows if copy is None else 0, "vector": vector(array, channels)}
            if copy is None:
                check_count(f"an operand of {name} in 16 bits", size)
                copy = known[precision, shape] = self.empty(size, HALF_DTYPES[precision])
                halves = [array if half else None] if packed and name == "weight_grad" else []
                args += [None if half else array, *halves, copy, padding]
                threads += size // 4
            else:  # the kernel has no rows to round
                args += [None, None, padding]
            copies.append(copy)
        if threads:  # else there are no images, or both copies were there
            if tile.packed:
                self.each_element(f"prepare_{name}", threads, [*args, packing(dense_tiles), conv(g)], tile, vectors)
            else:
                self.each_element("round_operands", threads, args, tile, vectors)
        return copies

    def packed(
        self, name: str, tile: Tile, vectors: Any, g: Geometry, dense_tiles: tuple[int, int, int], operand: Array
    ) -> Array:
        """A pass's dense operand, rounded to TF32, in as many whole tiles of depth, classes and lines."""
        size = int(np.prod(dense_tiles)) * tile.bn * tile.bk
        check_count(f"an operand of {name} in tiles", size)
        array = self.empty(size)
        if size:  # no images and their gradients
            args = [operand, array, packing(dense_tiles), conv(g)]
            self(f"prepare_{name}", size // 1024, THREADS, args, tile, vectors)
        return array


def packing(dense_tiles: tuple[int, int, int]) -> dict[str, int]:
    """Of the dense operand's whole tiles: how many along the depth, of classes, and of lines."""
    return dict(zip(("depth_tiles", "classes", "line_tiles"), dense_tiles, strict=True))


def conv(g: Geometry, slope: float = 1.0) -> dict[str, Any]:
    """geometry.cuh's Conv."""
    return {**asdict(g), "slope": float(slope)}
