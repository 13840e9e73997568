// passes_with_moments.cuh: the two passes that networks end a layer with, for a layer that batch norm stands behind: with
// the moments of what they write (fragments.cuh). Kernels of their own, so that those without are as they were. Included
// behind a rung's code, and NUMBER, of which it multiplies arrays.
#pragma once

#include "fragments.cuh"

// As conv2d_forward, where g may count padded channels, of which `channels` are written. means, squares (parts, channels).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_forward_moments(const NUMBER* x, const NUMBER* w, const float* bias, float* y, double* means, float* squares,
                       Conv g, int channels) {
  Observed<Forward> pass{Forward(g), means, squares, 0};
  pass.columns = channels;
  product(pass, x, w, bias, y);
}

// As conv2d_input_grad, where all classes are of one size: the parts of one follow those of the one before.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_input_grad_moments(const NUMBER* gy, const NUMBER* w, const float* bias, float* gx, double* means,
                          float* squares, Conv g, int channels) {
  const InputGrad of_class(g, blockIdx.z);
  const int parts = ceil_div(of_class.rows, PART_ROWS);
  Observed<InputGrad> pass{of_class, means, squares, static_cast<int>(blockIdx.z) * parts};
  pass.columns = channels;
  product(pass, gy, w, bias, gx);
}
