// wgmma.cu, a test of the emulator: a product of one warpgroup by wgmma, in both layouts of each operand.
//
// variants: {"HALF": ["bf16", "fp16"], "BN": [64, 128, 256], "A_BY_LINES": [0, 1], "B_BY_LINES": [0, 1]}
// requires: sm_90a
// dynamic shared: product: (64 + BN) * 128 + 1024
#include "common.cuh"
#include "ptx.cuh"

// C[64, BN] = A[64, 64] * B[BN, 64]^T. A: a row of 64 numbers for each line, or for each step. B: already as it has to lie
// in shared memory. So A comes by asynchronous copies, and B by one bulk copy.
extern "C" __global__ void __launch_bounds__(128) product(const HALF* A, const HALF* B, float* C) {
  DYN_SHARED(unsigned char, memory);
  __shared__ unsigned long long full;
  HALF* const a_tile = reinterpret_cast<HALF*>(memory + (-shared_address(memory) & 1023));
  HALF* const b_tile = a_tile + 64 * 64;
  const int t = threadIdx.x, lane = t % 32;
  if (t == 0) {
    mbarrier_init(&full, 1);
    fence_proxy_async();
    mbarrier_arrive_expect(&full, BN * 128);
    copy_bulk(b_tile, B, BN * 128, &full);
  }
  for (int i = t; i < 64 * 8; i += 128) {
    const int row = i / 8, piece = i % 8;
    cp_async16(a_tile + row * 64 + (piece ^ row % 8) * 8, A + i * 8);
  }
  cp_async_wait_all();
  fence_proxy_async();
  __syncthreads();
  mbarrier_wait(&full, 0);
  float sums[BN / 2] = {};
  wgmma_fence(sums);
#pragma unroll
  for (int step = 0; step < 64; step += 16) {
    const unsigned a = shared_address(a_tile) + (A_BY_LINES ? step * 128 : step * 2);
    const unsigned b = shared_address(b_tile) + (B_BY_LINES ? step * 128 : step * 2);
    wgmma_k16<A_BY_LINES, B_BY_LINES>(HALF(), sums, matrix_descriptor(a, A_BY_LINES ? 8192 : 16, 1024),
                                      matrix_descriptor(b, B_BY_LINES ? 8192 : 16, 1024));
  }
  wgmma_commit();
  wgmma_wait<0>(sums);
  for (int i = 0; i < BN / 2; i++)
    C[(t / 32 * 16 + lane / 4 + i / 2 % 2 * 8) * BN + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}
