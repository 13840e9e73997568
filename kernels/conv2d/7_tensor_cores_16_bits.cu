// 7_tensor_cores_16_bits.cu: operands of 16 bits.
//
// Idea: half the bytes a number, so each copy, and each read of shared memory, brings twice as many; and mma.sync takes
//   16 steps of the depth at once instead of 8. HALF is bf16 (float's range, 8 significant bits) or fp16 (11 bits, but
//   from 6e-8 to 65504 only); the sums are float, the products exact. round_operands first rounds the operands, to
//   nearest even: as it writes them anew anyway, it pads the channels to a multiple of 8 (of 4 where there are no more
//   than 4) with zeros, so that all copies are of 16 or 8 bytes, also those of an image's three colours. What an
//   earlier pass has rounded already, it leaves alone (Rounded in minigan/ops/rounded.py), and what the layer before has
//   written in 16 bits. Outputs are written so, too, where the next layer reads them (output.cuh).
// Thread -> output: as in rung 6, a tile of BM x BN by 2 x 2 warps, each of which makes a quarter; and moments as there.
// Shared memory (dynamic): STAGES slots of a tile of A and one of B, each L (BK + 8) or BK (L + 8) numbers of 2 bytes
//   for L lines; with BK = 32 and 3 stages 30720 bytes at most for 64 x 64, with 4 stages 81920 for 128 x 128. All
//   fragments come by ldmatrix, four 8 x 8 blocks at once: those along the lines by its transposing form. The padding
//   of the rows (tile.cuh, Layout) puts the 8 rows of a block into 32 different banks.
// Input gradient: parity class blockIdx.z. Weight gradient: slice blockIdx.z. As in rung 3.
// Next: weights that Adam rounds. On sm_90a, products that read shared memory by themselves: 9_wgmma.cu.
//
// variants: [{"HALF": ["bf16", "fp16"], "BM": 64, "BN": 64, "BK": 32, "STAGES": 3, "VECTOR_A": [8, 4], "VECTOR_B": [8, 4]},
//            {"HALF": ["bf16", "fp16"], "BM": 128, "BN": 128, "BK": 32, "STAGES": 4, "VECTOR_A": 8, "VECTOR_B": 8}]
// option: ELU=1
// dynamic shared: conv2d_forward: STAGES * (BM * (BK + 8) + BN * (BK + 8)) * 2
// dynamic shared: conv2d_input_grad: STAGES * (BM * (BK + 8) + BK * (BN + 8)) * 2
// dynamic shared: conv2d_forward_moments: STAGES * (BM * (BK + 8) + BN * (BK + 8)) * 2
// dynamic shared: conv2d_input_grad_moments: STAGES * (BM * (BK + 8) + BK * (BN + 8)) * 2
// dynamic shared: conv2d_weight_grad: STAGES * (BK * (BM + 8) + BK * (BN + 8)) * 2
// requires: sm_80
#include "common.cuh"
#include "geometry.cuh"
#include "output.cuh"
#include "ptx.cuh"
#include "ring.cuh"
#include "rounding.cuh"

constexpr int WARP_M = BM > 64 ? 64 : 32, WARP_N = BN > 64 ? 64 : 32, WARPS_M = BM / WARP_M;
constexpr int THREADS = 32 * WARPS_M * (BN / WARP_N);
constexpr int TILES_M = WARP_M / 16, TILES_N = WARP_N / 8;  // blocks of 16 x 8 a warp
static_assert(BM % WARP_M == 0 && BN % WARP_N == 0, "warps share the tile evenly");
static_assert(BK % 16 == 0 && STAGES >= 2, "mma.sync takes 16 steps of the depth; one tile at least is on its way");

#include "fragments.cuh"
#include "line_sums.cuh"

// ---- rounding -------------------------------------------------------------------------------------------------------

// Both operands of a pass, float -> HALF, with zeros as padding; or one, if the other has no padded rows. One thread
// four numbers.
extern "C" __global__ void __launch_bounds__(256)
    round_operands(const float* first, HALF* first_rounded, Padding first_padding, const float* second,
                   HALF* second_rounded, Padding second_padding) {
  const int first_count = first_padding.padded_rows * (first_padding.padded_channels / 4);
  const int second_count = second_padding.padded_rows * (second_padding.padded_channels / 4);
  const long long i = grid_thread();
  if (i < first_count)
    round_four(first, first_rounded, first_padding, static_cast<int>(i));
  else if (i - first_count < second_count)
    round_four(second, second_rounded, second_padding, static_cast<int>(i - first_count));
}

// ---- the product ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], bf16) {
  mma_m16n8k16_bf16(c, a, b);
}
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], fp16) {
  mma_m16n8k16_fp16(c, a, b);
}

// The fragments of A: TILES_M blocks of 16 lines from `line` on, 16 steps from `step` on.
template <class A>
__device__ __forceinline__ void read_a(unsigned (&fragments)[TILES_M][4], const HALF* tile, int line, int step) {
  using Tile = Layout<A, BM, BK, HALF>;
  const int lane = threadIdx.x % 32;
  // Lanes 0-7, 8-15, 16-23, 24-31 point to the rows of: lines 0-7, lines 8-15, and the same eight steps on.
  const HALF* const row = tile + (A::along_depth ? Tile::at(line + lane % 16, lane / 16 * 8)
                                                 : Tile::at(line + lane / 8 % 2 * 8, lane / 16 * 8 + lane % 8));
#pragma unroll
  for (int i = 0; i < TILES_M; i++) {
    if (A::along_depth) ldmatrix_x4(fragments[i], row + Tile::at(i * 16, step));
    else ldmatrix_x4_trans(fragments[i], row + Tile::at(i * 16, step));
  }
}

// The fragments of B: TILES_N blocks of 8 lines from `line` on, 16 steps from `step` on; two blocks at once.
template <class B>
__device__ __forceinline__ void read_b(unsigned (&fragments)[TILES_N][2], const HALF* tile, int line, int step) {
  using Tile = Layout<B, BN, BK, HALF>;
  const int lane = threadIdx.x % 32;
  // Lanes 0-7, 8-15, 16-23, 24-31 point to the rows of: steps 0-7, steps 8-15, and the same eight lines on.
  const HALF* const row = tile + (B::along_depth ? Tile::at(line + lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8)
                                                 : Tile::at(line + lane / 16 * 8, lane % 16));
#pragma unroll
  for (int j = 0; j < TILES_N; j += 2) {
    unsigned both[4];
    if (B::along_depth) ldmatrix_x4(both, row + Tile::at(j * 8, step));
    else ldmatrix_x4_trans(both, row + Tile::at(j * 8, step));
    fragments[j][0] = both[0], fragments[j][1] = both[1];
    fragments[j + 1][0] = both[2], fragments[j + 1][1] = both[3];
  }
}

template <class Pass>
__device__ __forceinline__ void product(const Pass& whole, const HALF* a, const HALF* b, const float* bias,
                                        const Output& y) {
  using A = decltype(whole.a);
  using B = decltype(whole.b);
  DYN_SHARED(HALF, ring);
  const int row0 = blockIdx.x * BM, column0 = blockIdx.y * BN, warp = threadIdx.x / 32;
  const Pass pass = without_padding(whole, row0, BM);
  const int warp_row = warp % WARPS_M * WARP_M;
  const int warp_column = warp / WARPS_M * WARP_N;  // where the warp's part of the tile begins
  Copier<A, BM, BK, VECTOR_A, THREADS, HALF> copier_a(pass.a, row0, pass.begin);
  Copier<B, BN, BK, VECTOR_B, THREADS, HALF> copier_b(pass.b, column0, pass.begin);
  float sums[TILES_M][TILES_N][4] = {};
  LineSums<Pass> line_sums(pass);
  auto use = [&](const HALF* a_tile, const HALF* b_tile) {
#pragma unroll
    for (int step = 0; step < BK; step += 16) {
      unsigned a_fragments[TILES_M][4], b_fragments[TILES_N][2];
      read_a<A>(a_fragments, a_tile, warp_row, step);
      read_b<B>(b_fragments, b_tile, warp_column, step);
#pragma unroll
      for (int i = 0; i < TILES_M; i++)
#pragma unroll
        for (int j = 0; j < TILES_N; j++) multiply(sums[i][j], a_fragments[i], b_fragments[j], HALF());
    }
    line_sums.add([&](int line, int step) { return to_float(a_tile[Layout<A, BM, BK, HALF>::at(line, step)]); },
                  [&](int line, int step) { return to_float(b_tile[Layout<B, BN, BK, HALF>::at(line, step)]); });
  };
  for_each_tile<STAGES, BK>(ring, copier_a, copier_b, a, b, pass.begin, pass.end, use);
  line_sums.store(pass);
  const auto own_line = [](int group, int g) { return group * 8 + g; };
  write_fragments(pass, sums, row0 + warp_row, column0 + warp_column, own_line, own_line, bias, y);
}

#include "passes_16_bits.cuh"
#ifndef ELU
#include "passes_with_moments.cuh"

// As conv2d_forward.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_forward_moments(const HALF* x, const HALF* w, const float* bias, float* y, HALF* half_y, double* means,
                       float* squares, Conv g, int channels) {
  forward_with_moments(x, w, bias, Output{y, half_y}, means, squares, g, channels);
}

// As conv2d_input_grad.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_input_grad_moments(const HALF* gy, const HALF* w, const float* bias, float* gx, HALF* half_gx, double* means,
                          float* squares, Conv g, int channels) {
  input_grad_with_moments(gy, w, bias, Output{gx, half_gx}, means, squares, g, channels);
}
#endif
