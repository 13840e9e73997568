// bugs.cu, a test of the emulator: kernels that are wrong, each in one way that it must notice.
// requires: sm_80
// dynamic shared: beyond_dynamic_shared: 32 * 4
// dynamic shared: unwritten: 32 * 4
#include "common.cuh"
#include "ptx.cuh"

// A barrier is missing between the write and the read.
extern "C" __global__ void racy(const float* x, float* y) {
  __shared__ float s[256];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[(threadIdx.x + 128) % 256];
}

// Within one warp: a __syncwarp is missing.
extern "C" __global__ void racy_warp(const float* x, float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[(threadIdx.x + 31) % 32];
}

// Blocks that write the same place.
extern "C" __global__ void racy_blocks(float* y) { y[0] = blockIdx.x; }

extern "C" __global__ void divergent(float* y) {
  if (threadIdx.x < 100) __syncthreads();
  y[threadIdx.x] = 1;
}

extern "C" __global__ void warp_against_block(float* y) {
  if (threadIdx.x % 32 == 5)
    __syncthreads();
  else
    __syncwarp();
  y[threadIdx.x] = 1;
}

extern "C" __global__ void mixed_instructions(float* y) {
  if (threadIdx.x % 2)
    y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1.f, 1);
  else
    y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1, 1);
}

extern "C" __global__ void wrong_mask(float* y) { y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.f, 0); }

extern "C" __global__ void misaligned_copy(const float* x, float* y) {
  __shared__ __align__(16) float s[8];
  cp_async16(&s[1], x);
  cp_async_wait_all();
  y[0] = s[1];
}

// Nothing is read, and yet the address has to be a multiple of 16.
extern "C" __global__ void misaligned_source(const float* x, float* y) {
  __shared__ __align__(16) float s[4];
  cp_async16(s, x + 1, false);
  cp_async_wait_all();
  y[0] = s[0];
}

// With begin = 1: copies that nobody waits for. With begin = 0: a wait that finds none.
extern "C" __global__ void unfinished_copies(const float* x, float* y, int begin) {
  __shared__ float s[64];
  s[threadIdx.x] = 5;
  if (begin) {
    cp_async4(&s[threadIdx.x], &x[threadIdx.x]);
    cp_async_commit();
  } else {
    cp_async_wait<0>();
    y[threadIdx.x] = s[threadIdx.x];
  }
}

// The copy is not committed, so the wait is not for it.
extern "C" __global__ void uncommitted_copy(float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = 5;
  cp_async4(&s[threadIdx.x], &y[threadIdx.x]);
  cp_async_wait<0>();
  y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void copy_to_global(const float* x, float* y) {
  cp_async16(y, x);
  cp_async_wait_all();
}

// The slot is filled again while other threads may still read it: a barrier is missing.
extern "C" __global__ void early_copy(const float* x, float* y) {
  __shared__ __align__(16) float s[256];
  cp_async4(&s[threadIdx.x], &x[threadIdx.x]);
  cp_async_wait_all();
  __syncthreads();
  const float sum = s[threadIdx.x] + s[255 - threadIdx.x];
  cp_async4(&s[threadIdx.x], &x[256 + threadIdx.x]);
  __syncthreads();
  cp_async_wait_all();
  __syncthreads();
  y[threadIdx.x] = sum + s[255 - threadIdx.x];
}

extern "C" __global__ void beyond_dynamic_shared(float* y, int n) {
  DYN_SHARED(float, s);
  s[n + threadIdx.x] = 1;
  y[threadIdx.x] = s[threadIdx.x];
}

// Indexes that are wrong in ways that only the sanitizers see.
extern "C" __global__ void beyond_global(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i % n] = x[i];
}

extern "C" __global__ void beyond_static_shared(float* y, int n) {
  __shared__ float s[32], other[32];
  other[threadIdx.x] = 2;
  float* p = s;
  p[threadIdx.x + n] = 1;
  y[threadIdx.x] = s[threadIdx.x] + other[threadIdx.x];
}

extern "C" __global__ void beyond_row(float* y, int n) {
  __shared__ float s[4][33];
  for (int row = 0; row < 4; row++) s[row][threadIdx.x + n] = row;
  y[threadIdx.x] = s[0][threadIdx.x];
}

extern "C" __global__ void misaligned_vector(const float* x, float* y, int offset) {
  y[threadIdx.x] = reinterpret_cast<const float4*>(x + offset)[threadIdx.x].y;
}

// Reads shared memory that nobody wrote.
extern "C" __global__ void unwritten(float* y) {
  __shared__ float s[32];
  DYN_SHARED(float, d);
  y[threadIdx.x] = s[threadIdx.x] + d[threadIdx.x];
}
