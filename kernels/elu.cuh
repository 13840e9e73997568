// elu.cuh: ELU of one number, and its gradient.
#pragma once

#include "common.cuh"

template <class T>
__device__ __forceinline__ T elu_of(T x, T alpha) {
  return x > 0 ? x : alpha * expm1(x);
}

// From the output y, where e^x needs no second evaluation: alpha e^x = y + alpha.
template <class T>
__device__ __forceinline__ T elu_gradient_of(T y, T gy, T alpha) {
  return y > 0 ? gy : gy * (y + alpha);
}
