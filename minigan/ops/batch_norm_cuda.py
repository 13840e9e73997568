"""Batch normalisation on CUDA devices: the host's side of batch_norm.cu."""

from typing import Any

import numpy as np

from minigan.backend import Array, address, array_module, contiguous, matmul_precision
from minigan.block_counters import block_counters
from minigan.kernel_launch import C_REALS, Macros, launch
from minigan.ops.conv2d_ladder import HALF_DTYPES
from minigan.ops.moments import Known
from minigan.ops.rounded import Rounded

TILE = 32  # channels of a block
BLOCKS = 512  # into about so many are large arrays cut, which is 4 for each multiprocessor of a large GPU
ROWS_OF_A_THREAD = 4  # the least, as many as batch_norm.cu has in flight
PARTS_OF_A_THREAD = 4  # likewise, of a convolution's output


class _Kernels:
    """The kernels of batch_norm.cu for x (groups x N, ..., C): a block has 32 channels and a chunk of a group's rows.

    How the rows are cut depends on the shape of a group alone, and so does what is added to what.
    """

    def __init__(self, device: str, x: Array, groups: int, *others: Array) -> None:
        self.device, self.xp, self.dtype, self.channels = device, array_module(device), x.dtype, x.shape[-1]
        self.groups, self.rows = groups, x.size // max(1, self.channels * groups)
        self.tiles = -(-self.channels // TILE)
        whole = self.channels % 4 == 0 and all(address(a) % 16 == 0 for a in (x, *others))
        self.vector = 4 if whole and x.dtype == np.float32 else 1
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

    def __call__(self, kernel: str, *args: Any, **more: str) -> None:
        if self.rows and self.channels:
            grid, block = (self.tiles, self.chunks, self.groups), (TILE // self.vector, 8 * self.vector)
            macros: Macros = {"REAL": C_REALS[self.dtype], "VECTOR": self.vector, **more}
            sizes = self.rows, self.channels, self.chunk_rows
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
    x, gamma = contiguous(device, x, gamma)
    run = _Kernels(device, x, groups)
    found = tuple(run.empty(groups, run.channels) for _ in range(4))
    after = *found, running_mean, running_var, float(momentum), float(epsilon)
    run.counting("moments", (x, gamma, run.partial(), run.partial()), after)
    return found


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
    found = tuple(run.empty(groups, run.channels) for _ in range(4))
    sizes = {name: getattr(parts, name) for name in ("part_rows", "class_rows", "class_parts", "run")}
    after = *found, running_mean, running_var, float(momentum), float(epsilon), members
    run.counting("combine_moments", (means, squares, sizes, gamma, run.partial(), run.partial()), after)
    return found


def normalize(device: str, x: Array, average: Array, scale: Array, beta: Array, slope: float = 1.0) -> Array:
    """average, scale (groups, C); beta (C,), or (groups, C)."""
    x, average, scale, beta = contiguous(device, x, average, scale, beta)
    y = array_module(device).empty(x.shape, x.dtype)
    args = x, average, scale, beta, y, float(slope), beta.ndim == 2
    _Kernels(device, x, len(average), y)("normalize", *args)
    return y


def normalize_given(
    device: str, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float, slope: float
) -> Array:
    x, *given = contiguous(device, x, gamma, beta, mean, variance)
    y = array_module(device).empty(x.shape, x.dtype)
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
    rounded: Rounded | None = None,
) -> tuple[Array, ...]:
    """rounded: where a convolution, whose output x is, looks for gx in 16 bits."""
    x, gamma, average, inverse, gy, beta = contiguous(device, x, gamma, average, inverse, gy, beta)
    new = array_module(device).empty if x.size else array_module(device).zeros  # sums of nothing
    gx, ggamma, gbeta = (new(a.shape, a.dtype) for a in (x, gamma, gamma))
    groups, precision, copy = len(average), matmul_precision(device), None
    # Channels that convolutions would not pad.
    if rounded is not None and precision in HALF_DTYPES and x.dtype == np.float32 and x.shape[-1] % 8 == 0:
        copy = new(gx.shape, HALF_DTYPES[precision])
        rounded.leave(gx, precision, copy)
    run = _Kernels(device, x, groups, gy, gx, *([] if copy is None else [copy]))
    totals, coefficients = run.empty(2, groups, run.channels), run.empty(3, groups, run.channels)
    args = x, gy, gamma, average, inverse, None if slope == 1 else beta
    sums = ggamma, gbeta, totals, coefficients, float(slope), given
    run.counting("gradient_sums", (*args, run.partial(), run.partial()), sums)
    bits, more = (None, {}) if copy is None else (copy.view(np.uint16), {"HALF": precision})
    run("input_gradient", *args, coefficients, gx, bits, float(slope), **more)
    return gx, ggamma, gbeta, totals
