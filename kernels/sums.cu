// sums.cu: the sum over the rows of a matrix, for each column: what a bias gets as its gradient.
//
// Idea: a block adds up a chunk of rows, and the block that is done last adds up the chunks, in their order: one launch, and
//   the same bits each time. So that neighbouring threads read neighbouring numbers however few columns there are, a narrow
//   matrix is read as one with `fold` of its rows in each row, which is `fold * channels` wide; the sums of columns that are
//   the same column are added at the end. A thread adds up ROWS numbers as REAL; all else is double.
// Thread -> output: thread t has the VECTOR columns from VECTOR t on, of the block's tile of THREADS VECTOR columns.
//   Grid: tiles of columns, chunks of rows.
// Shared memory: 2 or 8 KiB, a double for each column of the tile.
//
// X_TYPE: how x lies in memory, REAL or 16 bits of it.
//
// variants: [{"REAL": "float", "VECTOR": [4, 1], "X_TYPE": "float"}, {"REAL": "double", "VECTOR": 1, "X_TYPE": "double"},
//            {"REAL": "float", "VECTOR": 4, "X_TYPE": ["bf16", "fp16"]}]
#include "common.cuh"
#include "last_block.cuh"
#include "stored.cuh"

#define THREADS 256
#define ROWS 64
#define TILE (THREADS * VECTOR)

// values (count) -> the sum of each `period`-th of them from c on, in their order.
__device__ __forceinline__ double every(const double* values, int c, int count, int period) {
  double sum = 0;
  for (int i = c; i < count; i += period) sum += values[i];
  return sum;
}

// x of n numbers, read as rows of `width` = fold * channels, with fold = 1 if there is more than one tile; VECTOR divides n
// and width, and x is aligned to as much. -> y (channels), the sums over `over`. partial (chunks, channels); counters (tiles): zeros, before and
// after.
extern "C" __global__ void __launch_bounds__(THREADS)
    column_sums(const X_TYPE* x, double* partial, unsigned* counters, REAL* y, double over, int n, int width,
                int channels, int chunk_rows) {
  __shared__ double values[TILE];
  const int tile0 = blockIdx.x * TILE, column = threadIdx.x * VECTOR;
  const int tile = min(width - tile0, TILE), columns = min(channels - tile0, TILE);
  const long long first = static_cast<long long>(blockIdx.y) * chunk_rows;
  // Of the chunk, for the last row may end before this column.
  const long long rows = column < tile ? min(ceil_div<long long>(n - tile0 - column, width) - first, 0ll + chunk_rows) : 0;
  double total[VECTOR] = {};
  for (int row = 0; row < rows; row += ROWS) {
    REAL sum[VECTOR] = {};
    const int end = static_cast<int>(min(rows, row + static_cast<long long>(ROWS)));
#pragma unroll 4
    for (int i = row; i < end; i++) {
      const auto xs = load<X_TYPE, VECTOR>(x + ((first + i) * width + tile0 + column));
#pragma unroll
      for (int j = 0; j < VECTOR; j++) sum[j] += widened(xs.of[j]);
    }
#pragma unroll
    for (int j = 0; j < VECTOR; j++) total[j] += sum[j];
  }
#pragma unroll
  for (int j = 0; j < VECTOR; j++) values[column + j] = total[j];
  __syncthreads();
  const bool alone = gridDim.y == 1;
  for (int c = threadIdx.x; c < columns; c += THREADS) {
    const double sum = every(values, c, tile, channels);
    if (alone)
      y[tile0 + c] = static_cast<REAL>(sum / over);
    else
      partial[blockIdx.y * static_cast<long long>(channels) + tile0 + c] = sum;
  }
  if (alone || !last_block(counters + blockIdx.x, gridDim.y)) return;
  // As many groups of chunks as there are threads for: thread t adds up a column's chunks t / columns, + groups, ...
  const int groups = max(1, THREADS / columns);
  for (int i = threadIdx.x; i < groups * columns; i += THREADS) {
    double sum = 0;
#pragma unroll 4
    for (int chunk = i / columns; chunk < gridDim.y; chunk += groups)
      sum += partial[chunk * static_cast<long long>(channels) + tile0 + i % columns];
    values[i] = sum;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < columns; c += THREADS)
    y[tile0 + c] = static_cast<REAL>(every(values, c, groups * columns, columns) / over);
}
