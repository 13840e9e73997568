// max_pool.cu: max-pooling, its gradient, and the gradient of that.
//
// Idea: forward writes down where each maximum stood, as h * W + w within its image and channel. Its gradient is a gather
//   too: an input pixel looks at the windows that it lies in and adds the gradients of those whose maximum it was, in the
//   order of memory. Scattering instead would need atomic additions, whose order, and so whose rounding, is chance.
// Thread -> output: thread i of the grid computes element i of the result; of numbers of 16 bits, 8 neighbours from
//   element 8 i on, which are channels of one pixel.
// Shared memory: none.
//
// X_TYPE: how the values lie in memory, REAL or 16 bits of it.
//
// variants: [{"REAL": "float", "X_TYPE": ["float", "bf16", "fp16"]}, {"REAL": "double", "X_TYPE": "double"}]
#include "common.cuh"
#include "stored.cuh"

constexpr int COUNT = TOGETHER<X_TYPE>;
constexpr int INDICES = COUNT == 1 ? 1 : 4;  // that are read and written at once: 16 bytes

// Input (n, h, w, c), output (n, p, q, c), windows of kernel_h x kernel_w; the padding above and to the left.
struct Pool {
  int n, h, w, c, p, q, kernel_h, kernel_w, stride_h, stride_w, top, left;
};

// x (N, H, W, C) -> y, index (N, P, Q, C). The first of equals wins; a NaN wins over everything.
extern "C" __global__ void __launch_bounds__(256)
    max_pool(const X_TYPE* x, X_TYPE* y, int* index, Pool g, int count) {
  const long long i = grid_thread() * COUNT;
  if (i >= count) return;
  const int output = static_cast<int>(i);
  const int c = output % g.c, q = output / g.c % g.q, p = output / g.c / g.q % g.p, n = output / g.c / g.q / g.p;
  const int top = p * g.stride_h - g.top, left = q * g.stride_w - g.left;
  REAL best[COUNT] = {};
  Neighbours<int, INDICES> where[COUNT / INDICES];
#pragma unroll
  for (int v = 0; v < COUNT; v++) where[v / INDICES].of[v % INDICES] = -1;
  for (int h = max(top, 0); h < min(top + g.kernel_h, g.h); h++)
    for (int w = max(left, 0); w < min(left + g.kernel_w, g.w); w++) {
      const auto xs = load<X_TYPE, COUNT>(x + ((n * g.h + h) * g.w + w) * g.c + c);
#pragma unroll
      for (int v = 0; v < COUNT; v++) {
        const REAL value = widened(xs.of[v]);
        int& place = where[v / INDICES].of[v % INDICES];
        if (place < 0 || value > best[v] || value != value) {
          best[v] = value;
          place = h * g.w + w;
        }
      }
    }
  store(y + i, best);
#pragma unroll
  for (int v = 0; v < COUNT; v += INDICES) store(index + i + v, where[v / INDICES]);
}

// gy, index (N, P, Q, C) -> gx (N, H, W, C). Each index must lie in its own window. (256, 1: left to
// itself, the compiler spills a register or two so as to need fewer.)
extern "C" __global__ void __launch_bounds__(256, 1)
    put_maxima(const X_TYPE* gy, const int* index, X_TYPE* gx, Pool g, int count) {
  const long long i = grid_thread() * COUNT;
  if (i >= count) return;
  const int input = static_cast<int>(i);
  const int c = input % g.c, w = input / g.c % g.w, h = input / g.c / g.w % g.h, n = input / g.c / g.w / g.h;
  // The windows that hold row h: p stride - top <= h < p stride - top + kernel. Likewise the columns.
  const int first_p = ceil_div(max(h + g.top - g.kernel_h + 1, 0), g.stride_h);
  const int first_q = ceil_div(max(w + g.left - g.kernel_w + 1, 0), g.stride_w);
  REAL sums[COUNT] = {};
  for (int p = first_p; p <= min((h + g.top) / g.stride_h, g.p - 1); p++)
    for (int q = first_q; q <= min((w + g.left) / g.stride_w, g.q - 1); q++) {
      const int output = ((n * g.p + p) * g.q + q) * g.c + c;
      const auto gys = load<X_TYPE, COUNT>(gy + output);
#pragma unroll
      for (int first = 0; first < COUNT; first += INDICES) {
        const auto where = load<int, INDICES>(index + output + first);
#pragma unroll
        for (int v = 0; v < INDICES; v++)
          if (where.of[v] == h * g.w + w) sums[first + v] += widened(gys.of[first + v]);
      }
    }
  store(gx + i, sums);
}

// x (N, H, W, C), index (N, P, Q, C) -> y (N, P, Q, C): the values that stand where the index says.
extern "C" __global__ void __launch_bounds__(256)
    take_maxima(const REAL* x, const int* index, REAL* y, Pool g, int count) {
  const long long i = grid_thread();
  if (i >= count) return;
  const int output = static_cast<int>(i), c = output % g.c, n = output / g.c / g.q / g.p;
  y[i] = x[(n * g.h * g.w + index[i]) * g.c + c];
}
