"""Batch normalisation on CUDA devices: the host's side of batch_norm.cu."""

from typing import Any

import numpy as np

from minigan.backend import Array, address, array_module, contiguous
from minigan.block_counters import block_counters
from minigan.half import C_HALVES, aligned, is_half, real_dtype, widened
from minigan.kernel_launch import C_REALS, Macros, launch
from minigan.ops.moments import Known

TILE = 32  # channels of a block
BLOCKS = 512  # into about so many are large arrays cut, which is 4 for each multiprocessor of a large GPU
ROWS_OF_A_THREAD = 4  # the least, as many as batch_norm.cu has in flight
PARTS_OF_A_THREAD = 4  # likewise, of a convolution's output


class _Kernels:
    """The kernels of batch_norm.cu for x (groups x N, ..., C): a block has 32 channels and a chunk of a group's rows.

    How the rows are cut depends on the shape of a group alone, and so does what is added to what. y: or gy, None: as x.
    """

    def __init__(self, device: str, x: Array, groups: int, y: Array | None = None, *others: Array) -> None:
        self.device, self.xp, self.channels = device, array_module(device), x.shape[-1]
        y = x if y is None else y
        real = C_REALS[real_dtype(x)]
        self.macros: Macros = {"REAL": real}
        self.macros |= {name: C_HALVES.get(a.dtype, real) for name, a in (("X_TYPE", x), ("Y_TYPE", y))}
        self.groups, self.rows = groups, x.size // max(1, self.channels * groups)
        self.tiles = -(-self.channels // TILE)
        whole = self.channels % 4 == 0 and all(address(a) % 16 == 0 for a in (x, y, *others))
        self.vector = 4 if whole and real == "float" else 1
        self.cut(self.rows, ROWS_OF_A_THREAD * 8 * self.vector)

    def cut(self, rows: int, least: int) -> None:
        """Cuts what is summed over, rows of x or parts of it, into chunks of at least so many."""
        limit = max(1, BLOCKS // max(1, self.tiles))
        self.chunk_rows = max(least, -(-rows // limit))
        self.chunks = -(-rows // self.chunk_rows)

    def empty(self, *shape: int) -> Array:
        return self.xp.empty(shape, np.float64)

    def partial(self) -> Array:
        """For a sum over the rows of each chunk."""
        return self.empty(self.groups, self.chunks, self.channels)

    def __call__(self, kernel: str, *args: Any) -> None:
        if self.rows and self.channels:
            grid, block = (self.tiles, self.chunks, self.groups), (TILE // self.vector, 8 * self.vector)
            macros, sizes = {**self.macros, "VECTOR": self.vector}, (self.rows, self.channels, self.chunk_rows)
            launch("batch_norm.cu", kernel, grid, block, (*args, *sizes), device=self.device, macros=macros)

    def counting(self, kernel: str, before: Any, after: Any) -> None:
        """A launch that counts its blocks."""
        with block_counters(self.device, self.tiles) as finished:
            self(kernel, *before, finished, *after)


def statistics(
    device: str,
    x: Array,
    gamma: Array,
    epsilon: float,
    groups: int = 1,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.0,
) -> tuple[Array, ...]:
    x, gamma = contiguous(device, _aligned(x), gamma)
    running = running_mean, running_var, float(momentum)
    return _found(_Kernels(device, x, groups), "moments", (x, gamma), running, epsilon)


def combined(
    known: Known,
    device: str,
    x: Array,
    gamma: Array,
    epsilon: float,
    groups: int = 1,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.0,
) -> tuple[Array, ...]:
    """What `statistics` returns, from the moments of x's parts that its convolution has left."""
    parts, means, squares = known
    (gamma,) = contiguous(device, gamma)
    run = _Kernels(device, x, groups)
    members = parts.classes * parts.class_parts
    run.cut(members, PARTS_OF_A_THREAD * 8)
    sizes = {name: getattr(parts, name) for name in ("part_rows", "class_rows", "class_parts", "run")}
    running = running_mean, running_var, float(momentum)
    return _found(run, "combine_moments", (means, squares, sizes, gamma), running, epsilon, members)


def _found(run: _Kernels, kernel: str, given: Any, running: Any, epsilon: float, *sizes: int) -> tuple[Array, ...]:
    """The four arrays of `statistics`, by a kernel that makes them of what is given; running ones are updated."""
    found = tuple(run.empty(run.groups, run.channels) for _ in range(4))
    run.counting(kernel, (*given, run.partial(), run.partial()), (*found, *running, float(epsilon), *sizes))
    return found


def _aligned(x: Array) -> Array:
    """The kernels of 16 bits read four at once, always."""
    return aligned(x) if is_half(x) else x


def _result(device: str, x: Array, half: bool) -> Array:
    """Memory for y. half: of x's format, if x has 16 bits."""
    return array_module(device).empty(x.shape, x.dtype if half else real_dtype(x))


def normalize(
    device: str, x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0, half: bool = False
) -> Array:
    """average, scale (groups, C); beta (C,), or (groups, C)."""
    x, average, scale, beta = contiguous(device, _aligned(x), average, scale, beta)
    y = _result(device, x, half)
    args = x, average, scale, beta, y, float(slope), beta.ndim == 2
    _Kernels(device, x, len(average), y)("normalize", *args)
    return y


def normalize_given(
    device: str,
    x: Array,
    gamma: Array,
    beta: Array,
    mean: Array,
    variance: Array,
    epsilon: float,
    slope: float,
    half: bool = False,
) -> Array:
    x, *given = contiguous(device, _aligned(x), gamma, beta, mean, variance)
    y = _result(device, x, half)
    _Kernels(device, x, 1, y)("normalize_given", x, *given, y, float(epsilon), float(slope))
    return y


def gradients(
    device: str,
    x: Array,
    gamma: Array,
    average: Array,
    inverse: Array,
    gy: Array,
    beta: Array,
    slope: float = 1.0,
    given: bool = False,
) -> tuple[Array, ...]:
    gy = gy if gy.dtype == x.dtype else widened(device, gy)
    if is_half(x):
        gy = aligned(gy)
    x, gamma, average, inverse, gy, beta = contiguous(device, _aligned(x), gamma, average, inverse, gy, beta)
    new = array_module(device).empty if x.size else array_module(device).zeros  # sums of nothing
    gx, ggamma, gbeta = (new(a.shape, a.dtype) for a in (x, gamma, gamma))
    groups = len(average)
    run = _Kernels(device, x, groups, gy, gx)
    totals, coefficients = run.empty(2, groups, run.channels), run.empty(3, groups, run.channels)
    args = x, gy, gamma, average, inverse, None if slope == 1 else beta
    sums = ggamma, gbeta, totals, coefficients, float(slope), given
    run.counting("gradient_sums", (*args, run.partial(), run.partial()), sums)
    run("input_gradient", *args, coefficients, gx, float(slope))
    return gx, ggamma, gbeta, totals
