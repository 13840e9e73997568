// 9_wgmma.cu: the multiplications by warpgroups, out of shared memory; of the H100 and H200 (sm_90a) alone.
//
// Idea: wgmma multiplies 64 x 16 by 16 x BN for the 128 threads of a warpgroup, and reads both operands from shared
//   memory by itself: no ldmatrix, no fragments in registers, and the threads go on meanwhile. Descriptors tell it
//   where an operand lies (ptx.cuh). One operand of each product is dense: the filters, or gy of the weight gradient.
//   prepare_... writes it, rounded as in rung 7, in the order of the tiles, as they lie in shared memory; so that one
//   thread lets the TMA unit bring a whole tile with one instruction, and no tensor map is needed. The patches of the
//   other operand are gathered by 16-byte cp.async as before. As in rung 7, HALF is bf16 or fp16.
// Thread -> output: a tile of BM x BN by BM / 64 warpgroups of 64 x BN each. Which lane holds which element is wgmma's
//   rule (ptx.cuh).
// Shared memory (dynamic): STAGES slots of a tile of A and one of B, in blocks of 64 x 64 numbers: rows of 128 bytes
//   whose eight 16-byte pieces are swizzled, piece i of row r in place i ^ r % 8, so that eight rows' pieces meet 32
//   different banks. With 4 stages 65536 bytes for 64 x 64, 131072 for 128 x 128; and 1024 to begin at a multiple of
//   that; 196608 for 128 x 256. STAGES mbarriers (static) tell when the TMA unit's tiles are there.
// Pipeline: while the products of tile t run, those of t - 1 may still do, t + 1 is coming, and the copies of t + 2
//   are sent into the slot of t - 2. So products are waited for one tile later, and tensor cores never for a barrier.
// Bounds: those of rung 11, 50, 80 and 100 % of the peak for the three tiles, by the bytes through shared memory.
// Input gradient: parity class blockIdx.z. Weight gradient: slice blockIdx.z. As in rung 3.
// Next: a warp of its own that gathers; patches by the TMA unit's im2col mode.
//
// variants: [{"HALF": ["bf16", "fp16"], "BM": 64, "BN": 64, "BK": 64, "STAGES": 4, "VECTOR_A": [8, 4], "VECTOR_B": [8, 4]},
//            {"HALF": ["bf16", "fp16"], "BM": 128, "BN": [256, 128], "BK": 64, "STAGES": 4, "VECTOR_A": 8, "VECTOR_B": 8}]
// dynamic shared: conv2d_forward: STAGES * (BM + BN) * BK * 2 + 1024
// dynamic shared: conv2d_input_grad: STAGES * (BM + BN) * BK * 2 + 1024
// dynamic shared: conv2d_weight_grad: STAGES * (BM + BN) * BK * 2 + 1024
// requires: sm_90a
#include "common.cuh"
#include "geometry.cuh"
#include "output.cuh"
#include "ptx.cuh"
#include "ring.cuh"
#include "rounding.cuh"
#include "warpgroups.cuh"

constexpr int THREADS = 2 * BM;
constexpr int BLOCK = 64 * 64;  // numbers
static_assert(BM % 64 == 0 && BN % 64 == 0, "tiles are made of blocks of 64 lines");
static_assert(BK == 64, "a swizzled row has 128 bytes");
static_assert(STAGES >= 4, "two tiles are multiplied, and two at least are on their way");

// ---- tiles ----------------------------------------------------------------------------------------------------------

// An operand's tile in shared memory. along_depth: the rows of a block are lines; else they are steps.
template <class Operand, int LINES>
struct Swizzled {
  static constexpr int SIZE = LINES * BK;
  static constexpr int by_lines = Operand::along_depth ? 0 : 1;

  static __device__ __forceinline__ int at(int line, int step) {
    const int row = by_lines ? step : line % 64, column = by_lines ? line % 64 : step;
    return line / 64 * BLOCK + row * 64 + ((column / 8 ^ row % 8) * 8 + column % 8);
  }

  // What place `i` of the tile holds: the inverse of at().
  static __device__ __forceinline__ Place place_of(int i) {
    const int row = i / 64 % 64, column = (i / 8 % 8 ^ row % 8) * 8 + i % 8;
    return by_lines ? Place{i / BLOCK * 64 + column, row} : Place{i / BLOCK * 64 + row, column};
  }

  // The descriptor of 16 steps from `step` on, of the lines from `line` on, a multiple of 64. Neighbouring groups of 8
  // rows are 8 x 128 bytes apart, blocks 64 x 128.
  static __device__ __forceinline__ unsigned long long descriptor(const HALF* tile, int line, int step) {
    const unsigned begin = shared_address(tile) + (line / 64 * BLOCK + (by_lines ? step * 64 : step)) * 2;
    return matrix_descriptor(begin, by_lines ? BLOCK * 2 : 16, 8 * 128);
  }
};

// The operand that is gathered; the other one is dense.
template <class Operand>
constexpr bool gathered = false;
template <>
constexpr bool gathered<PixelsByTaps> = true;
template <>
constexpr bool gathered<TapsByPixels> = true;

// One operand's tiles, by cp.async of all threads. number: of the tile of lines.
template <class Operand, int LINES, int VECTOR, bool = gathered<Operand>>
struct Source {
  Copier<Operand, LINES, BK, VECTOR, THREADS, HALF, Swizzled<Operand, LINES>> copier;
  const HALF* array;
  int depth;

  __device__ __forceinline__ Source(const Operand& operand, const HALF* array, int number, int, int begin, int end)
      : copier(operand, number * LINES, begin), array(array), depth(end - begin) {}

  // The tiles come in order.
  __device__ __forceinline__ void copy(HALF* slot, int tile, unsigned long long*) {
    copier.copy(slot, array, depth - tile * BK);
  }
};

// Or by the TMA unit, out of an array of whole tiles, `count` of them for each depth.
template <class Operand, int LINES, int VECTOR>
struct Source<Operand, LINES, VECTOR, false> : PackedTiles<HALF, LINES * BK> {
  __device__ __forceinline__ Source(const Operand&, const HALF* array, int number, int count, int begin, int)
      : PackedTiles<HALF, LINES * BK>(array, number, count, begin / BK) {}
};

// ---- preparing operands ---------------------------------------------------------------------------------------------

// Both operands of a pass, float -> HALF: the first as it lies, the second in tiles. choose(class) is the pass of which
// operand(pass) is the dense one. One thread four numbers. second_half: the second, if it has 16 bits already; else null.
template <int LINES, class Choose, class Operand>
__device__ __forceinline__ void prepare(const float* first, HALF* rounded, const Padding& first_padding,
                                        const float* second, const HALF* second_half, HALF* packed,
                                        const Padding& second_padding, const Packing& packing, Choose choose,
                                        Operand operand) {
  const int rounded_fours = first_padding.padded_rows * (first_padding.padded_channels / 4);
  constexpr int TILE_FOURS = LINES * BK / 4;
  const int packed_fours = packing.depth_tiles * packing.classes * packing.line_tiles * TILE_FOURS;
  const long long thread = grid_thread();
  if (thread < rounded_fours) {
    round_four(first, rounded, first_padding, static_cast<int>(thread));
  } else if (thread - rounded_fours < packed_fours) {
    const int i = static_cast<int>(thread - rounded_fours), tile = i / TILE_FOURS, rest = tile / packing.line_tiles;
    const auto pass = choose(rest % packing.classes);
    const auto dense = operand(pass);
    const Place at = Swizzled<decltype(dense), LINES>::place_of(i % TILE_FOURS * 4);
    const int line = tile % packing.line_tiles * LINES + at.line, depth = rest / packing.classes * BK + at.step;
    const int index = element(dense, dense.line(line), depth, pass.end);
    const int channels = second_padding.padded_channels;
    uint2 four = make_uint2(0, 0);
    if (index >= 0 && second_half) four = *reinterpret_cast<const uint2*>(second_half + index);
    else if (index >= 0) four = four_rounded(second, second_padding, index / channels, index % channels);
    reinterpret_cast<uint2*>(packed)[i] = four;
  }
}

// x -> rounded (N, H, W, C), w -> packed. The channels of g are padded.
extern "C" __global__ void __launch_bounds__(256)
    prepare_forward(const float* x, HALF* rounded, Padding x_padding, const float* w, HALF* packed, Padding w_padding,
                    Packing packing, Conv g) {
  prepare<BN>(
      x, rounded, x_padding, w, nullptr, packed, w_padding, packing, [&](int) { return Forward(g); },
      [](const Forward& pass) { return pass.b; });
}

// gy -> rounded (N, P, Q, K), w -> packed.
extern "C" __global__ void __launch_bounds__(256)
    prepare_input_grad(const float* gy, HALF* rounded, Padding gy_padding, const float* w, HALF* packed,
                       Padding w_padding, Packing packing, Conv g) {
  prepare<BN>(
      gy, rounded, gy_padding, w, nullptr, packed, w_padding, packing, [&](int number) { return InputGrad(g, number); },
      [](const InputGrad& pass) { return pass.b; });
}

// x -> rounded (N, H, W, C), gy, or half_gy, -> packed.
extern "C" __global__ void __launch_bounds__(256)
    prepare_weight_grad(const float* x, HALF* rounded, Padding x_padding, const float* gy, const HALF* half_gy,
                        HALF* packed, Padding gy_padding, Packing packing, Conv g) {
  prepare<BM>(
      x, rounded, x_padding, gy, half_gy, packed, gy_padding, packing, [&](int) { return WeightGrad(g, 0, g.n * g.p * g.q); },
      [](const WeightGrad& pass) { return pass.a; });
}

// ---- the product ----------------------------------------------------------------------------------------------------

template <class Pass>
__device__ __forceinline__ void product(const Pass& pass, const HALF* a, const HALF* b, const float* bias,
                                        const Output& y) {
  using A = decltype(pass.a);
  using B = decltype(pass.b);
  using TileA = Swizzled<A, BM>;
  using TileB = Swizzled<B, BN>;
  constexpr int SLOT_SIZE = TileA::SIZE + TileB::SIZE;
  DYN_SHARED(unsigned char, memory);
  __shared__ unsigned long long full[STAGES];  // mbarriers: the TMA unit's tile in a slot is there
  HALF* const ring = reinterpret_cast<HALF*>(memory + (-shared_address(memory) & (ALIGNMENT - 1)));
  const int warpgroup = threadIdx.x / 128;
  const int tiles = pass.end > pass.begin ? ceil_div(pass.end - pass.begin, BK) : 0;
  // Of a depth, the dense operand has the tiles of all columns of all classes (Packing), or those of all rows.
  const int dense_tiles = gathered<A> ? gridDim.z * gridDim.y : gridDim.x;
  const int dense_tile = gathered<A> ? blockIdx.z * gridDim.y + blockIdx.y : blockIdx.x;
  Source<A, BM, VECTOR_A> source_a(pass.a, a, gathered<A> ? blockIdx.x : dense_tile, dense_tiles, pass.begin,
                                         pass.end);
  Source<B, BN, VECTOR_B> source_b(pass.b, b, gathered<B> ? blockIdx.y : dense_tile, dense_tiles, pass.begin,
                                         pass.end);
  auto copy = [&](int tile) {
    HALF* const slot = ring + tile % STAGES * SLOT_SIZE;
    if (tile < tiles) {
      source_a.copy(slot, tile, &full[tile % STAGES]);
      source_b.copy(slot + TileA::SIZE, tile, &full[tile % STAGES]);
    }
    cp_async_commit();  // an empty group behind the end, so that the count of groups stays that of tiles
  };

  if (threadIdx.x == 0) {  // the others meet the mbarriers behind the first barrier of the loop
    for (int slot = 0; slot < STAGES; slot++) mbarrier_init(&full[slot], 1);
    fence_proxy_async();
  }
  float sums[BN / 2] = {};
  for (int tile = 0; tile < STAGES - 2; tile++) copy(tile);
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<STAGES - 3>();  // this thread's copies of `tile` have landed,
    fence_proxy_async();          // and wgmma may see them;
    __syncthreads();              // so have the others', and all are done with tile - 2, whose slot is free now
    mbarrier_wait(&full[tile % STAGES], tile / STAGES % 2);
    const HALF* const slot = ring + tile % STAGES * SLOT_SIZE;
    wgmma_fence(sums);
#pragma unroll
    for (int step = 0; step < BK; step += 16)
      wgmma_k16<TileA::by_lines, TileB::by_lines>(HALF(), sums, TileA::descriptor(slot, warpgroup * 64, step),
                                                  TileB::descriptor(slot + TileA::SIZE, 0, step));
    wgmma_commit();
    copy(tile + STAGES - 2);
    wgmma_wait<1>(sums);  // for those of tile - 1
  }
  wgmma_wait<0>(sums);
  write_sums(pass, sums, blockIdx.x * BM + warpgroup * 64, blockIdx.y * BN, 1, bias, y);
}

#include "passes_16_bits.cuh"
