// warps.cu, a test of the emulator: what threads of a block and lanes of a warp do together.
#include "common.cuh"

extern "C" __global__ void sum_warps(const float* x, float* y) {
  const float sum = warp_sum(x[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// y[row][lane]: what each shuffle and vote gives lane's thread.
extern "C" __global__ void collectives(const double* x, double* y) {
  const int lane = threadIdx.x;
  const double v = x[lane];
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int row = 0;
  auto store = [&](double value) { y[row++ * 32 + lane] = value; };
  store(__shfl_sync(FULL_WARP, v, 5));
  store(__shfl_up_sync(FULL_WARP, v, 3));
  store(__shfl_down_sync(FULL_WARP, v, 3));
  store(__shfl_xor_sync(FULL_WARP, v, 6));
  store(__shfl_xor_sync(half, (float)v, 9, 16));  // the two halves on their own
  store(__shfl_down_sync(FULL_WARP, (int)v, 2, 8));
  store(__ballot_sync(FULL_WARP, v > 0));
  store(__any_sync(half, lane == 3));
  store(__all_sync(FULL_WARP, v == v));
}

// y[0..3]: __syncthreads_count, _or, _and, and the sum through shared memory.
extern "C" __global__ void block_votes(const float* x, int* y) {
  __shared__ int total;
  const bool positive = x[threadIdx.x] > 0;
  if (threadIdx.x == 0) total = 0;
  const int count = __syncthreads_count(positive), any = __syncthreads_or(positive), all = __syncthreads_and(positive);
  atomicAdd(&total, positive);
  __syncthreads();
  if (threadIdx.x == 77) y[0] = count, y[1] = any, y[2] = all, y[3] = total;
}

extern "C" __global__ void atomics(int* i, unsigned* u, float* f, double* d, unsigned long long* l, int n) {
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= n) return;
  atomicAdd(&i[0], t);
  atomicMax(&i[1], t);
  atomicMin(&i[2], -t);
  atomicCAS(&i[3], 0, t + 1);
  atomicAdd(u, 1);
  atomicAdd(f, 0.5f);
  atomicAdd(d, 0.25);
  atomicExch(l, 7);
  atomicExch(&f[1], 3.f);
}

// The last block to finish adds up what all blocks left in global memory.
extern "C" __global__ void last_block_sums(const float* x, float* partial, unsigned* finished, float* y) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = x[blockIdx.x] * 2;
    __threadfence();
    last = atomicAdd(finished, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < gridDim.x; i++) sum += partial[i];
    *y = sum;
  }
}

extern "C" __global__ void integers(const unsigned* x, unsigned* y, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  y[i] = __umulhi(x[i], 0xD2511F53u);
  y[n + i] = __popc(x[i]);
  y[2 * n + i] = __brev(x[i]);
  y[3 * n + i] = __clz(x[i]);
  y[4 * n + i] = __float_as_uint(rsqrtf(__uint2float_rn(x[i]) + 1));
  y[5 * n + i] = __ffs(x[i]);
}

struct Shape {
  int rows, columns;
  long long offset;
  float scale;
};

// A struct by value, three-dimensional blocks and grids, a vector load, a null pointer.
extern "C" __global__ void by_struct(const float4* x, float* y, const float* bias, Shape shape) {
  const int row = blockIdx.y * blockDim.z + threadIdx.z, column = blockIdx.x * blockDim.y + threadIdx.y;
  if (row >= shape.rows || column >= shape.columns) return;
  const float4 v = x[row * shape.columns + column];
  const float parts[4] = {v.x, v.y, v.z, v.w};
  y[shape.offset + (row * shape.columns + column) * 4 + threadIdx.x] =
      shape.scale * parts[threadIdx.x] + (bias ? *bias : 0);
}
