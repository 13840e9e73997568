// passes.cuh: the kernels of rungs 3 to 6, the same in each. Included behind a rung's own code, which defines
//   THREADS, BM                             threads of a block, rows of its tile
//   product(pass, a, b, bias, y)            computes the block's tile of the product (geometry.cuh says which product)
//   BLOCKS                                  of a multiprocessor that shall have registers enough, at least; without it
//                                           one, so that registers are not saved by spilling
#pragma once

#include "geometry.cuh"
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

// x (N, H, W, C), gy (N, P, Q, K) -> partial (slices, K, R, S, C), to be added up by sum_slices; with one slice it is
// gw. Grid: tiles of rows, tiles of columns, slices.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_weight_grad(const REAL* x, const REAL* gy, REAL* partial, Conv g, int slice_depth) {
  const WeightGrad pass(g, blockIdx.z, slice_depth);
  REAL* const sums = partial + static_cast<long long>(blockIdx.z) * pass.rows * pass.columns;
  product(pass, gy, x, static_cast<const REAL*>(nullptr), sums);
}
