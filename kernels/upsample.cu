// upsample.cu: nearest-neighbour upsampling by a whole factor, and its gradient, the sum over blocks of pixels.
//
// Thread -> output: thread i of the grid computes element i of the result, in the order of memory. Neighbouring threads
//   have neighbouring channels, so reads lie side by side as well.
// Shared memory: none. Each sum is one thread's, in the order of memory: deterministic.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

// x (N, H, width, channels) -> y (N, H scale, width scale, channels) of n elements.
extern "C" __global__ void __launch_bounds__(256)
    upsample(const REAL* x, REAL* y, int width, int channels, int scale, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const int index = static_cast<int>(i), wide = width * scale;
  const int c = index % channels, column = index / channels % wide;
  const int row = index / channels / wide;  // counted through all images, each H scale high
  y[i] = x[(row / scale * width + column / scale) * channels + c];
}

// x (N, H scale, width scale, channels) -> y (N, H, width, channels) of n elements.
extern "C" __global__ void __launch_bounds__(256)
    sum_blocks(const REAL* x, REAL* y, int width, int channels, int scale, int n) {
  const long long i = grid_thread();
  if (i >= n) return;
  const int index = static_cast<int>(i), wide = width * scale;
  const int c = index % channels, column = index / channels % width, row = index / channels / width;
  REAL sum = 0;
  for (int a = 0; a < scale; a++)
    for (int b = 0; b < scale; b++) sum += x[((row * scale + a) * wide + column * scale + b) * channels + c];
  y[i] = sum;
}
