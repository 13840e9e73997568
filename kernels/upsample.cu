// upsample.cu: nearest-neighbour upsampling by a whole factor, and its gradient, the sum over blocks of pixels.
//
// Thread -> output: thread i of the grid computes element i of the result, in the order of memory; of numbers of 16 bits,
//   8 neighbours from element 8 i on, which are channels of one pixel. Neighbouring threads have neighbouring channels, so
//   reads lie side by side as well.
// Shared memory: none. Each sum is one thread's, in the order of memory: deterministic.
//
// X_TYPE: how x and y lie in memory, REAL or 16 bits of it.
//
// variants: [{"REAL": "float", "X_TYPE": ["float", "bf16", "fp16"]}, {"REAL": "double", "X_TYPE": "double"}]
#include "common.cuh"
#include "stored.cuh"

constexpr int COUNT = TOGETHER<X_TYPE>;

// x (N, H, width, channels) -> y (N, H scale, width scale, channels) of n elements.
extern "C" __global__ void __launch_bounds__(256)
    upsample(const X_TYPE* x, X_TYPE* y, int width, int channels, int scale, int n) {
  const long long i = grid_thread() * COUNT;
  if (i >= n) return;
  const int index = static_cast<int>(i), wide = width * scale;
  const int c = index % channels, column = index / channels % wide;
  const int row = index / channels / wide;  // counted through all images, each H scale high
  store(y + i, load<X_TYPE, COUNT>(x + (row / scale * width + column / scale) * channels + c));
}

// x (N, H scale, width scale, channels) -> y (N, H, width, channels) of n elements. (256, 1: left to itself, the compiler spills a
// register or two so as to need fewer.)
extern "C" __global__ void __launch_bounds__(256, 1)
    sum_blocks(const X_TYPE* x, X_TYPE* y, int width, int channels, int scale, int n) {
  const long long i = grid_thread() * COUNT;
  if (i >= n) return;
  const int index = static_cast<int>(i), wide = width * scale;
  const int c = index % channels, column = index / channels % width, row = index / channels / width;
  REAL sums[COUNT] = {};
  for (int a = 0; a < scale; a++)
    for (int b = 0; b < scale; b++) {
      const auto xs = load<X_TYPE, COUNT>(x + ((row * scale + a) * wide + column * scale + b) * channels + c);
#pragma unroll
      for (int v = 0; v < COUNT; v++) sums[v] += widened(xs.of[v]);
    }
  store(y + i, sums);
}
