// gemm_simt.cu, a test of the emulator: C[M, N] = A[M, K] * B[K, N] with static shared memory and barriers.
// 64 x 64 tiles of C, 16 x 16 threads, 4 x 4 elements each.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    sgemm_tiled(const REAL* A, const REAL* B, REAL* C, int M, int N, int K) {
  __shared__ REAL a[16][64 + 4], b[16][64 + 4];
  const int tx = threadIdx.x, ty = threadIdx.y, t = ty * 16 + tx, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  REAL sums[4][4] = {};
  for (int k0 = 0; k0 < K; k0 += 16) {
    for (int i = t; i < 64 * 16; i += 256) {
      const int m = i / 16, ka = i % 16, kb = i / 64, n = i % 64;
      a[ka][m] = m0 + m < M && k0 + ka < K ? A[(long long)(m0 + m) * K + k0 + ka] : 0;
      b[kb][n] = n0 + n < N && k0 + kb < K ? B[(long long)(k0 + kb) * N + n0 + n] : 0;
    }
    __syncthreads();  // the tiles are full
#pragma unroll
    for (int k = 0; k < 16; k++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] += a[k][ty * 4 + i] * b[k][tx * 4 + j];
    __syncthreads();  // the tiles are read
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++)
      if (m0 + ty * 4 + i < M && n0 + tx * 4 + j < N)
        C[(long long)(m0 + ty * 4 + i) * N + n0 + tx * 4 + j] = sums[i][j];
}
