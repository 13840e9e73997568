// passes_with_moments.cuh: the two passes that networks end a layer with, for a layer that batch norm stands behind: with
// the moments of what they write (fragments.cuh), for kernels of their own, so that those without are as they were. Where g
// counts padded channels, `channels` of them are written. means, squares (parts, channels). y: float*, or Output.
#pragma once

#include "fragments.cuh"

template <class Number, class Y>
__device__ __forceinline__ void forward_with_moments(const Number* x, const Number* w, const float* bias, Y y,
                                                     double* means, float* squares, const Conv& g, int channels) {
  Observed<Forward> pass{Forward(g), means, squares, 0};
  pass.columns = channels;
  product(pass, x, w, bias, y);
}

// Where all classes are of one size: the parts of one follow those of the one before.
template <class Number, class Y>
__device__ __forceinline__ void input_grad_with_moments(const Number* gy, const Number* w, const float* bias, Y gx,
                                                        double* means, float* squares, const Conv& g, int channels) {
  const InputGrad of_class(g, blockIdx.z);
  const int parts = ceil_div(of_class.rows, PART_ROWS);
  Observed<InputGrad> pass{of_class, means, squares, static_cast<int>(blockIdx.z) * parts};
  pass.columns = channels;
  product(pass, gy, w, bias, gx);
}
