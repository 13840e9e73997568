// wgmma_tf32.cu, a test of the emulator: two products of one warpgroup by wgmma in TF32, A from registers.
//
// variants: {"BN": [64, 128, 256]}
// requires: sm_90a
// dynamic shared: product: 2 * BN * 128 + 1024
#include "common.cuh"
#include "ptx.cuh"

// C[64, BN] = A[64, 64] * B[BN, 64]^T, in two groups of 32 steps. A: a row of 64 floats a line. B: two tiles of BN rows
// of 32 floats, already as they have to lie in shared memory.
extern "C" __global__ void __launch_bounds__(128) product(const float* A, const float* B, float* C) {
  DYN_SHARED(unsigned char, memory);
  __shared__ unsigned long long full;
  float* const b_tiles = reinterpret_cast<float*>(memory + (-shared_address(memory) & 1023));
  const int t = threadIdx.x, lane = t % 32, g = lane / 4, q = lane % 4;
  if (t == 0) {
    mbarrier_init(&full, 1);
    fence_proxy_async();
    mbarrier_arrive_expect(&full, 2 * BN * 128);
    copy_bulk(b_tiles, B, 2 * BN * 128, &full);
  }
  __syncthreads();
  mbarrier_wait(&full, 0);
  float sums[BN / 2] = {};
  unsigned a[2][4][4];
  auto group = [&](int number, unsigned(&registers)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        registers[i][e] = __float_as_uint(A[(t / 32 * 16 + g + e % 2 * 8) * 64 + number * 32 + i * 8 + q + e / 2 * 4]);
    const unsigned b = shared_address(b_tiles + number * BN * 32);
    wgmma_fence(sums, registers);
#pragma unroll
    for (int i = 0; i < 4; i++) wgmma_k8_tf32(sums, registers[i], matrix_descriptor(b + i * 32, 16, 1024));
    wgmma_commit();
  };
  group(0, a[0]);
  group(1, a[1]);
  wgmma_wait<0>(sums);
  for (int i = 0; i < BN / 2; i++) C[(t / 32 * 16 + g + i / 2 % 2 * 8) * BN + i / 4 * 8 + q * 2 + i % 2] = sums[i];
}
