// leaky_relu.cu: one pass over memory, for LeakyReLU's forward and backward alike.
// One thread an element, so 12 bytes of traffic for each multiplication in float: bound by memory bandwidth.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

// y = condition > 0 ? x : slope * x.   Forward: condition = x. Backward: condition = the forward's x, x = gy, y = gx.
extern "C" __global__ void __launch_bounds__(256)
    scale_negative(const REAL* condition, const REAL* x, REAL* y, REAL slope, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const REAL scaled = slope == 0 && x[i] == x[i] ? 0 : slope * x[i];  // 0 for infinity too; a NaN stays one
  y[i] = condition[i] > 0 ? x[i] : scaled;
}
