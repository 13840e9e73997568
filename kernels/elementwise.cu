// elementwise.cu: functions of single elements that array libraries take several passes over memory for.
// One thread an element: bound by memory bandwidth.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

// y = 1 / (1 + e^-x), by e^-|x| alone, which does not overflow.
extern "C" __global__ void __launch_bounds__(256) sigmoid(const REAL* x, REAL* y, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const REAL e = exp(-fabs(x[i]));
  y[i] = (x[i] < 0 ? e : static_cast<REAL>(1)) / (1 + e);
}

// gx = gy (1 - y^2), for y = tanh x.
extern "C" __global__ void __launch_bounds__(256) tanh_gradient(const REAL* y, const REAL* gy, REAL* gx, int n) {
  const long long i = grid_thread();
  if (i < n) gx[i] = gy[i] * (1 - y[i] * y[i]);
}

// y (rows, channels) of n elements, in place: v = y + bias (channels) of the column becomes v > 0 ? v : slope * v.
extern "C" __global__ void __launch_bounds__(256) add_bias(const REAL* bias, REAL* y, REAL slope, int channels, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const REAL value = y[i] + bias[i % channels];
  y[i] = value > 0 ? value : slope == 0 && value == value ? static_cast<REAL>(0) : slope * value;
}
