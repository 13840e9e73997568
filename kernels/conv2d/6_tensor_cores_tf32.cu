// 6_tensor_cores_tf32.cu: the multiplications on tensor cores.
//
// Idea: mma.sync multiplies a 16 x 8 block of A by an 8 x 8 block of B for a whole warp in one instruction. Its inputs
//   are TF32: floats whose mantissa is rounded to 10 bits; products are exact and sums are float. Tiles come as in
//   rung 5.
// Thread -> output: a tile of BM x BN by 2 x 2 warps, each of which makes a quarter, 64 x 64 or 32 x 32 outputs, in blocks
//   of 16 x 8. The larger the quarter, the fewer reads of shared memory for a product. Which lane holds which element of
//   a block is mma.sync's rule (ptx.cuh): with g = lane / 4 and q = lane % 4, rows g and g + 8, columns 2 q and 2 q + 1.
//   fragments.cuh writes them; the kernels of passes_with_moments.cuh also leave, for batch norm, what that has to know.
// Shared memory (dynamic): as in rung 5; with BK = 16 and 3 stages 30720 bytes at most for 64 x 64, with 4 stages 81920
//   for 128 x 128. What lies along the depth is read by ldmatrix, which takes an 8 x 4 block of floats for an 8 x 8 one
//   of 16 bits; what lies along the lines, four lines at once (own_line). The padding of the rows (tile.cuh, Layout)
//   keeps both free of bank conflicts.
// Input gradient: parity class blockIdx.z. Weight gradient: slice blockIdx.z. As in rung 3.
// Next: a TF32 number has 19 bits, but travels in 32. Rungs 7 and 8 have 16 of each. Rung 11 multiplies by warpgroups.
//
// variants: [{"BM": 64, "BN": 64, "BK": 16, "STAGES": 3, "VECTOR_A": [4, 1], "VECTOR_B": 1},
//            {"BM": 64, "BN": 64, "BK": 16, "STAGES": 3, "VECTOR_A": 4, "VECTOR_B": 4},
//            {"BM": 128, "BN": 128, "BK": 16, "STAGES": 4, "VECTOR_A": 4, "VECTOR_B": 4}]
// option: ELU=1
// dynamic shared: conv2d_forward: STAGES * (BM * (BK + 4) + BN * (BK + 4)) * 4
// dynamic shared: conv2d_input_grad: STAGES * (BM * (BK + 4) + BK * (BN + 8)) * 4
// dynamic shared: conv2d_forward_moments: STAGES * (BM * (BK + 4) + BN * (BK + 4)) * 4
// dynamic shared: conv2d_input_grad_moments: STAGES * (BM * (BK + 4) + BK * (BN + 8)) * 4
// dynamic shared: conv2d_weight_grad: STAGES * (BK * (BM + 8) + BK * (BN + 8)) * 4
// requires: sm_80
#include "common.cuh"
#include "geometry.cuh"
#include "ptx.cuh"
#include "ring.cuh"

constexpr int WARP_M = BM > 64 ? 64 : 32, WARP_N = BN > 64 ? 64 : 32, WARPS_M = BM / WARP_M;
constexpr int THREADS = 32 * WARPS_M * (BN / WARP_N);
constexpr int TILES_M = WARP_M / 16, TILES_N = WARP_N / 8;  // blocks of 16 x 8 a warp
static_assert(BM % WARP_M == 0 && BN % WARP_N == 0, "warps share the tile evenly");
static_assert(BK % 8 == 0 && STAGES >= 2, "mma.sync takes 8 steps of the depth; one tile at least is on its way");

#include "fragments.cuh"
#include "line_sums.cuh"

// Which line of the warp's part of a tile is line g of its group number `group` of eight. Along the depth, they lie side
// by side. Else a thread has line g of four groups side by side, and reads them at once; mma.sync does not mind.
template <bool along_depth>
__device__ __forceinline__ int own_line(int group, int g) {
  return along_depth ? group * 8 + g : group / 4 * 32 + g * 4 + group % 4;
}

// To TF32: half a unit in the last of 10 bits is added, with x's sign, and mma.sync ignores the 13 bits behind it. So to
// nearest, ties away from zero, as cvt.rna.tf32 does it; but that takes a comparison and an addition that must stay in
// x's register. Infinity and NaN stay: their power of two is infinity.
__device__ __forceinline__ unsigned rounded(float x) {
  const float power_of_two = __uint_as_float(__float_as_uint(x) & 0xff800000);
  return __float_as_uint(x + power_of_two * 0x1p-11f);
}

// The numbers of GROUPS groups of eight lines from `line` on, 8 steps from `step` on, rounded: of each group those of
// line g in the steps q and q + 4, which is what mma.sync wants of both operands.
template <class Operand, int LINES, int GROUPS>
__device__ __forceinline__ void read_groups(unsigned (&values)[GROUPS][2], const float* tile, int line, int step) {
  using Tile = Layout<Operand, LINES, BK>;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  if (Operand::along_depth) {
    // Lanes 0-7, 8-15, 16-23, 24-31 point to the rows of: one group, four steps on, the next group, four steps on.
    const float* const row = tile + Tile::at(line + lane / 16 * 8 + lane % 8, lane / 8 % 2 * 4);
#pragma unroll
    for (int i = 0; i < GROUPS; i += 2) {
      unsigned both[4];
      ldmatrix_x4(both, row + Tile::at(i * 8, step));
      values[i][0] = both[0], values[i][1] = both[1], values[i + 1][0] = both[2], values[i + 1][1] = both[3];
    }
  } else {
    const float* const row = tile + Tile::at(line + own_line<false>(0, g), q);
#pragma unroll
    for (int i = 0; i < GROUPS; i += 4)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + Tile::at(own_line<false>(i, 0), step + half * 4));
        values[i][half] = v.x, values[i + 1][half] = v.y, values[i + 2][half] = v.z, values[i + 3][half] = v.w;
      }
  }
#pragma unroll
  for (int i = 0; i < GROUPS; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) values[i][half] = rounded(__uint_as_float(values[i][half]));
}

template <class Pass>
__device__ __forceinline__ void product(const Pass& whole, const float* a, const float* b, const float* bias, float* y) {
  using A = decltype(whole.a);
  using B = decltype(whole.b);
  DYN_SHARED(float, ring);
  const int row0 = blockIdx.x * BM, column0 = blockIdx.y * BN, warp = threadIdx.x / 32;
  const Pass pass = without_padding(whole, row0, BM);
  const int warp_row = warp % WARPS_M * WARP_M;
  const int warp_column = warp / WARPS_M * WARP_N;  // where the warp's part of the tile begins
  Copier<A, BM, BK, VECTOR_A, THREADS> copier_a(pass.a, row0, pass.begin);
  Copier<B, BN, BK, VECTOR_B, THREADS> copier_b(pass.b, column0, pass.begin);
  float sums[TILES_M][TILES_N][4] = {};
  LineSums<Pass> line_sums(pass);
  auto multiply = [&](const float* a_tile, const float* b_tile) {
#pragma unroll
    for (int step = 0; step < BK; step += 8) {
      unsigned a_values[TILES_M * 2][2], b_values[TILES_N][2];
      read_groups<A, BM>(a_values, a_tile, warp_row, step);
      read_groups<B, BN>(b_values, b_tile, warp_column, step);
#pragma unroll
      for (int i = 0; i < TILES_M; i++) {
        const unsigned(&upper)[2] = a_values[i * 2], (&lower)[2] = a_values[i * 2 + 1];
        const unsigned block[4] = {upper[0], lower[0], upper[1], lower[1]};
#pragma unroll
        for (int j = 0; j < TILES_N; j++) mma_m16n8k8_tf32(sums[i][j], block, b_values[j]);
      }
    }
    line_sums.add([&](int line, int step) { return a_tile[Layout<A, BM, BK>::at(line, step)]; },
                  [&](int line, int step) { return b_tile[Layout<B, BN, BK>::at(line, step)]; });
  };
  for_each_tile<STAGES, BK>(ring, copier_a, copier_b, a, b, pass.begin, pass.end, multiply);
  line_sums.store(pass);
  write_fragments(
      pass, sums, row0 + warp_row, column0 + warp_column,
      [](int group, int g) { return own_line<A::along_depth>(group, g); },
      [](int group, int g) { return own_line<B::along_depth>(group, g); }, bias, y);
}

#include "passes.cuh"
#ifndef ELU
#include "passes_with_moments.cuh"

// As conv2d_forward.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_forward_moments(const float* x, const float* w, const float* bias, float* y, double* means, float* squares,
                       Conv g, int channels) {
  forward_with_moments(x, w, bias, y, means, squares, g, channels);
}

// As conv2d_input_grad.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_input_grad_moments(const float* gy, const float* w, const float* bias, float* gx, double* means, float* squares,
                          Conv g, int channels) {
  input_grad_with_moments(gy, w, bias, gx, means, squares, g, channels);
}
#endif
