// 11_wgmma_tf32.cu: TF32 by warpgroups; of the H100 and H200 (sm_90a) alone.
//
// Idea: out of shared memory wgmma takes TF32 only with the depth side by side, but its operand A may come from
//   registers, however it lies in memory. So A is the patches, in all three passes: gathered by cp.async, read as
//   fragments, and rounded to TF32 on the way, all as in rung 6. B is the dense operand, the filters or gy, which
//   prepare_... writes rounded, tile by tile, as they lie in shared memory, with the depth side by side whatever way it
//   lay before; the TMA unit brings them as in rung 9. So both operands are rounded to nearest, as on rung 6. Read by
//   wgmma itself, patches would be cut off behind the 10th bit of the mantissa: wrong by up to one unit of it instead
//   of a half, and always towards zero.
// Thread -> output: a tile of BM x BN by BM / 64 warpgroups of 64 x BN each. Which lane holds which element of A and of
//   the sums is wgmma's rule (ptx.cuh). prepare_...: a block makes 32 lines x 32 steps.
// Shared memory (dynamic): STAGES slots of a tile of B, rows of 128 bytes swizzled as in rung 9, then as many of one of
//   A, padded as in rung 6 (tile.cuh, Layout), and 1024 bytes to begin at a multiple of that. At most 70656 bytes for
//   64 x 64, 140288 for 128 x 128, 205824 for 128 x 256. STAGES mbarriers (static) tell when the TMA unit's tiles are
//   there.
// Pipeline: as in rung 9. While the products of tile t - 1 run, the fragments of t are read, into other registers than
//   those that t - 1 comes from; so the loop makes two tiles a turn.
// Bounds (computed): tensor cores multiply 1024 pairs of TF32 numbers a cycle (the data sheet's 494.7 TFLOP/s of 132
//   multiprocessors at 1.83 GHz), shared memory moves 128 bytes. That is one line of a tile: BM + BN of them are
//   written, BM of A are read, and BN of B by each warpgroup. Rung 9 has the same bounds: twice the numbers in a line,
//   and twice the products a cycle.
//     tile         products    shared memory               share of the peak    from global memory
//     64 x 64        128       128 + 64 +  64 =  256 cycles      50 %            128 bytes a cycle
//     128 x 128      512       256 + 128 + 256 =  640            80 %             64
//     128 x 256     1024       384 + 128 + 512 = 1024           100 %             48
//   Most of the last column comes from the L2 cache, whose rate NVIDIA does not say here. The A100's, 5120 bytes a
//   cycle, would be 39 for each of 132.
// Input gradient: parity class blockIdx.z, as in rung 3.
// Weight gradient: the product of rung 3 the other way round, rows are taps (r, s, c), columns filters; slice
//   blockIdx.z. The sums are written with neighbouring lanes at neighbouring channels.
// Next: patches that are fetched once. With 5 x 5 taps and stride 2, 8 x 16 pixels ask for 128 x 25 = 3200 pixels of x,
//   but these are 19 x 35 = 665. Kept in shared memory for all taps, where fragments are read at shifted addresses, they
//   need neither most of A's copies nor its bytes from the L2 cache. Or two blocks of a cluster that fetch half of B's
//   tile each, for both: 32 bytes a cycle with 128 x 256.
//
// variants: [{"BM": 64, "BN": 64, "BK": 32, "STAGES": 4, "VECTOR_A": [4, 1], "VECTOR_B": 1},
//            {"BM": 128, "BN": 256, "BK": 32, "STAGES": 4, "VECTOR_A": 4, "VECTOR_B": 1},
//            {"BM": 128, "BN": 128, "BK": 32, "STAGES": 4, "VECTOR_A": 4, "VECTOR_B": 1}]
// dynamic shared: conv2d_forward: STAGES * (BM * (BK + 4) + BN * BK) * 4 + 1024
// dynamic shared: conv2d_input_grad: STAGES * (BM * (BK + 4) + BN * BK) * 4 + 1024
// dynamic shared: conv2d_weight_grad: STAGES * (BK * (BM + 8) + BN * BK) * 4 + 1024
// requires: sm_90a
#include "common.cuh"
#include "geometry.cuh"
#include "ptx.cuh"
#include "ring.cuh"
#include "warpgroups.cuh"

constexpr int THREADS = 2 * BM;
static_assert(BM % 64 == 0 && BN % 64 == 0, "a warpgroup makes 64 rows");
static_assert(BK == 32, "a swizzled row has 128 bytes");
static_assert(STAGES >= 4, "two tiles are multiplied, and two at least are on their way");

// ---- the dense operand ----------------------------------------------------------------------------------------------

// An operand -> whole tiles of LINES x BK, rounded to TF32: a row of 128 bytes a line, swizzled. choose(class) is the
// pass of which operand(pass) is the dense one. A block makes 32 lines x 32 steps, 4 KiB side by side; it reads along
// whatever lies side by side in memory, and turns the square in shared memory.
template <int LINES, class Choose, class Operand>
__device__ __forceinline__ void prepare(const float* from, float* packed, const Packing& packing, Choose choose,
                                        Operand operand) {
  __shared__ float square[32][33];  // [step][line]
  constexpr int SQUARES = LINES / 32;
  const int number = blockIdx.x, tile = number / SQUARES, rest = tile / packing.line_tiles;
  const auto pass = choose(rest % packing.classes);
  const auto dense = operand(pass);
  const int first_line = tile % packing.line_tiles * LINES + number % SQUARES * 32;
  const int depth = rest / packing.classes * BK;
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int across = thread / 32 + 8 * i;
    const int step = dense.along_depth ? thread % 32 : across, line = dense.along_depth ? across : thread % 32;
    const int index = element(dense, dense.line(first_line + line), depth + step, pass.end);
    square[step][line] = index < 0 ? 0 : __uint_as_float(to_tf32(from[index]));
  }
  __syncthreads();
  const int line = thread / 8, step = (thread % 8 ^ line % 8) * 4;  // what place `thread` of the 256 pieces holds
  reinterpret_cast<float4*>(packed)[number * 256 + thread] =
      make_float4(square[step][line], square[step + 1][line], square[step + 2][line], square[step + 3][line]);
}

// w -> packed.
extern "C" __global__ void __launch_bounds__(256)
    prepare_forward(const float* w, float* packed, Packing packing, Conv g) {
  prepare<BN>(w, packed, packing, [&](int) { return Forward(g); }, [](const Forward& pass) { return pass.b; });
}

// w -> packed.
extern "C" __global__ void __launch_bounds__(256)
    prepare_input_grad(const float* w, float* packed, Packing packing, Conv g) {
  prepare<BN>(
      w, packed, packing, [&](int number) { return InputGrad(g, number); },
      [](const InputGrad& pass) { return pass.b; });
}

// gy -> packed.
extern "C" __global__ void __launch_bounds__(256)
    prepare_weight_grad(const float* gy, float* packed, Packing packing, Conv g) {
  prepare<BN>(
      gy, packed, packing, [&](int) { return WeightGrad(g, 0, g.n * g.p * g.q); },
      [](const WeightGrad& pass) { return pass.a; });
}

// ---- the product ----------------------------------------------------------------------------------------------------

// A warp's 16 rows of A, for all steps of a tile, rounded to TF32.
template <class A>
__device__ __forceinline__ void read_a(unsigned (&fragments)[BK / 8][4], const float* tile, int line) {
  using Tile = Layout<A, BM, BK>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < BK / 8; i++) {
    if (A::along_depth) {
      // Lanes 0-7, 8-15, 16-23, 24-31 point to the rows of: lines 0-7, lines 8-15, and the same four steps on.
      ldmatrix_x4(fragments[i], tile + Tile::at(line + lane % 16, i * 8 + lane / 16 * 4));
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++)
        fragments[i][e] = __float_as_uint(tile[Tile::at(line + lane / 4 + e % 2 * 8, i * 8 + lane % 4 + e / 2 * 4)]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) fragments[i][e] = to_tf32(__uint_as_float(fragments[i][e]));
  }
}

// number, count: of the dense operand's tiles, which one is this block's, of how many at each depth.
template <class Pass>
__device__ __forceinline__ void multiply(const Pass& pass, const float* patches, const float* packed, int number,
                                         int count, int columns_apart, const float* bias, float* y) {
  using A = decltype(pass.a);
  constexpr int A_SIZE = Layout<A, BM, BK>::SIZE, B_SIZE = BN * BK;
  DYN_SHARED(unsigned char, memory);
  __shared__ unsigned long long full[STAGES];  // mbarriers: the dense operand's tile in a slot is there
  float* const b_ring = reinterpret_cast<float*>(memory + (-shared_address(memory) & (ALIGNMENT - 1)));
  float* const a_ring = b_ring + STAGES * B_SIZE;
  const int warpgroup = threadIdx.x / 128, line = threadIdx.x / 32 * 16;
  const int tiles = pass.end > pass.begin ? ceil_div(pass.end - pass.begin, BK) : 0;
  Copier<A, BM, BK, VECTOR_A, THREADS> source_a(pass.a, blockIdx.x * BM, pass.begin);
  const PackedTiles<float, B_SIZE> source_b(packed, number, count, pass.begin / BK);
  auto copy = [&](int tile) {
    if (tile < tiles) {
      source_a.copy(a_ring + tile % STAGES * A_SIZE, patches, pass.end - pass.begin - tile * BK);
      source_b.copy(b_ring + tile % STAGES * B_SIZE, tile, &full[tile % STAGES]);
    }
    cp_async_commit();  // an empty group behind the end, so that the count of groups stays that of tiles
  };

  if (threadIdx.x == 0) {  // the others meet the mbarriers behind the first barrier of the loop
    for (int slot = 0; slot < STAGES; slot++) mbarrier_init(&full[slot], 1);
    fence_proxy_async();
  }
  float sums[BN / 2] = {};
  unsigned fragments[2][BK / 8][4];  // the products of one tile read theirs, while those of the next one are loaded
  auto step = [&](int tile, unsigned(&a)[BK / 8][4]) {
    cp_async_wait<STAGES - 3>();  // this thread's copies of `tile` have landed;
    __syncthreads();              // so have the others', and all are done with tile - 2, whose slot is free now
    read_a<A>(a, a_ring + tile % STAGES * A_SIZE, line);
    mbarrier_wait(&full[tile % STAGES], tile / STAGES % 2);
    const unsigned b = shared_address(b_ring + tile % STAGES * B_SIZE);
    wgmma_fence(sums, a);
#pragma unroll
    for (int i = 0; i < BK / 8; i++) wgmma_k8_tf32(sums, a[i], matrix_descriptor(b + i * 32, 16, 8 * 128));
    wgmma_commit();
    copy(tile + STAGES - 2);
    wgmma_wait<1>(sums);  // for those of tile - 1
  };
  for (int tile = 0; tile < STAGES - 2; tile++) copy(tile);
  for (int tile = 0; tile + 1 < tiles; tile += 2) {
    step(tile, fragments[0]);
    step(tile + 1, fragments[1]);
  }
  if (tiles % 2) step(tiles - 1, fragments[0]);
  wgmma_wait<0>(sums);
  write_sums(pass, sums, blockIdx.x * BM + warpgroup * 64, blockIdx.y * BN, columns_apart, bias, y);
}

template <class Pass>
__device__ __forceinline__ void product(const Pass& pass, const float* a, const float* b, const float* bias, float* y) {
  multiply(pass, a, b, blockIdx.z * gridDim.y + blockIdx.y, gridDim.z * gridDim.y, 1, bias, y);
}

// The weight gradient the other way round: its rows are taps, its columns filters.
struct TransposedWeightGrad {
  int rows, columns, begin, end, origin;
  TapsByPixels a;

  __device__ __forceinline__ explicit TransposedWeightGrad(const WeightGrad& pass)
      : rows(pass.columns), columns(pass.rows), begin(pass.begin), end(pass.end), origin(pass.origin), a(pass.b) {}

  __device__ __forceinline__ int output(int row) const { return origin + row; }
  __device__ __forceinline__ float finish(float sum, const float*, int) const { return sum; }
};

__device__ __forceinline__ void product(const WeightGrad& pass, const float* gy, const float* x, const float* bias,
                                        float* gw) {
  multiply(TransposedWeightGrad(pass), x, gy, blockIdx.y, gridDim.y, pass.pitch, bias, gw);
}

#define TRANSPOSED
#include "passes.cuh"
