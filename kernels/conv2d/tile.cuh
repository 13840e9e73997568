// tile.cuh: which thread loads which elements of a tile, and how a tile that is copied as it lies is laid out.
#pragma once

#include "common.cuh"

struct Place {
  int line, step;
};

// Vector v (of VECTOR neighbours in memory) of a tile of LINES x DEPTH: neighbouring threads get neighbouring vectors.
template <int LINES, int DEPTH, int VECTOR>
__device__ __forceinline__ Place place(bool along_depth, int v) {
  static_assert(DEPTH % VECTOR == 0 && LINES % VECTOR == 0, "a vector does not leave the tile");
  if (along_depth) return {v / (DEPTH / VECTOR), v % (DEPTH / VECTOR) * VECTOR};
  return {v % (LINES / VECTOR) * VECTOR, v / (LINES / VECTOR)};
}

// One thread's share of the loads of an operand's tiles. The lines stay the same for all tiles along the depth, so they
// are decoded once.
template <class Operand, int LINES, int DEPTH, int VECTOR, int THREADS>
struct Loader {
  static constexpr int COUNT = LINES * DEPTH / VECTOR / THREADS;  // vectors a thread loads
  static_assert(COUNT * VECTOR * THREADS == LINES * DEPTH, "all threads load equally many vectors");
  const Operand& operand;
  typename Operand::Line lines[COUNT];

  __device__ __forceinline__ Loader(const Operand& operand, int first_line) : operand(operand) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) lines[i] = operand.line(first_line + place_of(i).line);
  }

  // The place in the tile of this thread's vector number i.
  static __device__ __forceinline__ Place place_of(int i) {
    return place<LINES, DEPTH, VECTOR>(Operand::along_depth, threadIdx.x + i * THREADS);
  }

  // Calls use(i, place in the tile, index in the array or negative for zeros) for each vector of the tile at depth d.
  // VECTOR divides the channels, so that a vector is inside of an image, or outside, as a whole.
  template <class Use>
  __device__ __forceinline__ void each(int d, int end, Use use) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const Place at = place_of(i);
      use(i, at, operand.at(lines[i], operand.step(d + at.step, end)));
    }
  }
};

// An operand's tile of numbers T in shared memory as asynchronous copies leave it, with neighbours in memory side by
// side:
//   along_depth    [LINES][DEPTH + 16 bytes]    else    [DEPTH][LINES + 8]
// The padding keeps rows aligned to 16 bytes, and lets the threads of a warp that read a column of lines, the 8 x 4
// block of a tensor core's fragment, or the 8 rows of an ldmatrix, meet 32 different banks.
template <class Operand, int LINES, int DEPTH, class T = float>
struct Layout {
  static constexpr int PITCH = Operand::along_depth ? DEPTH + 16 / static_cast<int>(sizeof(T)) : LINES + 8;
  static constexpr int SIZE = Operand::along_depth ? LINES * PITCH : DEPTH * PITCH;
  static_assert(PITCH * sizeof(T) % 16 == 0, "16-byte copies into every row");
  static __device__ __forceinline__ int at(int line, int step) {
    return Operand::along_depth ? line * PITCH + step : step * PITCH + line;
  }
};
