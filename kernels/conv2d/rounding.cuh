// rounding.cuh: float -> 16 bits, to nearest even, with zeros as padding. HALF is bf16 or fp16.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

// An array (rows, channels) of which (padded_rows, padded_channels) is made. vector: how many floats may be read at
// once, 4 or 1. padded_channels is a multiple of 4.
struct Padding {
  int rows, channels, padded_rows, padded_channels, vector;
};

// Four neighbouring numbers of the padded array; `channel` is a multiple of 4.
__device__ __forceinline__ uint2 four_rounded(const float* from, const Padding& p, int row, int channel) {
  float values[4] = {};
  if (row < p.rows) {
    const float* const source = from + row * p.channels + channel;
    if (p.vector == 4) {
      if (channel < p.channels) {
        const float4 v = *reinterpret_cast<const float4*>(source);
        values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (channel + e < p.channels) values[e] = source[e];
    }
  }
  HALF rounded[4];
#pragma unroll
  for (int e = 0; e < 4; e++) round_to(values[e], rounded[e]);
  return make_uint2(pack(rounded[0], rounded[1]), pack(rounded[2], rounded[3]));
}

// Fours number i of the padded array.
__device__ __forceinline__ void round_four(const float* from, HALF* to, const Padding& p, int i) {
  const int fours = p.padded_channels / 4;
  reinterpret_cast<uint2*>(to)[i] = four_rounded(from, p, i / fours, i % fours * 4);
}
