// 1_naive.cu: direct convolution, straight from the definition. The reference for every other rung.
//
// Idea: one thread an output element, which it sums by itself in three loops.
// Thread -> output: thread i of the grid computes element i of y, gx or gw, in the order of memory, so that the threads
//   of a warp write side by side.
// Shared memory: none.
// Input gradient: no class in a launch of its own; each thread begins at the first tap of its own parity and goes on by
//   the stride. Where the stride is 2, neighbouring pixels in a warp take different taps.
// Weight gradient: no split-K. One thread sums over all N P Q pixels in order, so it is deterministic anyway; but a
//   layer with few filters keeps only a few warps of the GPU busy.
// Next: every input value is read from global memory R S K / stride^2 times. Rung 2 turns the work into a matrix product, where a
//   block shares what it reads.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"
#include "geometry.cuh"

// x (N, H, W, C), w (K, R, S, C), bias (K) or null -> y (N, P, Q, K).
extern "C" __global__ void __launch_bounds__(256)
conv2d_forward(const REAL* x, const REAL* w, const REAL* bias, REAL* y, Conv g) {
  const long long i = grid_thread();
  if (i >= static_cast<long long>(g.n) * g.p * g.q * g.k) return;
  const int index = static_cast<int>(i);
  const int k = index % g.k, q = index / g.k % g.q, p = index / g.k / g.q % g.p, n = index / g.k / g.q / g.p;
  REAL sum = bias ? bias[k] : 0;
  for (int r = 0; r < g.r; r++)
    for (int s = 0; s < g.s; s++) {
      const int h = p * g.stride_h - g.top + r, column = q * g.stride_w - g.left + s;
      if (h < 0 || h >= g.h || column < 0 || column >= g.w) continue;
      const REAL* values = x + ((n * g.h + h) * g.w + column) * g.c;
      const REAL* filter = w + ((k * g.r + r) * g.s + s) * g.c;
      for (int c = 0; c < g.c; c++) sum += values[c] * filter[c];
    }
  y[index] = leaky(sum, g.slope);
}

// gy (N, P, Q, K), w (K, R, S, C), bias (C) or null -> gx (N, H, W, C).
extern "C" __global__ void __launch_bounds__(256)
conv2d_input_grad(const REAL* gy, const REAL* w, const REAL* bias, REAL* gx, Conv g) {
  const long long i = grid_thread();
  if (i >= static_cast<long long>(g.n) * g.h * g.w * g.c) return;
  const int index = static_cast<int>(i);
  const int c = index % g.c, column = index / g.c % g.w, h = index / g.c / g.w % g.h, n = index / g.c / g.w / g.h;
  REAL sum = bias ? bias[c] : 0;
  for (int r = (h + g.top) % g.stride_h; r < g.r; r += g.stride_h)
    for (int s = (column + g.left) % g.stride_w; s < g.s; s += g.stride_w) {
      // Both divisions are exact; a negative one is of a number below zero, so it is not rounded to zero.
      const int p = (h + g.top - r) / g.stride_h, q = (column + g.left - s) / g.stride_w;
      if (p < 0 || p >= g.p || q < 0 || q >= g.q) continue;
      const REAL* grads = gy + ((n * g.p + p) * g.q + q) * g.k;
      const REAL* filter = w + (r * g.s + s) * g.c + c;
      for (int k = 0; k < g.k; k++) sum += grads[k] * filter[k * g.r * g.s * g.c];
    }
  gx[index] = leaky(sum, g.slope);
}

// x (N, H, W, C), gy (N, P, Q, K) -> gw (K, R, S, C).
extern "C" __global__ void __launch_bounds__(256)
conv2d_weight_grad(const REAL* x, const REAL* gy, REAL* gw, Conv g) {
  const long long i = grid_thread();
  if (i >= static_cast<long long>(g.k) * g.r * g.s * g.c) return;
  const int index = static_cast<int>(i);
  const int c = index % g.c, s = index / g.c % g.s, r = index / g.c / g.s % g.r, k = index / g.c / g.s / g.r;
  REAL sum = 0;
  for (int n = 0; n < g.n; n++)
    for (int p = 0; p < g.p; p++)
      for (int q = 0; q < g.q; q++) {
        const int h = p * g.stride_h - g.top + r, column = q * g.stride_w - g.left + s;
        if (h < 0 || h >= g.h || column < 0 || column >= g.w) continue;
        sum += gy[((n * g.p + p) * g.q + q) * g.k + k] * x[((n * g.h + h) * g.w + column) * g.c + c];
      }
  gw[index] = sum;
}
