// 5_async_copies.cu: copies to shared memory that nobody waits for.
//
// Idea: cp.async (sm_80) copies from global to shared memory past the registers, while the threads go on. Tiles stand
//   in a ring of STAGES slots: one is multiplied while STAGES - 1 are on their way, and one barrier a tile is enough
//   (ring.cuh).
// Thread -> output: 16 x 16 threads make a tile of BM x BN, so BM / 16 x BN / 16 a thread. A copied tile stays as it
//   lay in memory (tile.cuh, Layout), so it is read four steps of the depth at a time, in 16-byte vectors either along
//   the depth, when a thread owns the lines t, t + 16, t + 32 ..., or along the lines, when it owns groups of four.
// Shared memory (dynamic): STAGES slots of a tile of A and one of B, each L (BK + 4) or BK (L + 8) floats for L lines;
//   with BK = 16 and 3 stages 30720 bytes at most for 64 x 64, and 61440 for 128 x 128.
// Input gradient: parity class blockIdx.z. Weight gradient: slice blockIdx.z. As in rung 3.
// Next: now the multiplications themselves are the limit, one for each thread at a time. Rung 6 gives them to tensor
//   cores.
//
// variants: [{"BM": 64, "BN": 64, "BK": 16, "STAGES": 3, "VECTOR_A": [4, 1], "VECTOR_B": 1},
//            {"BM": 64, "BN": 64, "BK": 16, "STAGES": 3, "VECTOR_A": 4, "VECTOR_B": 4},
//            {"BM": 128, "BN": 128, "BK": 16, "STAGES": 3, "VECTOR_A": 4, "VECTOR_B": 4}]
// option: ELU=1
// dynamic shared: conv2d_forward: STAGES * (BM * (BK + 4) + BN * (BK + 4)) * 4
// dynamic shared: conv2d_input_grad: STAGES * (BM * (BK + 4) + BK * (BN + 8)) * 4
// dynamic shared: conv2d_weight_grad: STAGES * (BK * (BM + 8) + BK * (BN + 8)) * 4
// requires: sm_80
#include "common.cuh"
#include "geometry.cuh"
#include "ring.cuh"

constexpr int TX = 16, TY = 16, THREADS = TX * TY, TM = BM / TY, TN = BN / TX;
static_assert(TM % 4 == 0 && TN % 4 == 0, "along the lines, shared memory is read in vectors of four");
static_assert(BK % 4 == 0 && STAGES >= 2, "four steps are read at a time; one tile at least is on its way");

#include "line_sums.cuh"

// Line i of the thread that is number t of 16 along this axis.
template <bool along_depth>
__device__ __forceinline__ int own_line(int i, int t) {
  return along_depth ? t + 16 * i : i / 4 * 64 + t * 4 + i % 4;
}

// Four steps of the COUNT lines of thread t: values[line][step].
template <class Operand, int LINES, int COUNT>
__device__ __forceinline__ void read_lines(float (&values)[COUNT][4], const float* tile, int step, int t) {
  using Tile = Layout<Operand, LINES, BK>;
  auto read = [&](int line, int step) { return *reinterpret_cast<const float4*>(tile + Tile::at(line, step)); };
  if (Operand::along_depth) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const float4 v = read(own_line<true>(i, t), step);
      values[i][0] = v.x, values[i][1] = v.y, values[i][2] = v.z, values[i][3] = v.w;
    }
  } else {
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
      for (int i = 0; i < COUNT; i += 4) {
        const float4 v = read(own_line<false>(i, t), step + s);
        values[i][s] = v.x, values[i + 1][s] = v.y, values[i + 2][s] = v.z, values[i + 3][s] = v.w;
      }
  }
}

template <class Pass>
__device__ __forceinline__ void product(const Pass& whole, const float* a, const float* b, const float* bias, float* y) {
  using A = decltype(whole.a);
  using B = decltype(whole.b);
  DYN_SHARED(float, ring);
  const int row0 = blockIdx.x * BM, column0 = blockIdx.y * BN, tx = threadIdx.x % TX, ty = threadIdx.x / TX;
  const Pass pass = without_padding(whole, row0, BM);
  Copier<A, BM, BK, VECTOR_A, THREADS> copier_a(pass.a, row0, pass.begin);
  Copier<B, BN, BK, VECTOR_B, THREADS> copier_b(pass.b, column0, pass.begin);
  float sums[TM][TN] = {};
  LineSums<Pass> line_sums(pass);
  auto multiply = [&](const float* a_tile, const float* b_tile) {
#pragma unroll
    for (int step = 0; step < BK; step += 4) {
      float a_values[TM][4], b_values[TN][4];
      read_lines<A, BM>(a_values, a_tile, step, ty);
      read_lines<B, BN>(b_values, b_tile, step, tx);
#pragma unroll
      for (int s = 0; s < 4; s++)
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++) sums[i][j] += a_values[i][s] * b_values[j][s];
    }
    line_sums.add([&](int line, int step) { return a_tile[Layout<A, BM, BK>::at(line, step)]; },
                  [&](int line, int step) { return b_tile[Layout<B, BN, BK>::at(line, step)]; });
  };
  for_each_tile<STAGES, BK>(ring, copier_a, copier_b, a, b, pass.begin, pass.end, multiply);
  line_sums.store(pass);
#pragma unroll
  for (int i = 0; i < TM; i++) {
    const int row = row0 + own_line<A::along_depth>(i, ty);
    if (row >= pass.rows) continue;
    const int begin = pass.output(row);
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const int column = column0 + own_line<B::along_depth>(j, tx);
      if (column < pass.columns) y[begin + column] = pass.finish(sums[i][j], bias, column);
    }
  }
}

#include "passes.cuh"
