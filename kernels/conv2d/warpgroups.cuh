// warpgroups.cuh: what the rungs by wgmma share: an operand in whole tiles that the TMA unit brings, and the way of the
// sums from a warpgroup's registers to memory.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

constexpr int ALIGNMENT = 1024;  // bytes; of eight swizzled rows of 128

// The array of the dense operand, as prepare_... writes it: tiles by depth, then by class (of the input gradient), then
// by lines.
struct Packing {
  int depth_tiles, classes, line_tiles;
};

// One column of those tiles, of SIZE numbers each: number `number` of the `count` that each depth has.
template <class T, int SIZE>
struct PackedTiles {
  const T* first;
  int pitch;

  __device__ __forceinline__ PackedTiles(const T* array, int number, int count, int first_depth)
      : first(array + (first_depth * count + number) * SIZE), pitch(count * SIZE) {}

  // By one thread, a whole tile in one instruction.
  __device__ __forceinline__ void copy(T* slot, int tile, unsigned long long* full) const {
    if (threadIdx.x != 0) return;
    mbarrier_arrive_expect(full, SIZE * sizeof(T));
    copy_bulk(slot, first + tile * pitch, SIZE * sizeof(T), full);
  }
};

__device__ __forceinline__ void write(float* y, int at, float value) { y[at] = value; }
__device__ __forceinline__ void write_pair(float* y, int at, float first, float second) {
  *reinterpret_cast<float2*>(y + at) = make_float2(first, second);
}

// The sums of one warpgroup, 64 x 2 N (ptx.cuh says which lane holds which), from row and column on. Element (row,
// column) of the product lies at output(row) + column * columns_apart. Where columns lie side by side and are even in
// number, a lane's two neighbours are one write of 8 bytes, so that four lanes fill a sector of 32. y: float*, or Output.
template <class Pass, int N, class Y>
__device__ __forceinline__ void write_sums(const Pass& pass, const float (&sums)[N], int first_row, int first_column,
                                           int columns_apart, const float* bias, const Y& y) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const bool pairs = columns_apart == 1 && pass.columns % 2 == 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first_row + warp * 16 + lane / 4 + half * 8;
    if (row >= pass.rows) continue;
    const int begin = pass.output(row);
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
      const int column = first_column + j * 8 + lane % 4 * 2;
      const float* const two = sums + j * 4 + half * 2;
      if (pairs) {
        if (column < pass.columns)
          write_pair(y, begin + column, pass.finish(two[0], bias, column), pass.finish(two[1], bias, column + 1));
      } else {
#pragma unroll
        for (int e = 0; e < 2; e++)
          if (column + e < pass.columns)
            write(y, begin + (column + e) * columns_apart, pass.finish(two[e], bias, column + e));
      }
    }
  }
}
