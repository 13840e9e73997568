// elements_16_bits.cu: what is done to single numbers of tensors that are kept in 16 bits. Their number is a multiple of
// 8, as channels are; a thread has 8 neighbours, so that it reads and writes 16 bytes at once.
//
// variants: {"HALF": ["bf16", "fp16"]}
#include "common.cuh"
#include "stored.cuh"

constexpr int COUNT = 8;

// y = x as float: for those who read float32.
extern "C" __global__ void __launch_bounds__(256) widen(const HALF* x, float* y, int n) {
  const long long i = grid_thread() * COUNT;
  if (i >= n) return;
  const auto xs = load<HALF, COUNT>(x + i);
#pragma unroll
  for (int first = 0; first < COUNT; first += 4) {
    float values[4];
#pragma unroll
    for (int v = 0; v < 4; v++) values[v] = widened(xs.of[first + v]);
    store(y + i + first, values);
  }
}

// As scale_negative of leaky_relu.cu.
extern "C" __global__ void __launch_bounds__(256)
    scale_negative_16_bits(const HALF* condition, const HALF* x, HALF* y, float slope, int n) {
  const long long i = grid_thread() * COUNT;
  if (i >= n) return;
  const auto conditions = load<HALF, COUNT>(condition + i), xs = load<HALF, COUNT>(x + i);
  float values[COUNT];
#pragma unroll
  for (int v = 0; v < COUNT; v++) {
    const float value = widened(xs.of[v]);
    const float scaled = slope == 0 && value == value ? 0 : slope * value;
    values[v] = widened(conditions.of[v]) > 0 ? value : scaled;
  }
  store(y + i, values);
}
