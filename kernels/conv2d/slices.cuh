// slices.cuh: the second half of a deterministic split-K, in the launch of the first. Each slice's sums of a tile were
// written to a place of their own. The block that comes last adds them up, whichever it is in the same order, so that
// the result does not depend on it, as atomicAdd's would. Included behind THREADS, BM and BN.
//
// One block alone would read many slices while the rest of the GPU is idle. So of each GROUP neighbouring slices the last
// block adds up those, and of the blocks that did so the last one the groups' sums.
#pragma once

#include "common.cuh"
#include "last_block.cuh"

constexpr int GROUP = 16, AHEAD = 5;  // 1 + 3 x 5

// The block's tile of gw, filters by taps. Where TRANSPOSED is defined, the block's product is taps by filters.
#ifdef TRANSPOSED
constexpr int TILE_ROWS = BN, TILE_COLUMNS = BM;
__device__ __forceinline__ int tile_row() { return blockIdx.y; }
__device__ __forceinline__ int tile_column() { return blockIdx.x; }
#else
constexpr int TILE_ROWS = BM, TILE_COLUMNS = BN;
__device__ __forceinline__ int tile_row() { return blockIdx.x; }
__device__ __forceinline__ int tile_column() { return blockIdx.y; }
#endif

// Calls add(first, stride, members, whole): the `members` slices from `first` on, `stride` apart, are to be added up in
// place of the first one, or are the whole sum; for the block's group, then for its group of groups, and so on. Whether
// this block had the whole sum. counters: one for each tile and group, then for each tile and group of groups ...
template <class Add>
__device__ __forceinline__ bool add_in_groups(unsigned* counters, Add add) {
  const int tiles = gridDim.x * gridDim.y, tile = blockIdx.y * gridDim.x + blockIdx.x;
  int number = blockIdx.z, count = gridDim.z, groups;
  for (int stride = 1;; stride *= GROUP, number /= GROUP, count = groups) {
    groups = ceil_div(count, GROUP);
    const int group = number / GROUP, members = min(GROUP, count - group * GROUP);
    if (members == 1) __syncthreads();  // what it adds up is its own
    else if (!last_block(counters + group * tiles + tile, members)) return false;
    add(group * GROUP * stride, stride, members, groups == 1);
    if (groups == 1) return true;
    counters += groups * tiles;
  }
}

// The sum of `members` numbers or vectors, `stride` apart, in order. AHEAD of them are on their way at once.
template <class T>
__device__ __forceinline__ T sum_of(const T* from, int stride, int members) {
  T sum = from[0];
  for (int first = 1; first < members; first += AHEAD) {
    T values[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (first + i < members) values[i] = from[static_cast<long long>(first + i) * stride];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (first + i < members) sum = sum + values[i];
  }
  return sum;
}

struct __align__(16) Four {
  REAL values[4];
  __device__ __forceinline__ Four operator+(const Four& other) const {
    return {values[0] + other.values[0], values[1] + other.values[1], values[2] + other.values[2],
            values[3] + other.values[3]};
  }
};

// partial (slices, tiles, TILE_ROWS, TILE_COLUMNS): the sums of all slices of the block's tile, of which a matrix has
// rows x columns, to store(row, column, sum), by the block that comes last. Whether this was it. line_sums (slices, tiles,
// THREADS) or null: are added up in place of the first slice's.
template <class Store>
__device__ __forceinline__ bool add_slices(REAL* partial, unsigned* counters, int rows, int columns, REAL* line_sums,
                                           Store store) {
  constexpr int FOURS = BM * BN / 4;
  const int slice_size = gridDim.x * gridDim.y * FOURS, tile = blockIdx.y * gridDim.x + blockIdx.x;
  Four* const sums = reinterpret_cast<Four*>(partial) + tile * FOURS;
  return add_in_groups(counters, [&](int first, int stride, int members, bool whole) {
    for (int i = threadIdx.x; i < FOURS; i += THREADS) {
      const int row = tile_row() * TILE_ROWS + i / (TILE_COLUMNS / 4);
      const int column = tile_column() * TILE_COLUMNS + i % (TILE_COLUMNS / 4) * 4;
      if (row >= rows || column >= columns) continue;
      Four* const at = sums + static_cast<long long>(first) * slice_size + i;
      const Four sum = sum_of(at, stride * slice_size, members);
      if (!whole) *at = sum;
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (whole && column + e < columns) store(row, column + e, sum.values[e]);
    }
    if (line_sums) {
      const int slice = gridDim.x * gridDim.y * THREADS;
      REAL* const at = line_sums + first * slice + tile * THREADS + threadIdx.x;
      *at = sum_of(at, stride * slice, members);
    }
  });
}
