// losses.cu: the logistic loss on logits and the mean absolute difference: elementwise, as means, and the means' gradients.
//
// Idea: a mean in two launches. Blocks add up what their threads computed; one more block adds the blocks' sums. All in
//   double and in an order that depends on the size and the grid alone: deterministic, without atomics.
// Thread -> output: elementwise kernels: thread i of the grid computes element i. ..._sums: block b writes sum b, of the
//   elements of its threads, each of which takes every (number of threads)-th one.
// Shared memory: 64 bytes (a double for each of 8 warps) where sums are formed, else none.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

#define THREADS 256

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

// y = the logistic loss of each logit z with target t.
extern "C" __global__ void __launch_bounds__(THREADS) logistic_loss(const REAL* z, const REAL* t, REAL* y, int n) {
  const long long i = grid_thread();
  if (i < n) y[i] = logistic(z[i], t[i]);
}

// sums (blocks): of the logistic loss.
extern "C" __global__ void __launch_bounds__(THREADS)
    logistic_sums(const REAL* z, const REAL* t, double* sums, int n) {
  double sum = 0;
  for (long long i = grid_thread(); i < n; i += grid_threads()) sum += logistic(z[i], t[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// sums (blocks): of |a - b|.
extern "C" __global__ void __launch_bounds__(THREADS) l1_sums(const REAL* a, const REAL* b, double* sums, int n) {
  double sum = 0;
  for (long long i = grid_thread(); i < n; i += grid_threads()) sum += fabs(a[i] - b[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// mean[0] = the sum of all sums (blocks), over n.   Grid: one block.
extern "C" __global__ void __launch_bounds__(THREADS) mean_of_sums(const double* sums, REAL* mean, int blocks, int n) {
  double sum = 0;
  for (int i = threadIdx.x; i < blocks; i += THREADS) sum += sums[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) mean[0] = static_cast<REAL>(sum / n);
}

// gz = gy[0] (sigmoid(z) - t) / n, the gradient of the mean.
extern "C" __global__ void __launch_bounds__(THREADS)
    logistic_gradient(const REAL* z, const REAL* t, const REAL* gy, REAL* gz, int n) {
  const long long i = grid_thread();
  if (i < n) gz[i] = gy[0] / n * (sigmoid(z[i]) - t[i]);
}

// ga = gy[0] sign(a - b) / n, the gradient of the mean; that for b is its negative. sign(0) = 0, and a NaN stays one.
extern "C" __global__ void __launch_bounds__(THREADS)
    l1_gradient(const REAL* a, const REAL* b, const REAL* gy, REAL* ga, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const REAL d = a[i] - b[i];
  ga[i] = gy[0] / n * (d > 0 ? static_cast<REAL>(1) : d < 0 ? static_cast<REAL>(-1) : d);
}
