// line_sums.cuh: a bias's gradient from the operands of the weight gradient, while their tiles lie in shared memory:
// nobody reads them once more for it. Included behind THREADS, BM, BN and BK.
//
// A convolution's is gy summed over all pixels, that is, each line of A over the depth. A transposed one's is x summed
// over all pixels: of the taps that are the lines of B, those from (top, left) to (top + stride, left + stride) meet each
// pixel of x once, and pixels outside, which count 0, besides (conv2d_cuda.py asks whether they do).
//
// The blocks beside each other that read the same lines share them out: each of the first SHARERS sums every so manyth
// tile of the depth. A thread sums one line, or the steps of it that its part has.
#pragma once

#include "geometry.cuh"
#include "slices.cuh"

constexpr int SHARERS = 8;

// What the weight gradient sums besides.
enum Summed { NOTHING, OF_GY, OF_X };

// How many blocks beside each other sum the same lines, and the block's number among them.
__device__ __forceinline__ int sharers(int summed) {
  return min(static_cast<int>(summed == OF_GY ? gridDim.y : gridDim.x), SHARERS);
}
__device__ __forceinline__ int sharer(int summed) { return summed == OF_GY ? blockIdx.y : blockIdx.x; }

// In other passes: nothing.
template <class Pass>
struct LineSums {
  __device__ __forceinline__ explicit LineSums(const Pass&) {}
  template <class A, class B>
  __device__ __forceinline__ void add(A, B) {}
  __device__ __forceinline__ void store(const Pass&) const {}
};

template <>
struct LineSums<WeightGrad> {
  const WeightGrad& pass;
  int turn;  // the tiles until this thread's next one; negative: it has none
  REAL sum = 0;

  __device__ __forceinline__ explicit LineSums(const WeightGrad& pass) : pass(pass), turn(sharer(pass.summed)) {
    if (pass.summed == NOTHING || turn >= sharers(pass.summed)) turn = -1;
    if (pass.summed == OF_X && !meets_a_pixel_once(pass.b)) turn = -1;
  }

  // Whether this thread's line of B is one of the taps that are summed.
  static __device__ __forceinline__ bool meets_a_pixel_once(const TapsByPixels& b) {
    const TapsByPixels::Line tap = b.line(blockIdx.y * BN + threadIdx.x % BN);
    return tap.row + b.patches.first_h >= 0 && tap.row + b.patches.first_h < b.patches.step_h &&
           tap.column + b.patches.first_w >= 0 && tap.column + b.patches.first_w < b.patches.step_w;
  }

  // The next tile of each operand, as functions of (line, step).
  template <class A, class B>
  __device__ __forceinline__ void add(A a, B b) {
    if (turn-- != 0) return;
    turn = sharers(pass.summed) - 1;
    if (pass.summed == OF_GY) add_own_line<BM>(a);
    else add_own_line<BN>(b);
  }

  template <int LINES, class Tile>
  __device__ __forceinline__ void add_own_line(Tile tile) {
    constexpr int PARTS = THREADS / LINES;
    static_assert(THREADS % LINES == 0 && BK % PARTS == 0, "all threads sum equally many numbers");
#pragma unroll 2  // more at once would take registers, and warps, from the product
    for (int step = 0; step < BK; step += PARTS) sum += tile(threadIdx.x % LINES, step + threadIdx.x / LINES);
  }

  // (slices, tiles, THREADS): add_slices then adds up the slices.
  __device__ __forceinline__ void store(const WeightGrad& pass) const {
    const int tile = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (pass.summed != NOTHING) pass.line_sums[tile * THREADS + threadIdx.x] = sum;
  }
};

// The sum of a line: that of its parts, in each of the blocks that share it, tiles `pitch` apart, in order.
template <int LINES>
__device__ __forceinline__ REAL line_sum(const REAL* line_sums, int first_tile, int line, int pitch, int count) {
  REAL sum = 0;
#pragma unroll
  for (int i = 0; i < SHARERS; i++)
    if (i < count)
#pragma unroll
      for (int part = 0; part < THREADS; part += LINES)
        sum += line_sums[(first_tile + i * pitch) * THREADS + part + line];
  return sum;
}

// gb of so many channels, by the block that comes last of those that have sums over all slices.
__device__ __forceinline__ void finish_bias(const WeightGrad& pass, REAL* gb, int channels, unsigned* counter) {
  const int count = sharers(pass.summed);
  if (sharer(pass.summed) >= count) return;
  if (!last_block(counter, count * (pass.summed == OF_GY ? gridDim.x : gridDim.y))) return;
  const Patches& x = pass.b.patches;
  for (int c = threadIdx.x; c < channels; c += THREADS) {
    REAL sum = 0;
    if (pass.summed == OF_GY) {
      sum = line_sum<BM>(pass.line_sums, c / BM, c % BM, gridDim.x, count);
    } else {
      for (int r = -x.first_h; r < x.step_h - x.first_h; r++)
        for (int s = -x.first_w; s < x.step_w - x.first_w; s++) {
          const int column = (r * x.taps_w + s) * x.channels + c;
          sum += line_sum<BN>(pass.line_sums, column / BN * gridDim.x, column % BN, 1, count);
        }
    }
    gb[c] = sum;
  }
}
