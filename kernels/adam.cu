// adam.cu: Adam's step for all parameters in one launch.
//
// Idea: a network has many small parameters, and launches would take longer than their arithmetic. So the arrays' addresses
//   stand in a table, and each block looks up whose part it has.
// Thread -> output: a block updates BLOCK_ELEMENTS elements of one parameter; thread t those at t, t + 256, ...
// Shared memory: none.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

#define THREADS 256
#define BLOCK_ELEMENTS 2048  // minigan/optim.py's too

// A row of the table: addresses of w, g, m, v, the number of elements, the first block.
#define COLUMNS 6

// table (tensors, COLUMNS). As the loop of minigan/optim.py: keep1 = 1 - beta1, keep2 = 1 - beta2; `rate` and `epsilon` have
// the bias corrections in them.   Grid: the blocks of all tensors, one tensor's behind the other's.
extern "C" __global__ void __launch_bounds__(THREADS)
    adam(const unsigned long long* table, REAL rate, REAL keep1, REAL keep2, REAL epsilon, int tensors) {
  // The last tensor whose first block is not behind this one. Tensors without elements have no block and are skipped.
  int tensor = 0;
  for (int end = tensors; end - tensor > 1;) {
    const int middle = (tensor + end) / 2;
    if (table[middle * COLUMNS + 5] <= blockIdx.x)
      tensor = middle;
    else
      end = middle;
  }
  const unsigned long long* row = table + tensor * COLUMNS;
  REAL* w = reinterpret_cast<REAL*>(row[0]);
  const REAL* g = reinterpret_cast<const REAL*>(row[1]);
  REAL* m = reinterpret_cast<REAL*>(row[2]);
  REAL* v = reinterpret_cast<REAL*>(row[3]);
  const long long size = static_cast<long long>(row[4]);
  const long long first = static_cast<long long>(blockIdx.x - row[5]) * BLOCK_ELEMENTS;
  const long long end = min(first + BLOCK_ELEMENTS, size);
#pragma unroll 2  // by four, as the compiler would have it, registers spill on sm_100
  for (long long i = first + threadIdx.x; i < end; i += THREADS) {
    m[i] += keep1 * (g[i] - m[i]);
    v[i] += keep2 * (g[i] * g[i] - v[i]);
    w[i] -= rate * m[i] / (sqrt(v[i]) + epsilon);
  }
}
