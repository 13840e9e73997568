// last_block.cuh: a sum over blocks in the launch that makes its parts, without atomic additions of floats.
#pragma once

// Whether this block is the last of `blocks` to come here; every thread must. What the others wrote before, it may then read.
// counter: a word of device memory that is 0 before, and again after.
//
// Which block is the last one is chance. The result is not, if that block adds up all parts in an order of its own.
__device__ __forceinline__ bool last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();  // what this thread wrote comes before the count
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) last = atomicInc(counter, blocks - 1) == blocks - 1;
  __syncthreads();
  __threadfence();  // and what is read, after it
  return last;
}
