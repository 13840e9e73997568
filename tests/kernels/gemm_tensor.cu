// gemm_tensor.cu, a test of the emulator: matrix products on tensor cores. 64 x 64 tiles of C, 4 warps of 32 x 32,
// three stages of shared memory filled by asynchronous copies.
//
// dynamic shared: gemm_tf32: 3 * 2 * 64 * 20 * 4
// requires: sm_80
#include "common.cuh"
#include "ptx.cuh"

// C[M, N] = A[M, K] * B[N, K]^T in TF32; K is a multiple of 4. Dynamic shared memory: 3 * 2 * 64 * 20 floats.
extern "C" __global__ void __launch_bounds__(128)
    gemm_tf32(const float* A, const float* B, float* C, int M, int N, int K) {
  constexpr int BM = 64, BN = 64, BK = 16, LD = BK + 4, STAGES = 3;
  DYN_SHARED(float, tiles);
  float *a_tiles = tiles, *b_tiles = tiles + STAGES * BM * LD;
  const int t = threadIdx.x, lane = t % 32, warp = t / 32, g = lane / 4, q = lane % 4;
  const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, wm = warp / 2 * 32, wn = warp % 2 * 32;
  auto load = [&](int stage, int k0) {
    for (int i = t; i < BM * BK / 4; i += 128) {
      const int row = i / 4, k = i % 4 * 4;
      const bool a_valid = k0 + k < K && m0 + row < M, b_valid = k0 + k < K && n0 + row < N;
      cp_async16(&a_tiles[(stage * BM + row) * LD + k], a_valid ? &A[(long long)(m0 + row) * K + k0 + k] : A, a_valid);
      cp_async16(&b_tiles[(stage * BN + row) * LD + k], b_valid ? &B[(long long)(n0 + row) * K + k0 + k] : B, b_valid);
    }
    cp_async_commit();
  };
  float sums[2][4][4] = {};
  const int steps = ceil_div(K, BK);
  for (int s = 0; s < STAGES - 1; s++) load(s, s * BK);
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    load((step + STAGES - 1) % STAGES, (step + STAGES - 1) * BK);
    const float *a_tile = a_tiles + step % STAGES * BM * LD, *b_tile = b_tiles + step % STAGES * BN * LD;
#pragma unroll
    for (int k = 0; k < BK; k += 8) {
      unsigned a[2][4], b[4][2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        ldmatrix_x4(a[i], &a_tile[(wm + i * 16 + lane % 16) * LD + k + lane / 16 * 4]);
#pragma unroll
        for (int j = 0; j < 4; j++) a[i][j] = to_tf32(__uint_as_float(a[i][j]));
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        b[j][0] = to_tf32(b_tile[(wn + j * 8 + g) * LD + k + q]);
        b[j][1] = to_tf32(b_tile[(wn + j * 8 + g) * LD + k + q + 4]);
      }
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) mma_m16n8k8_tf32(sums[i][j], a[i], b[j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int m = m0 + wm + i * 16 + g + 8 * (e / 2), n = n0 + wn + j * 8 + 2 * q + e % 2;
        if (m < M && n < N) C[(long long)m * N + n] = sums[i][j][e];
      }
}

// One warp: C[16, 8] = A[16, 16] * B[16, 8], in both 16-bit formats. A by ldmatrix, B (row-major in shared memory) by
// ldmatrix with transposition.
template <class Half, class Convert, class Multiply>
__device__ void multiply_one_tile(const float* A, const float* B, float* C, Convert convert, Multiply multiply) {
  __shared__ __align__(16) Half a_tile[16][16], b_tile[16][8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) a_tile[i / 16][i % 16] = convert(A[i]);
  for (int i = lane; i < 128; i += 32) b_tile[i / 8][i % 8] = convert(B[i]);
  __syncwarp();
  unsigned a[4], b[2];
  float sums[4] = {};
  ldmatrix_x4(a, &a_tile[lane % 16][lane / 16 * 8]);
  ldmatrix_x2_trans(b, &b_tile[lane % 16][0]);
  multiply(sums, a, b);
  for (int e = 0; e < 4; e++) C[(lane / 4 + 8 * (e / 2)) * 8 + 2 * (lane % 4) + e % 2] = sums[e];
}

extern "C" __global__ void tile_bf16(const float* A, const float* B, float* C) {
  multiply_one_tile<bf16>(
      A, B, C, [](float x) { return to_bf16(x); },
      [](float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_m16n8k16_bf16(c, a, b); });
}

extern "C" __global__ void tile_fp16(const float* A, const float* B, float* C) {
  multiply_one_tile<fp16>(
      A, B, C, [](float x) { return to_fp16(x); },
      [](float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { mma_m16n8k16_fp16(c, a, b); });
}

// A row of 8 numbers through each ldmatrix: what lane l holds, for one, two and four matrices, as they are and
// transposed.
extern "C" __global__ void all_ldmatrix(const unsigned short* x, unsigned* y) {
  __shared__ __align__(16) unsigned short rows[32][8];
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; i++) rows[lane][i] = x[lane * 8 + i];
  __syncwarp();
  unsigned r1[1], r2[2], r4[4];
  int slot = 0;
  auto store = [&](const unsigned* r, int count) {
    for (int i = 0; i < count; i++) y[slot++ * 32 + lane] = r[i];
  };
  ldmatrix_x1(r1, rows[lane]), store(r1, 1);
  ldmatrix_x2(r2, rows[lane]), store(r2, 2);
  ldmatrix_x4(r4, rows[lane]), store(r4, 4);
  ldmatrix_x1_trans(r1, rows[lane]), store(r1, 1);
  ldmatrix_x2_trans(r2, rows[lane]), store(r2, 2);
  ldmatrix_x4_trans(r4, rows[lane]), store(r4, 4);
}

extern "C" __global__ void round_numbers(const float* x, unsigned* tf32, bf16* b, fp16* h, float* b_back, float* h_back,
                                         int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  tf32[i] = to_tf32(x[i]);
  b[i] = to_bf16(x[i]);
  h[i] = to_fp16(x[i]);
  b_back[i] = to_float(b[i]);
  h_back[i] = to_float(h[i]);
}

// Each asynchronous copy, of valid and of invalid elements.
extern "C" __global__ void copy_all_sizes(const float* x, float* y, int valid) {
  __shared__ __align__(16) float s[96];
  const int t = threadIdx.x;
  cp_async16(&s[4 * t], &x[4 * t], t < valid);
  cp_async_commit();
  cp_async8(&s[32 + 2 * t], &x[32 + 2 * t], t < valid);
  cp_async4(&s[64 + t], &x[64 + t], t < valid);
  cp_async_wait_all();
  __syncthreads();
  for (int i = t; i < 96; i += 8) y[i] = s[i];
}
