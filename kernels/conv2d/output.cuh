// output.cuh: what a pass on operands of 16 bits writes: floats, or, for a layer that reads such, 16 bits of them.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

// One of the two is null. Rows of 16-bit numbers have an even number of columns.
struct Output {
  float* floats;
  HALF* halves;
};

__device__ __forceinline__ void write(const Output& y, int at, float value) { y.floats[at] = value; }

// Two neighbours in one write.
__device__ __forceinline__ void write_pair(const Output& y, int at, float first, float second) {
  if (y.halves) {
    HALF low, high;
    round_to(first, low), round_to(second, high);
    *reinterpret_cast<unsigned*>(y.halves + at) = pack(low, high);
  } else {
    *reinterpret_cast<float2*>(y.floats + at) = make_float2(first, second);
  }
}
