// 2_im2col.cu: patches copied into a matrix ("im2col"), then a matrix product in shared memory.
//
// Idea: with one row for each output pixel, holding the R S C values that the pixel reads, a convolution is one matrix
//   product (Chellapilla et al., "High performance convolutional neural networks for document processing", 2006). All
//   three passes use one `product` with other strides:
//     forward           im2col(x) -> columns;  y = columns w^T
//     weight gradient   im2col(x) -> columns;  gw = gy^T columns, cut into slices of pixels (split-K)
//     input gradient    columns = gy w;  col2im(columns) -> gx
// Thread -> output: im2col and col2im: thread i makes element i. product: a block of 16 x 16 threads makes a tile of
//   16 x 16, thread (threadIdx.x, threadIdx.y) its column threadIdx.x and row threadIdx.y.
// Shared memory: product 2 * 16 * 17 * sizeof(REAL) = 2176 bytes in float: each value read from global memory is used
//   16 times.
// Input gradient: no parity classes here. The product multiplies each pixel of gy with each tap once, so nothing is
//   wasted on zeros; col2im then adds up, for each input pixel, the taps of its parity. It gathers, without atomicAdd,
//   so is deterministic.
// Next: the matrix is R S / stride^2 times as large as x, and written and read once more. Rung 3 never makes it.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"
#include "geometry.cuh"

constexpr int TILE = 16;

// x (N, H, W, C) -> columns (N P Q, R S C).
extern "C" __global__ void __launch_bounds__(256) im2col(const REAL* x, REAL* columns, Conv g) {
  const int width = g.r * g.s * g.c;
  const long long i = grid_thread();
  if (i >= static_cast<long long>(g.n) * g.p * g.q * width) return;
  const int index = static_cast<int>(i);
  const int c = index % g.c, s = index / g.c % g.s, r = index % width / (g.s * g.c);
  const int row = index / width, q = row % g.q, p = row / g.q % g.p, n = row / g.q / g.p;
  const int h = p * g.stride_h - g.top + r, column = q * g.stride_w - g.left + s;
  const bool inside = h >= 0 && h < g.h && column >= 0 && column < g.w;
  columns[index] = inside ? x[((n * g.h + h) * g.w + column) * g.c + c] : 0;
}

// columns (N P Q, R S C), bias (C) or null -> gx (N, H, W, C).
extern "C" __global__ void __launch_bounds__(256) col2im(const REAL* columns, const REAL* bias, REAL* gx, Conv g) {
  const long long i = grid_thread();
  if (i >= static_cast<long long>(g.n) * g.h * g.w * g.c) return;
  const int index = static_cast<int>(i);
  const int c = index % g.c, column = index / g.c % g.w, h = index / g.c / g.w % g.h, n = index / g.c / g.w / g.h;
  REAL sum = bias ? bias[c] : 0;
  for (int r = (h + g.top) % g.stride_h; r < g.r; r += g.stride_h)
    for (int s = (column + g.left) % g.stride_w; s < g.s; s += g.stride_w) {
      const int p = (h + g.top - r) / g.stride_h, q = (column + g.left - s) / g.stride_w;
      if (p < 0 || p >= g.p || q < 0 || q >= g.q) continue;
      sum += columns[((((n * g.p + p) * g.q + q) * g.r + r) * g.s + s) * g.c + c];
    }
  gx[index] = leaky(sum, g.slope);
}

// y[row][column] = leaky of bias[column] + sum over d of a[row a_row + d a_step] b[column b_column + d b_step], for a slice of
// d: block z sums from z slice_depth on, into its own y. Grid: tiles of rows, tiles of columns, slices.
extern "C" __global__ void __launch_bounds__(TILE* TILE)
product(const REAL* a, const REAL* b, const REAL* bias, REAL* y, int rows, int columns, int depth, int slice_depth,
        int a_row, int a_step, int b_column, int b_step, double slope) {
  __shared__ REAL a_tile[TILE][TILE + 1], b_tile[TILE][TILE + 1];  // + 1: rows begin in different banks
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int row0 = blockIdx.x * TILE, column0 = blockIdx.y * TILE;
  const int begin = blockIdx.z * slice_depth, end = min(depth, begin + slice_depth);
  REAL sum = 0;
  for (int d = begin; d < end; d += TILE) {
    // Neighbouring threads read neighbours in memory: along the depth, or along the rows where those have stride 1.
    const int a_line = a_step == 1 ? ty : tx, a_d = a_step == 1 ? tx : ty;
    const int b_line = b_step == 1 ? ty : tx, b_d = b_step == 1 ? tx : ty;
    a_tile[a_line][a_d] = row0 + a_line < rows && d + a_d < end ? a[(row0 + a_line) * a_row + (d + a_d) * a_step] : 0;
    b_tile[b_line][b_d] =
        column0 + b_line < columns && d + b_d < end ? b[(column0 + b_line) * b_column + (d + b_d) * b_step] : 0;
    __syncthreads();  // the tiles are complete
    for (int i = 0; i < TILE; i++) sum += a_tile[ty][i] * b_tile[tx][i];
    __syncthreads();  // and may be overwritten
  }
  const int row = row0 + ty, column = column0 + tx;
  if (row < rows && column < columns)
    y[(static_cast<long long>(blockIdx.z) * rows + row) * columns + column] = Epilogue{slope}.finish(sum, bias, column);
}

// partial (slices, n) -> sums (n), added up in the order of the slices; one thread an element.
extern "C" __global__ void __launch_bounds__(256) sum_slices(const REAL* partial, REAL* sums, int slices, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  REAL sum = partial[i];
  for (int slice = 1; slice < slices; slice++) sum += partial[static_cast<long long>(slice) * n + i];
  sums[i] = sum;
}
