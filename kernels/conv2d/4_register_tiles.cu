// 4_register_tiles.cu: a tile of outputs a thread, in registers, and 16-byte loads.
//
// Idea: a thread makes TM x TN outputs. For each step of the depth it reads TM + TN numbers from shared memory and
//   multiplies them TM TN times; rung 3 read two for each multiplication (Volkov and Demmel, "Benchmarking GPUs to tune
//   dense linear algebra", 2008). Global memory is read in vectors of four floats where the channels are a multiple of
//   4 and the array is aligned (VECTOR_A, VECTOR_B = 4, else 1), and the next tile's are on their way while this one is
//   multiplied.
// Thread -> output: BN / TN threads side by side and BM / TM below each other; thread (tx, ty) makes the columns
//   4 tx ... 4 tx + 3 of each group of 4 BN / TN columns, and likewise of the rows, so that a warp's 16-byte reads lie
//   close together.
// Shared memory: BK (BM + 4 + BN + 4) * 4 bytes: 8704 for 64 x 64 x 16, 8448 for 128 x 128 x 8, 9728 for 128 x 16 x 16.
// Input gradient: parity class blockIdx.z. Weight gradient: slice blockIdx.z. As in rung 3.
// 128 x 128 suits large layers; 128 x 16 those with few columns, such as the three colours of an image.
// Next: each number goes through a register on its way to shared memory. Rung 5 copies it past the registers.
//
// variants: [{"BM": 64, "BN": 64, "BK": 16, "TM": 4, "TN": 4, "VECTOR_A": [4, 1], "VECTOR_B": 1},
//            {"BM": 64, "BN": 64, "BK": 16, "TM": 4, "TN": 4, "VECTOR_A": 4, "VECTOR_B": 4},
//            {"BM": 128, "BN": 16, "BK": 16, "TM": 4, "TN": 4, "VECTOR_A": [4, 1], "VECTOR_B": 1},
//            {"BM": 128, "BN": 128, "BK": 8, "TM": 8, "TN": 8, "VECTOR_A": 4, "VECTOR_B": 4}]
// option: ELU=1
#include "common.cuh"
#include "geometry.cuh"
#include "tile.cuh"

constexpr int TX = BN / TN, TY = BM / TM, THREADS = TX * TY;
// Two blocks of 128 x 128, so that one multiplies while the other waits at a barrier; the compiler takes a few registers
// too many by itself, and can do without, but not on sm_90.
#define BLOCKS (BM * BN == 128 * 128 && __CUDA_ARCH__ != 900 ? 2 : 1)
static_assert(TM % 4 == 0 && TN % 4 == 0, "shared memory is read in vectors of four");
static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");

#include "line_sums.cuh"

// A tile in shared memory, always with its lines side by side.
template <int LINES>
using Tile = float[BK][LINES + 4];

// Tiles of one operand: from global memory to registers, then to shared memory.
template <class Operand, int LINES, int VECTOR>
struct Stage {
  Loader<Operand, LINES, BK, VECTOR, THREADS> loader;
  float values[LINES * BK / THREADS];

  __device__ __forceinline__ Stage(const Operand& operand, int first_line, int begin)
      : loader(operand, first_line, begin) {}

  __device__ __forceinline__ void load(const float* from, int left) {
    loader.next(left, [&](int i, int index, bool inside) {
      if (VECTOR == 4) {
        const float4 v = inside ? *reinterpret_cast<const float4*>(from + index) : make_float4(0, 0, 0, 0);
        values[i * VECTOR] = v.x, values[i * VECTOR + 1 % VECTOR] = v.y;
        values[i * VECTOR + 2 % VECTOR] = v.z, values[i * VECTOR + 3 % VECTOR] = v.w;
      } else {
        values[i * VECTOR] = inside ? from[index] : 0;
      }
    });
  }

  __device__ __forceinline__ void store(Tile<LINES>& tile) const {
#pragma unroll
    for (int i = 0; i < loader.COUNT; i++) {
      const Place at = {loader.first.line + loader.below(i).line, loader.first.step + loader.below(i).step};
#pragma unroll
      for (int e = 0; e < VECTOR; e++) {
        if (Operand::along_depth) tile[at.step + e][at.line] = values[i * VECTOR + e];  // transposed
        else tile[at.step][at.line + e] = values[i * VECTOR + e];
      }
    }
  }
};

// Line i of the thread that is number `t` of `threads` along this axis: groups of four lie 4 `threads` lines apart.
__device__ __forceinline__ int own_line(int i, int t, int threads) { return i / 4 * 4 * threads + t * 4 + i % 4; }

template <int COUNT>
__device__ __forceinline__ void read_lines(float (&values)[COUNT], const float* row, int t, int threads) {
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(row + own_line(i, t, threads));
    values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
  }
}

template <class Pass>
__device__ __forceinline__ void product(const Pass& pass, const float* a, const float* b, const float* bias, float* y) {
  __shared__ __align__(16) Tile<BM> a_tile;
  __shared__ __align__(16) Tile<BN> b_tile;
  const int row0 = blockIdx.x * BM, column0 = blockIdx.y * BN, tx = threadIdx.x % TX, ty = threadIdx.x / TX;
  Stage<decltype(pass.a), BM, VECTOR_A> a_stage(pass.a, row0, pass.begin);
  Stage<decltype(pass.b), BN, VECTOR_B> b_stage(pass.b, column0, pass.begin);
  LineSums<Pass> line_sums(pass);
  float sums[TM][TN] = {};
  a_stage.load(a, pass.end - pass.begin);
  b_stage.load(b, pass.end - pass.begin);
  for (int d = pass.begin; d < pass.end; d += BK) {
    a_stage.store(a_tile);
    b_stage.store(b_tile);
    __syncthreads();  // the tiles are complete
    a_stage.load(a, pass.end - d - BK);  // the next tile; zeros behind the end
    b_stage.load(b, pass.end - d - BK);
#pragma unroll
    for (int k = 0; k < BK; k++) {
      float a_values[TM], b_values[TN];
      read_lines(a_values, a_tile[k], ty, TY);
      read_lines(b_values, b_tile[k], tx, TX);
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sums[i][j] += a_values[i] * b_values[j];
    }
    line_sums.add([&](int line, int step) { return a_tile[step][line]; },
                  [&](int line, int step) { return b_tile[step][line]; });
    __syncthreads();  // and may be overwritten
  }
  line_sums.store(pass);
#pragma unroll
  for (int i = 0; i < TM; i++) {
    const int row = row0 + own_line(i, ty, TY);
    if (row >= pass.rows) continue;
    const int begin = pass.output(row);
#pragma unroll
    for (int j = 0; j < TN; j++) {
      const int column = column0 + own_line(j, tx, TX);
      if (column < pass.columns) y[begin + column] = pass.finish(sums[i][j], bias, column);
    }
  }
}

#include "passes.cuh"
