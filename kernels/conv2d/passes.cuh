// passes.cuh: the kernels of rungs 3 to 6 and 11, the same in each. Included behind a rung's own code, which defines
//   THREADS, BM, BN                         threads of a block, rows and columns of its tile
//   product(pass, a, b, bias, y)            computes the block's tile of the product (geometry.cuh says which product)
//   BLOCKS                                  of a multiprocessor that shall have registers enough, at least; without it
//                                           one, so that registers are not saved by spilling
#pragma once

#include "geometry.cuh"
#include "line_sums.cuh"
#include "slices.cuh"

#ifndef BLOCKS
#define BLOCKS 1
#endif

// x (N, H, W, C), w (K, R, S, C), bias (K) or null -> y (N, P, Q, K).   Grid: tiles of rows, tiles of columns.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_forward(const REAL* x, const REAL* w, const REAL* bias, REAL* y, Conv g) {
  product(Forward(g), x, w, bias, y);
}

// gy (N, P, Q, K), w (K, R, S, C), bias (C) or null -> gx (N, H, W, C).   Grid: tiles of rows of the largest class,
// tiles of columns, classes.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_input_grad(const REAL* gy, const REAL* w, const REAL* bias, REAL* gx, Conv g) {
  const InputGrad pass(g, blockIdx.z);
  if (blockIdx.x * BM < pass.rows) product(pass, gy, w, bias, gx);  // the same for all threads of the block
}

#ifndef ELU  // whose builds have the passes that it follows, no others
// x (N, H, W, C), gy (N, P, Q, K) -> gw (K, R, S, C).   Grid: tiles of rows, tiles of columns, slices. partial
// (slices.cuh) is null where there is one slice. summed (line_sums.cuh): the bias's gradient gb comes along, by means of
// line_sums (slices, tiles, THREADS); else these two are null. counters: for gb one, then those of slices.cuh.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_weight_grad(const REAL* x, const REAL* gy, REAL* gw, REAL* gb, REAL* partial, REAL* line_sums,
                   unsigned* counters, Conv g, int slice_depth, int summed) {
  WeightGrad pass(g, blockIdx.z, slice_depth);
  pass.summed = summed, pass.line_sums = line_sums;
  if (partial) pass.into_tiles(TILE_ROWS, TILE_COLUMNS, tile_row(), tile_column());
  product(pass, gy, x, static_cast<const REAL*>(nullptr), partial ? partial : gw);
  const bool whole =
      !partial || add_slices(partial, counters + 1, pass.rows, pass.columns, line_sums,
                             [&](int row, int column, REAL sum) { gw[row * pass.columns + column] = sum; });
  if (whole && summed != NOTHING) finish_bias(pass, gb, summed == OF_GY ? g.k : g.c, counters);
}
#endif
