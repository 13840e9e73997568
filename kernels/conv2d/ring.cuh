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

  __device__ __forceinline__ Copier(const Operand& operand, int first_line, int begin)
      : loader(operand, first_line, begin) {}

  // The next tile along the depth, of which `left` steps are before the end.
  __device__ __forceinline__ void copy(T* tile, const T* from, int left) {
    T* const first = tile + Tile::at(loader.first.line, loader.first.step);
    loader.next(left, [&](int i, int index, bool inside) {
      const Place below = loader.below(i);
      T* const to = first + Tile::at(below.line, below.step);
      if (BYTES == 16) cp_async16(to, from + index, inside);
      else if (BYTES == 8) cp_async8(to, from + index, inside);
      else cp_async4(to, from + index, inside);
    });
  }
};

// Calls use(tile of A, tile of B) for all tiles along the depth, in order, while the copies of the next SLOTS - 1 tiles
// are under way. Tile i lies in slot i % SLOTS.
template <int SLOTS, int DEPTH, class CopierA, class CopierB, class Use, class T>
__device__ __forceinline__ void for_each_tile(T* ring, CopierA& copier_a, CopierB& copier_b, const T* a, const T* b,
                                              int begin, int end, Use use) {
  constexpr int A_SIZE = CopierA::Tile::SIZE, SLOT_SIZE = A_SIZE + CopierB::Tile::SIZE;
  const int tiles = end > begin ? ceil_div(end - begin, DEPTH) : 0;
  auto copy = [&](int tile, int slot) {
    if (tile < tiles) {
      const int left = end - begin - tile * DEPTH;
      copier_a.copy(ring + slot * SLOT_SIZE, a, left);
      copier_b.copy(ring + slot * SLOT_SIZE + A_SIZE, b, left);
    }
    cp_async_commit();  // an empty group behind the end, so that the count of groups stays that of tiles
  };
  for (int tile = 0; tile < SLOTS - 1; tile++) copy(tile, tile);
  for (int tile = 0, slot = 0, free = SLOTS - 1; tile < tiles; tile++) {
    cp_async_wait<SLOTS - 2>();  // this thread's copies of `tile` have landed
    __syncthreads();              // so have the others', and all are done with tile - 1, whose slot is free now
    copy(tile + SLOTS - 1, free);
    const T* const tiles_of_both = ring + slot * SLOT_SIZE;
    use(tiles_of_both, tiles_of_both + A_SIZE);
    free = slot;
    slot = slot + 1 < SLOTS ? slot + 1 : 0;
  }
}
