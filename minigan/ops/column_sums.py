"""The sum over the rows of a matrix, for each column: a bias's gradient, the commonest sum by far."""

import math

import numpy as np

from minigan.backend import Array, address, array_module, dispatch
from minigan.block_counters import block_counters
from minigan.cpu import ELEMENTS_PER_THREAD, jit, parallel
from minigan.half import C_HALVES, FLOAT32, as_read, real_dtype
from minigan.kernel_launch import C_REALS, launch

# So many rows are added up as they are, in float32 perhaps; these sums are then added in float64.
ROWS = 64
# sums.cu: threads of a block. How many blocks are enough for any GPU, and rows that are worth a block.
THREADS, BLOCKS, LEAST_ROWS = 256, 256, 16


@jit
def _sum_rows_loop(start, stop, x, sums):  # type: ignore[no-untyped-def]
    """For chunks start ... stop - 1 of x (M, C): the sums over their rows."""
    for chunk in range(start, stop):
        total = sums[chunk]
        total[:] = 0
        for i in range(chunk * ROWS, min((chunk + 1) * ROWS, len(x))):
            for c in range(x.shape[1]):
                total[c] += x[i, c]


@jit
def _sum_chunks_loop(sums, over, total, y):  # type: ignore[no-untyped-def]
    """y (C,) = the sum of `sums` (chunks, C), added up in `total`, divided by `over`."""
    for chunk in range(len(sums)):
        for c in range(len(y)):
            total[c] += sums[chunk, c]
    for c in range(len(y)):
        y[c] = total[c] / over


def _column_sums_cpu(x: Array, over: float = 1.0) -> Array:
    if x.shape[1] == 1:
        return (x.sum(0, dtype=np.float64) / over).astype(x.dtype)
    sums, y = np.empty((-(-len(x) // ROWS), x.shape[1]), x.dtype), np.empty(x.shape[1], x.dtype)
    grain = max(1, ELEMENTS_PER_THREAD // (ROWS * x.shape[1]))
    parallel(_sum_rows_loop, len(sums), np.ascontiguousarray(x), sums, grain=grain)
    _sum_chunks_loop(sums, float(over), np.zeros(len(y)), y)
    return y


def _cut(x: Array) -> tuple[int, int]:
    """(numbers that a thread reads at once, rows of x that are read as one): see sums.cu."""
    channels = x.shape[1]
    for vector in (4, 1) if real_dtype(x) == FLOAT32 and address(x) % 16 == 0 and x.size % 4 == 0 else (1,):
        period = vector // math.gcd(channels, vector)  # so many rows are a whole number of vectors
        fold = THREADS * vector // channels // period * period
        if fold or channels % vector == 0:
            break
    return vector, max(fold, 1)


def _column_sums_cuda(device: str, x: Array, over: float = 1.0) -> Array:
    xp = array_module(device)
    (x,) = as_read(device, x)
    vector, fold = _cut(x)
    y, width = xp.empty(x.shape[1], real_dtype(x)), fold * x.shape[1]
    tiles, rows = -(-width // (THREADS * vector)), -(-len(x) // fold)
    chunk_rows = max(LEAST_ROWS, -(-rows // max(1, BLOCKS // tiles)))
    chunks = -(-rows // chunk_rows)
    partial = xp.empty((chunks, y.size), np.float64) if chunks > 1 else None
    macros = {"REAL": C_REALS[y.dtype], "VECTOR": vector, "X_TYPE": C_HALVES.get(x.dtype, C_REALS[y.dtype])}
    with block_counters(device, tiles) as counters:
        args = [x, partial, counters, y, float(over), x.size, width, y.size, chunk_rows]
        launch("sums.cu", "column_sums", (tiles, chunks), THREADS, args, device=device, macros=macros)
    return y


# column_sums(device, x, over): (M, C), with elements -> (C,), the sums divided by `over`. On a GPU x may have 16 bits,
# where C is a multiple of 4.
column_sums = dispatch(cpu=_column_sums_cpu, cuda=_column_sums_cuda)
