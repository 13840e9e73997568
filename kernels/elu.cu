// elu.cu: ELU and its gradient, each in one pass over memory.
//
// Idea: the gradient is taken from the output y, where e^x needs no second evaluation: alpha e^x = y + alpha.
// Thread -> output: thread i of the grid computes element i.
// Shared memory: none.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

// y = x > 0 ? x : alpha (e^x - 1).
extern "C" __global__ void __launch_bounds__(256) elu(const REAL* x, REAL* y, REAL alpha, int n) {
  const long long i = grid_thread();
  if (i < n) y[i] = x[i] > 0 ? x[i] : alpha * expm1(x[i]);
}

// gx = y > 0 ? gy : gy (y + alpha).
extern "C" __global__ void __launch_bounds__(256)
    elu_gradient(const REAL* y, const REAL* gy, REAL* gx, REAL alpha, int n) {
  const long long i = grid_thread();
  if (i < n) gx[i] = y[i] > 0 ? gy[i] : gy[i] * (y[i] + alpha);
}
