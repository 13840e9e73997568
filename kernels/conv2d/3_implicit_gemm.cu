// 3_implicit_gemm.cu: the matrix product of rung 2 without its matrix.
//
// Idea: while a block fills its tile in shared memory, it computes where each element of the patch matrix would have
//   come from, and reads it there ("implicit GEMM"; Chetlur et al., "cuDNN: efficient primitives for deep learning",
//   2014). geometry.cuh holds that arithmetic, for all three passes.
// Thread -> output: 256 threads make a tile of 16 x 16; thread t its row t / 16 and column t % 16.
// Shared memory: 2 * 16 * 17 * sizeof(REAL) = 2176 bytes in float.
// Input gradient: block z does parity class z (geometry.cuh, ParityClass): with stride t there are t x t classes, and
//   each is a convolution of stride 1 with its own part of the filters.
// Weight gradient: block z sums slice z of the pixels; the last block adds the slices up (slices.cuh). A bias's
//   gradient is summed along (line_sums.cuh).
// Next: for each multiplication a thread reads two numbers from shared memory, which is too slow by a factor. In rung 4
//   a thread makes many outputs, and uses what it has read for all of them.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"
#include "geometry.cuh"
#include "tile.cuh"

constexpr int BM = 16, BN = 16, BK = 16, THREADS = 256;
static_assert(BM * BK == THREADS && BN * BK == THREADS, "a thread loads one element of each tile");
static_assert(BM * BN == THREADS, "and makes one output");

#include "line_sums.cuh"

template <class Pass>
__device__ __forceinline__ void product(const Pass& pass, const REAL* a, const REAL* b, const REAL* bias, REAL* y) {
  __shared__ REAL a_tile[BM][BK + 1], b_tile[BN][BK + 1];  // + 1: rows begin in different banks
  const int row0 = blockIdx.x * BM, column0 = blockIdx.y * BN, t = threadIdx.x;
  // The element of each tile that this thread loads: its line stays, its step moves along the depth.
  const Place a_place = place<BM, BK, 1>(pass.a.along_depth, t), b_place = place<BN, BK, 1>(pass.b.along_depth, t);
  const auto a_line = pass.a.line(row0 + a_place.line);
  const auto b_line = pass.b.line(column0 + b_place.line);
  LineSums<Pass> line_sums(pass);
  REAL sum = 0;
  for (int d = pass.begin; d < pass.end; d += BK) {
    const int a_index = element(pass.a, a_line, d + a_place.step, pass.end);
    const int b_index = element(pass.b, b_line, d + b_place.step, pass.end);
    a_tile[a_place.line][a_place.step] = a_index < 0 ? 0 : a[a_index];
    b_tile[b_place.line][b_place.step] = b_index < 0 ? 0 : b[b_index];
    __syncthreads();  // the tiles are complete
    for (int i = 0; i < BK; i++) sum += a_tile[t / BN][i] * b_tile[t % BN][i];
    line_sums.add([&](int line, int step) { return a_tile[line][step]; },
                  [&](int line, int step) { return b_tile[line][step]; });
    __syncthreads();  // and may be overwritten
  }
  line_sums.store(pass);
  const int row = row0 + t / BN, column = column0 + t % BN;
  if (row < pass.rows && column < pass.columns) y[pass.output(row) + column] = pass.finish(sum, bias, column);
}

#include "passes.cuh"
