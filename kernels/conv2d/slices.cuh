// slices.cuh: the second half of a deterministic split-K. Each slice's sums were written to their own place, and are
// added up here in the order of the slices, so that the result does not depend on which block was first, as atomicAdd's
// would.
#pragma once

#include "common.cuh"

// partial (slices, n) -> sums (n); one thread an element.
extern "C" __global__ void __launch_bounds__(256) sum_slices(const REAL* partial, REAL* sums, int slices, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  REAL sum = partial[i];
  for (int slice = 1; slice < slices; slice++) sum += partial[static_cast<long long>(slice) * n + i];
  sums[i] = sum;
}
