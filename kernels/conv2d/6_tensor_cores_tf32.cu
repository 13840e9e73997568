// 6_tensor_cores_tf32.cu: the multiplications on tensor cores.
//
// Idea: mma.sync multiplies a 16 x 8 block of A by an 8 x 8 block of B for a whole warp in one instruction. Its inputs
//   are TF32: floats whose mantissa is rounded to 10 bits; products are exact and sums are float. Tiles come as in
//   rung 5.
// Thread -> output: a tile of BM x BN by 2 x BN / 32 warps, each of which makes BM / 2 x 32 outputs, in blocks of
//   16 x 8. Which lane holds which element of a block is mma.sync's rule (ptx.cuh): with g = lane / 4 and q = lane % 4,
//   rows g and g + 8, columns 2 q and 2 q + 1.
// Shared memory (dynamic): as in rung 5; with BK = 16 and 3 stages 30720 bytes at most for 64 x 64, with 4 stages 81920
//   for 128 x 128. Fragments along the depth are read by ldmatrix, which takes an 8 x 4 block of floats for an 8 x 8
//   one of 16 bits; those along the lines, one float at a time. The padding of the rows (tile.cuh, Layout) keeps both
//   free of bank conflicts.
// Input gradient: parity class blockIdx.z. Weight gradient: slice blockIdx.z. As in rung 3.
// Next: a TF32 number has 19 bits, but travels in 32. Rungs 7 and 8 have 16 of each. Rung 11 multiplies by warpgroups.
//
// variants: [{"BM": 64, "BN": 64, "BK": 16, "STAGES": 3, "VECTOR_A": [4, 1], "VECTOR_B": 1},
//            {"BM": 64, "BN": 64, "BK": 16, "STAGES": 3, "VECTOR_A": 4, "VECTOR_B": 4},
//            {"BM": 128, "BN": 128, "BK": 16, "STAGES": 4, "VECTOR_A": 4, "VECTOR_B": 4}]
// dynamic shared: conv2d_forward: STAGES * (BM * (BK + 4) + BN * (BK + 4)) * 4
// dynamic shared: conv2d_input_grad: STAGES * (BM * (BK + 4) + BK * (BN + 8)) * 4
// dynamic shared: conv2d_weight_grad: STAGES * (BK * (BM + 8) + BK * (BN + 8)) * 4
// requires: sm_80
#include "common.cuh"
#include "geometry.cuh"
#include "ptx.cuh"
#include "ring.cuh"

constexpr int WARP_M = BM / 2, WARP_N = 32, THREADS = 32 * 2 * (BN / WARP_N);
constexpr int TILES_M = WARP_M / 16, TILES_N = WARP_N / 8;  // blocks of 16 x 8 a warp
static_assert(WARP_M % 16 == 0 && BN % WARP_N == 0, "warps share the tile evenly, in whole blocks");
static_assert(BK % 8 == 0 && STAGES >= 2, "mma.sync takes 8 steps of the depth; one tile at least is on its way");

#include "line_sums.cuh"

// The fragments of A: TILES_M blocks of 16 lines from `line` on, 8 steps from `step` on, rounded to TF32.
template <class A>
__device__ __forceinline__ void read_a(unsigned (&fragments)[TILES_M][4], const float* tile, int line, int step) {
  using Tile = Layout<A, BM, BK>;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int i = 0; i < TILES_M; i++, line += 16) {
    if (A::along_depth) {
      // Lanes 0-7, 8-15, 16-23, 24-31 point to the rows of: lines 0-7, lines 8-15, and the same four steps on.
      ldmatrix_x4(fragments[i], tile + Tile::at(line + lane % 16, step + lane / 16 * 4));
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++)
        fragments[i][e] = __float_as_uint(tile[Tile::at(line + g + e % 2 * 8, step + q + e / 2 * 4)]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) fragments[i][e] = to_tf32(__uint_as_float(fragments[i][e]));
  }
}

// The fragments of B: TILES_N blocks of 8 lines from `line` on, 8 steps from `step` on, rounded to TF32.
template <class B>
__device__ __forceinline__ void read_b(unsigned (&fragments)[TILES_N][2], const float* tile, int line, int step) {
  using Tile = Layout<B, BN, BK>;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int j = 0; j < TILES_N; j++, line += 8) {
    if (B::along_depth) {
      ldmatrix_x2(fragments[j], tile + Tile::at(line + lane % 8, step + lane / 8 % 2 * 4));
    } else {
#pragma unroll
      for (int e = 0; e < 2; e++) fragments[j][e] = __float_as_uint(tile[Tile::at(line + g, step + q + e * 4)]);
    }
#pragma unroll
    for (int e = 0; e < 2; e++) fragments[j][e] = to_tf32(__uint_as_float(fragments[j][e]));
  }
}

template <class Pass>
__device__ __forceinline__ void product(const Pass& pass, const float* a, const float* b, const float* bias, float* y) {
  using A = decltype(pass.a);
  using B = decltype(pass.b);
  DYN_SHARED(float, ring);
  const int row0 = blockIdx.x * BM, column0 = blockIdx.y * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % 2 * WARP_M, warp_column = warp / 2 * WARP_N;  // where the warp's part of the tile begins
  const Copier<A, BM, BK, VECTOR_A, THREADS> copier_a(pass.a, row0);
  const Copier<B, BN, BK, VECTOR_B, THREADS> copier_b(pass.b, column0);
  float sums[TILES_M][TILES_N][4] = {};
  LineSums<Pass> line_sums(pass);
  auto multiply = [&](const float* a_tile, const float* b_tile) {
#pragma unroll
    for (int step = 0; step < BK; step += 8) {
      unsigned a_fragments[TILES_M][4], b_fragments[TILES_N][2];
      read_a<A>(a_fragments, a_tile, warp_row, step);
      read_b<B>(b_fragments, b_tile, warp_column, step);
#pragma unroll
      for (int i = 0; i < TILES_M; i++)
#pragma unroll
        for (int j = 0; j < TILES_N; j++) mma_m16n8k8_tf32(sums[i][j], a_fragments[i], b_fragments[j]);
    }
    line_sums.add([&](int line, int step) { return a_tile[Layout<A, BM, BK>::at(line, step)]; },
                  [&](int line, int step) { return b_tile[Layout<B, BN, BK>::at(line, step)]; });
  };
  for_each_tile<STAGES, BK>(ring, copier_a, copier_b, a, b, pass.begin, pass.end, multiply);
  line_sums.store(pass);
#pragma unroll
  for (int i = 0; i < TILES_M; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = row0 + warp_row + i * 16 + lane / 4 + half * 8;
      if (row >= pass.rows) continue;
      const int begin = pass.output(row);
#pragma unroll
      for (int j = 0; j < TILES_N; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int column = column0 + warp_column + j * 8 + lane % 4 * 2 + e;
          if (column < pass.columns) y[begin + column] = pass.finish(sums[i][j][half * 2 + e], bias, column);
        }
    }
}

#include "passes.cuh"
