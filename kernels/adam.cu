// adam.cu: Adam's step for all parameters in one launch.
//
// Idea: a network has many small parameters, and launches would take longer than their arithmetic. So the arrays' addresses
//   stand in a table, and each block looks up whose part it has. The table is an argument by value: there is no copy from
//   the host to wait for, and no memory that has to stay.
// Thread -> output: a block updates BLOCK_ELEMENTS elements of one parameter; thread t those at t, t + 256, ...
// Shared memory: none.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

#define THREADS 256
#define BLOCK_ELEMENTS 2048  // minigan/optim.py's too

#define TENSORS 80  // minigan/optim.py's too: of the 4 KiB that arguments may take

// Addresses, numbers of elements, first blocks.
struct Table {
  unsigned long long w[TENSORS], g[TENSORS], m[TENSORS], v[TENSORS], size[TENSORS];
  unsigned first[TENSORS];
};

// table: of `tensors` parameters. As the loop of minigan/optim.py: keep1 = 1 - beta1, keep2 = 1 - beta2; `rate` and `epsilon`
// have the bias corrections in them. numbers: null, or the two of them, for a graph that is replayed at each step.   Grid: the blocks of all tensors, one tensor's behind the other's.
extern "C" __global__ void __launch_bounds__(THREADS)
    adam(const Table table, const double* numbers, REAL rate, REAL keep1, REAL keep2, REAL epsilon, int tensors) {
  if (numbers) {
    rate = static_cast<REAL>(numbers[0]);
    epsilon = static_cast<REAL>(numbers[1]);
  }
  // The last tensor whose first block is not behind this one. Tensors without elements have no block and are skipped.
  int tensor = 0;
  for (int end = tensors; end - tensor > 1;) {
    const int middle = (tensor + end) / 2;
    if (table.first[middle] <= blockIdx.x)
      tensor = middle;
    else
      end = middle;
  }
  REAL* w = reinterpret_cast<REAL*>(table.w[tensor]);
  const REAL* g = reinterpret_cast<const REAL*>(table.g[tensor]);
  REAL* m = reinterpret_cast<REAL*>(table.m[tensor]);
  REAL* v = reinterpret_cast<REAL*>(table.v[tensor]);
  const long long size = static_cast<long long>(table.size[tensor]);
  const long long first = static_cast<long long>(blockIdx.x - table.first[tensor]) * BLOCK_ELEMENTS;
  const long long end = min(first + BLOCK_ELEMENTS, size);
#pragma unroll 2  // by four, as the compiler would have it, registers spill on sm_100
  for (long long i = first + threadIdx.x; i < end; i += THREADS) {
    m[i] += keep1 * (g[i] - m[i]);
    v[i] += keep2 * (g[i] * g[i] - v[i]);
    w[i] -= rate * m[i] / (sqrt(v[i]) + epsilon);
  }
}
