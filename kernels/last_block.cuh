// last_block.cuh: a sum over blocks in the launch that makes its parts, without atomic additions of floats.
#pragma once

// Whether this block is the last of `blocks` to come here, the same for all its threads; every thread must come. Behind it
// the last block may read what the others wrote before: between a write and the count there is the writer's fence and a
// barrier, between the count and a read a barrier and the reader's fence.
// counter: a word of device memory that is 0 before, and again after.
//
// Which block is the last one is chance. The result is not, if that block adds up all parts in an order of its own.
__device__ __forceinline__ bool last_block(unsigned* counter, unsigned blocks) {
  __threadfence();
  __syncthreads();
  const bool counts = threadIdx.x == 0 && threadIdx.y == 0;
  const bool last = __syncthreads_or(counts && atomicInc(counter, blocks - 1) == blocks - 1);
  __threadfence();
  return last;
}
