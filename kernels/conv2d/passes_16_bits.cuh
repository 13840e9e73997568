// passes_16_bits.cuh: the kernels of the rungs whose operands have 16 bits, HALF, the same in each. As in passes.cuh,
// but g counts the padded channels, and only `channels` of them are written. Included behind a rung's own code, which
// defines THREADS, BM, BN and product(pass, a, b, bias, y), with y an Output.
#pragma once

#include "geometry.cuh"
#include "line_sums.cuh"
#include "output.cuh"
#include "slices.cuh"

// x (N, H, W, C), w (K, R, S, C), bias (channels) or null -> y (N, P, Q, channels), or the same in 16 bits, half_y; the
// other one is null.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_forward(const HALF* x, const HALF* w, const float* bias, float* y, HALF* half_y, Conv g, int channels) {
  Forward pass(g);
  pass.columns = channels;
  product(pass, x, w, bias, Output{y, half_y});
}

// gy (N, P, Q, K), w (K, R, S, C), bias (channels) or null -> gx (N, H, W, channels), or half_gx.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_input_grad(const HALF* gy, const HALF* w, const float* bias, float* gx, HALF* half_gx, Conv g, int channels) {
  InputGrad pass(g, blockIdx.z);
  pass.columns = channels;
  if (blockIdx.x * BM < pass.rows) product(pass, gy, w, bias, Output{gx, half_gx});  // the same for all threads of the block
}

#ifndef ELU  // whose builds have the passes that it follows, no others
// x (N, H, W, C), gy (N, P, Q, K) -> gw (filters, R, S, channels).   gb, partial, line_sums, counters, summed: as in
// passes.cuh, but partial with one slice, too, if there is padding to leave out. Rungs without line_sums sum nothing.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_weight_grad(const HALF* x, const HALF* gy, float* gw, float* gb, float* partial, float* line_sums,
                   unsigned* counters, Conv g, int filters, int channels, int slice_depth, int summed) {
  WeightGrad pass(g, blockIdx.z, slice_depth);
  pass.summed = summed, pass.line_sums = line_sums;
  if (partial) pass.into_tiles(TILE_ROWS, TILE_COLUMNS, tile_row(), tile_column());
  product(pass, gy, x, static_cast<const float*>(nullptr), Output{partial ? partial : gw, nullptr});
  const bool whole =
      !partial || add_slices(partial, counters + 1, filters, pass.columns, line_sums,
                             [&](int row, int column, float sum) {
                               const int tap = column / g.c, c = column % g.c;
                               if (c < channels) gw[(row * g.r * g.s + tap) * channels + c] = sum;
                             });
  if (whole && summed != NOTHING) finish_bias(pass, gb, summed == OF_GY ? filters : channels, counters);
}
#endif
