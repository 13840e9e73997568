// passes_16_bits.cuh: the kernels of the rungs whose operands have 16 bits, HALF, the same in each. As in passes.cuh,
// but g counts the padded channels, and only `channels` of them are written. Included behind a rung's own code, which
// defines THREADS, BM and product(pass, a, b, bias, y).
#pragma once

#include "geometry.cuh"

// x (N, H, W, C), w (K, R, S, C), bias (channels) or null -> y (N, P, Q, channels).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_forward(const HALF* x, const HALF* w, const float* bias, float* y, Conv g, int channels) {
  Forward pass(g);
  pass.columns = channels;
  product(pass, x, w, bias, y);
}

// gy (N, P, Q, K), w (K, R, S, C), bias (channels) or null -> gx (N, H, W, channels).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_input_grad(const HALF* gy, const HALF* w, const float* bias, float* gx, Conv g, int channels) {
  InputGrad pass(g, blockIdx.z);
  pass.columns = channels;
  if (blockIdx.x * BM < pass.rows) product(pass, gy, w, bias, gx);  // the same for all threads of the block
}

// x (N, H, W, C), gy (N, P, Q, K) -> partial (slices, K, R, S, C), padded.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_weight_grad(const HALF* x, const HALF* gy, float* partial, Conv g, int slice_depth) {
  const WeightGrad pass(g, blockIdx.z, slice_depth);
  float* const sums = partial + static_cast<long long>(blockIdx.z) * pass.rows * pass.columns;
  product(pass, gy, x, static_cast<const float*>(nullptr), sums);
}

// partial (slices, padded K, R, S, C of g) -> gw (K, R, S, channels), n elements, added up in the order of the slices
// (slices.cuh); one thread an element.
extern "C" __global__ void __launch_bounds__(256)
    sum_slices(const float* partial, float* gw, Conv g, int channels, int slices, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const long long slice_size = static_cast<long long>(g.k) * g.r * g.s * g.c;
  const float* const first = partial + i / channels * g.c + i % channels;
  float sum = first[0];
  for (int slice = 1; slice < slices; slice++) sum += first[slice * slice_size];
  gw[i] = sum;
}
