// losses.cu: the logistic loss on logits and the mean absolute difference: elementwise, as means, and the means' gradients.
//
// Idea: blocks add up what their threads computed, and the block that is done last adds up the blocks' sums: a mean is one
//   launch. All in double and in an order that depends on the size and the grid alone: deterministic, without atomic
//   additions. A target that is one number for all is an argument instead of an array.
// Thread -> output: elementwise kernels: thread i of the grid computes element i. mean_...: block b writes sum b, of the
//   elements of its threads, each of which takes every (number of threads)-th one.
// Shared memory: 64 bytes (a double for each of 8 warps) where sums are formed, else none.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"
#include "last_block.cuh"

#define THREADS 256

// A loss's target for element i: t[i], or, where t is null, `target`.
__device__ __forceinline__ REAL target_of(const REAL* t, REAL target, long long i) { return t ? t[i] : target; }

// -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)), without overflow or loss of precision for large logits.
__device__ __forceinline__ REAL logistic(REAL z, REAL t) {
  const REAL positive = z <= 0 ? static_cast<REAL>(0) : z;  // a NaN stays one
  return positive - z * t + log1p(exp(-fabs(z)));
}

__device__ __forceinline__ REAL sigmoid(REAL z) {
  const REAL e = exp(-fabs(z));  // at most 1
  return (z < 0 ? e : static_cast<REAL>(1)) / (1 + e);
}

// The sum over the block's 256 threads, in a fixed order; thread 0 gets it.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double warps[THREADS / 32];
  const double sum = warp_sum(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < THREADS / 32; warp++) total += warps[warp];
  return total;
}

// mean[0] = the sum over all blocks' threads of `value`, over n. sums (blocks); counter: see last_block.cuh.
__device__ __forceinline__ void mean_over_blocks(double value, double* sums, unsigned* counter, REAL* mean, int n) {
  const double sum = block_sum(value);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if (!last_block(counter, gridDim.x)) return;
  value = 0;
  for (int i = threadIdx.x; i < gridDim.x; i += THREADS) value += sums[i];
  value = block_sum(value);
  if (threadIdx.x == 0) mean[0] = static_cast<REAL>(value / n);
}

// y = the logistic loss of each logit z with target t.
extern "C" __global__ void __launch_bounds__(THREADS)
    logistic_loss(const REAL* z, const REAL* t, REAL* y, REAL target, int n) {
  const long long i = grid_thread();
  if (i < n) y[i] = logistic(z[i], target_of(t, target, i));
}

// The mean of the logistic loss.
extern "C" __global__ void __launch_bounds__(THREADS)
    mean_logistic(const REAL* z, const REAL* t, REAL target, double* sums, unsigned* counter, REAL* mean, int n) {
  double sum = 0;
  for (long long i = grid_thread(); i < n; i += grid_threads()) sum += logistic(z[i], target_of(t, target, i));
  mean_over_blocks(sum, sums, counter, mean, n);
}

// The mean of |a - b|.
extern "C" __global__ void __launch_bounds__(THREADS)
    mean_l1(const REAL* a, const REAL* b, double* sums, unsigned* counter, REAL* mean, int n) {
  double sum = 0;
  for (long long i = grid_thread(); i < n; i += grid_threads()) sum += fabs(a[i] - b[i]);
  mean_over_blocks(sum, sums, counter, mean, n);
}

// gz = gy[0] (sigmoid(z) - t) / n, the gradient of the mean.
extern "C" __global__ void __launch_bounds__(THREADS)
    logistic_gradient(const REAL* z, const REAL* t, const REAL* gy, REAL* gz, REAL target, int n) {
  const long long i = grid_thread();
  if (i < n) gz[i] = gy[0] / n * (sigmoid(z[i]) - target_of(t, target, i));
}

// ga = gy[0] sign(a - b) / n, the gradient of the mean; that for b is its negative. sign(0) = 0, and a NaN stays one.
extern "C" __global__ void __launch_bounds__(THREADS)
    l1_gradient(const REAL* a, const REAL* b, const REAL* gy, REAL* ga, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const REAL d = a[i] - b[i];
  ga[i] = gy[0] / n * (d > 0 ? static_cast<REAL>(1) : d < 0 ? static_cast<REAL>(-1) : d);
}
