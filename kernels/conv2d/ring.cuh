// ring.cuh: tiles of both operands in a ring of SLOTS slots of shared memory, filled by asynchronous copies.
#pragma once

#include "common.cuh"
#include "ptx.cuh"
#include "tile.cuh"

// One thread's share of the copies of an operand's tiles, VECTOR numbers T at a time, to where Places puts them.
template <class Operand, int LINES, int DEPTH, int VECTOR, int THREADS, class T = float,
          class Places = Layout<Operand, LINES, DEPTH, T>>
struct Copier {
  using Tile = Places;
  static constexpr int BYTES = VECTOR * sizeof(T);
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what cp.async copies");
  Loader<Operand, LINES, DEPTH, VECTOR, THREADS> loader;

  __device__ __forceinline__ Copier(const Operand& operand, int first_line) : loader(operand, first_line) {}

  __device__ __forceinline__ void copy(T* tile, const T* from, int d, int end) const {
    loader.each(d, end, [&](int, Place at, int index) {
      T* const to = tile + Tile::at(at.line, at.step);
      const T* const source = from + max(index, 0);  // any valid address where zeros are written
      if (BYTES == 16) cp_async16(to, source, index >= 0);
      else if (BYTES == 8) cp_async8(to, source, index >= 0);
      else cp_async4(to, source, index >= 0);
    });
  }
};

// Calls use(tile of A, tile of B) for all tiles along the depth, in order, while the copies of the next SLOTS - 1 tiles
// are under way. Tile i lies in slot i % SLOTS.
template <int SLOTS, int DEPTH, class CopierA, class CopierB, class Use, class T>
__device__ __forceinline__ void for_each_tile(T* ring, const CopierA& copier_a, const CopierB& copier_b, const T* a,
                                              const T* b, int begin, int end, Use use) {
  constexpr int A_SIZE = CopierA::Tile::SIZE, SLOT_SIZE = A_SIZE + CopierB::Tile::SIZE;
  const int tiles = end > begin ? ceil_div(end - begin, DEPTH) : 0;
  auto copy = [&](int tile) {
    T* const slot = ring + tile % SLOTS * SLOT_SIZE;
    if (tile < tiles) {
      copier_a.copy(slot, a, begin + tile * DEPTH, end);
      copier_b.copy(slot + A_SIZE, b, begin + tile * DEPTH, end);
    }
    cp_async_commit();  // an empty group behind the end, so that the count of groups stays that of tiles
  };
  for (int tile = 0; tile < SLOTS - 1; tile++) copy(tile);
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<SLOTS - 2>();  // this thread's copies of `tile` have landed
    __syncthreads();              // so have the others', and all are done with tile - 1, whose slot is free now
    copy(tile + SLOTS - 1);
    const T* const slot = ring + tile % SLOTS * SLOT_SIZE;
    use(slot, slot + A_SIZE);
  }
}
