// elements_16_bits.cu: what is done to single numbers of tensors that are kept in 16 bits. Their number is a multiple of
// 8, as channels are; a thread has 8 neighbours, so that it reads and writes 16 bytes at once.
//
// variants: {"HALF": ["bf16", "fp16"]}
#include "common.cuh"
#include "elu.cuh"
#include "stored.cuh"

constexpr int COUNT = TOGETHER<HALF>;

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

// y = function(a, b), number by number.
template <class Function>
__device__ __forceinline__ void each(const HALF* a, const HALF* b, HALF* y, int n, Function function) {
  const long long i = grid_thread() * COUNT;
  if (i >= n) return;
  const auto as = load<HALF, COUNT>(a + i), bs = load<HALF, COUNT>(b + i);
  float values[COUNT];
#pragma unroll
  for (int v = 0; v < COUNT; v++) values[v] = function(widened(as.of[v]), widened(bs.of[v]));
  store(y + i, values);
}

// As scale_negative of leaky_relu.cu.
extern "C" __global__ void __launch_bounds__(256)
    scale_negative_16_bits(const HALF* condition, const HALF* x, HALF* y, float slope, int n) {
  each(condition, x, y, n, [=](float of, float value) {
    const float scaled = slope == 0 && value == value ? 0 : slope * value;
    return of > 0 ? value : scaled;
  });
}

// As elu of elu.cu.
extern "C" __global__ void __launch_bounds__(256) elu_16_bits(const HALF* x, HALF* y, float alpha, int n) {
  each(x, x, y, n, [=](float value, float) { return elu_of(value, alpha); });
}

// As elu_gradient of elu.cu.
extern "C" __global__ void __launch_bounds__(256)
    elu_gradient_16_bits(const HALF* y, const HALF* gy, HALF* gx, float alpha, int n) {
  each(y, gy, gx, n, [=](float out, float gradient) { return elu_gradient_of(out, gradient, alpha); });
}
