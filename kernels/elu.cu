// elu.cu: ELU and its gradient, each in one pass over memory. elements_16_bits.cu has the same for numbers of 16 bits.
//
// Thread -> output: thread i of the grid computes element i.
// Shared memory: none.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"
#include "elu.cuh"

// y = x > 0 ? x : alpha (e^x - 1).
extern "C" __global__ void __launch_bounds__(256) elu(const REAL* x, REAL* y, REAL alpha, int n) {
  const long long i = grid_thread();
  if (i < n) y[i] = elu_of(x[i], alpha);
}

// gx = y > 0 ? gy : gy (y + alpha).
extern "C" __global__ void __launch_bounds__(256)
    elu_gradient(const REAL* y, const REAL* gy, REAL* gx, REAL alpha, int n) {
  const long long i = grid_thread();
  if (i < n) gx[i] = elu_gradient_of(y[i], gy[i], alpha);
}
