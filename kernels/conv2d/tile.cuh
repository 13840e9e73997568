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

// One thread's share of the loads of an operand's tiles, in order along the depth. Its vectors lie below each other in
// memory, ROWS rows apart, so they share their step (along_depth) or their line. Lines stay, and are decoded once; steps
// advance.
template <class Operand, int LINES, int DEPTH, int VECTOR, int THREADS>
struct Loader {
  static constexpr int COUNT = LINES * DEPTH / VECTOR / THREADS;  // vectors a thread loads
  static constexpr bool along_depth = Operand::along_depth;
  static constexpr int ROWS = THREADS / ((along_depth ? DEPTH : LINES) / VECTOR);
  static_assert(COUNT * VECTOR * THREADS == LINES * DEPTH, "all threads load equally many vectors");
  static_assert(ROWS * (along_depth ? DEPTH : LINES) == THREADS * VECTOR, "and together whole rows");
  const Operand& operand;
  const Place first;  // where the first vector lies in each tile
  typename Operand::Line lines[along_depth ? COUNT : 1];
  typename Operand::Step steps[along_depth ? 1 : COUNT], tile;  // tile: as far as from one tile to the next

  __device__ __forceinline__ Loader(const Operand& operand, int first_line, int begin)
      : operand(operand), first(place<LINES, DEPTH, VECTOR>(along_depth, threadIdx.x)), tile(operand.step(DEPTH)) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (along_depth || i == 0) lines[i] = operand.line(first_line + first.line + i * ROWS);
      if (!along_depth || i == 0) steps[i] = operand.step(begin + first.step + i * ROWS);
    }
  }

  // Where this thread's vector number i lies, relative to the first one.
  static constexpr __device__ __forceinline__ Place below(int i) {
    return along_depth ? Place{i * ROWS, 0} : Place{0, i * ROWS};
  }

  // Calls use(i, index in the array, whether it is inside or zeros) for each vector of the next tile, of which `left`
  // steps are before the end of the depth. VECTOR divides the channels, so that a vector is inside of an image, or
  // outside, as a whole.
  template <class Use>
  __device__ __forceinline__ void next(int left, Use use) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const auto& line = lines[along_depth ? i : 0];
      const auto& step = steps[along_depth ? 0 : i];
      use(i, operand.index(line, step), first.step + below(i).step < left && operand.inside(line, step));
    }
#pragma unroll
    for (auto& step : steps) operand.advance(step, tile);
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
