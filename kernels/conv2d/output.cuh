// output.cuh: what a pass on operands of 16 bits writes: floats, or, for a layer that reads such, 16 bits of them.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

// One of the two is null. Rows of 16-bit numbers have an even number of columns.
struct Output {
  float* floats;
  HALF* halves;
};

__device__ __forceinline__ HALF rounded(float value) {
  HALF y;
  round_to(value, y);
  return y;
}

// What a value is in memory.
__device__ __forceinline__ float stored(const Output& y, float value) {
  return y.halves ? to_float(rounded(value)) : value;
}

__device__ __forceinline__ void write(const Output& y, int at, float value) { y.floats[at] = value; }

// Two neighbours in one write.
__device__ __forceinline__ void write_pair(const Output& y, int at, float first, float second) {
  if (y.halves) *reinterpret_cast<unsigned*>(y.halves + at) = pack(rounded(first), rounded(second));
  else *reinterpret_cast<float2*>(y.floats + at) = make_float2(first, second);
}

// Neighbouring columns of a row that begins at `begin`, as far as there are such.
__device__ __forceinline__ void write_two(const Output& y, int begin, int first, int second, int columns,
                                          const float (&values)[2]) {
  if (y.halves) {
    if (first < columns) write_pair(y, begin + first, values[0], values[1]);
  } else {
    if (first < columns) write(y, begin + first, values[0]);
    if (second < columns) write(y, begin + second, values[1]);
  }
}
