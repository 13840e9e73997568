// three_columns.cu: products of at most three columns, the ends of the networks: an image's colours as outputs (K = 3), or
// the gradient of an image (C = 3).
//
// Idea: the ladder's tiles have 16 or 64 columns, of which three would count. Here nothing is computed in vain: a thread
//   makes all three columns of ROWS pixels, so that what it reads of the image serves 3 outputs, and what it reads of the
//   filters, the same for all lanes of a warp, ROWS. Not a rung: it has no weight gradient, and its patches have at most 5
//   taps an axis and begin one pixel apart, as all classes of an input gradient do, and forward passes of stride 1.
// Thread -> output: a block makes 16 x 32 pixels of an image, warp i its rows 4 i ... 4 i + 3, a lane one pixel of each.
// Shared memory: 8 channels of the 20 x 36 pixels that these read, 12 floats apart, so that the 16-byte reads of
//   neighbouring lanes meet different banks (eight lanes at once: 12 i mod 32 are the multiples of 4); and 25 x 3 x 8
//   numbers of the filters. 36960 bytes.
// Input gradient: parity class blockIdx.z. Sums are float; every factor is as it is, in any precision: a is float, or
//   A_TYPE of 16 bits, where the layer before has left those.
// Next: pixels below each other read the same rows of the image; a thread that kept them would read less.
//
// variants: [{"VECTOR_A": [4, 1], "A_TYPE": "float"}, {"VECTOR_A": 4, "A_TYPE": ["bf16", "fp16"]}]
#include "common.cuh"
#include "geometry.cuh"
#include "stored.cuh"

constexpr int COLUMNS = 3, TAPS = 5, ROWS = 4, TILE_H = 16, TILE_W = 32, THREADS = TILE_W * TILE_H / ROWS;
constexpr int CHANNELS = 8, PITCH = CHANNELS + 4, READ_H = TILE_H + TAPS - 1, READ_W = TILE_W + TAPS - 1;
static_assert(CHANNELS % VECTOR_A == 0 && CHANNELS % 4 == 0, "shared memory is read in vectors of four");

template <class Pass>
__device__ __forceinline__ void product(const Pass& pass, const A_TYPE* a, const float* b, const float* bias, float* y) {
  __shared__ __align__(16) float image[READ_H * READ_W * PITCH], filters[TAPS * TAPS * COLUMNS * CHANNELS];
  const Patches& of = pass.a.patches;
  const int tiles_w = ceil_div(of.pixels_w, TILE_W), tiles = ceil_div(of.pixels_h, TILE_H) * tiles_w;
  const int n = blockIdx.x / tiles, tile = blockIdx.x - n * tiles;
  const int row0 = tile / tiles_w * TILE_H, column0 = tile % tiles_w * TILE_W;  // the tile's first pixel
  const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * ROWS;
  // The pixel that is read first, whichever way the taps go.
  const int back_h = of.direction < 0 ? of.taps_h - 1 : 0, back_w = of.direction < 0 ? of.taps_w - 1 : 0;
  const int h0 = of.first_h + row0 - back_h, w0 = of.first_w + column0 - back_w;
  const int taps = of.taps_h * of.taps_w, read_w = TILE_W + of.taps_w - 1;
  const int read = (TILE_H + of.taps_h - 1) * read_w;
  float sums[ROWS][COLUMNS] = {};
  for (int c0 = 0; c0 < of.channels; c0 += CHANNELS) {
    for (int i = threadIdx.x; i < read * (CHANNELS / VECTOR_A); i += THREADS) {
      const int pixel = i / (CHANNELS / VECTOR_A), c = i % (CHANNELS / VECTOR_A) * VECTOR_A;
      const int h = h0 + pixel / read_w, w = w0 + pixel % read_w;
      const bool inside = h >= 0 && h < of.height && w >= 0 && w < of.width && c0 + c < of.channels;
      const A_TYPE* const from = a + (inside ? ((n * of.height + h) * of.width + w) * of.channels + c0 + c : 0);
      Neighbours<A_TYPE, VECTOR_A> values = {};
      if (inside) values = load<A_TYPE, VECTOR_A>(from);
      float floats[VECTOR_A];
#pragma unroll
      for (int v = 0; v < VECTOR_A; v++) floats[v] = widened(values.of[v]);
      store(image + pixel * PITCH + c, floats);
    }
    for (int i = threadIdx.x; i < taps * COLUMNS * CHANNELS; i += THREADS) {
      const int c = c0 + i % CHANNELS, column = i / CHANNELS % COLUMNS, tap = i / CHANNELS / COLUMNS;
      const int d = c < of.channels ? tap * of.channels + c : pass.end;
      const int index = element(pass.b, pass.b.line(column), d, pass.end);
      filters[i] = index < 0 ? 0 : b[index];
    }
    __syncthreads();  // the tiles are complete
    for (int r = 0; r < of.taps_h; r++)
      for (int s = 0; s < of.taps_w; s++) {
        const float* const filter = filters + (r * of.taps_w + s) * COLUMNS * CHANNELS;
        const float* const pixels =
            image + ((first_row + back_h + of.direction * r) * read_w + lane + back_w + of.direction * s) * PITCH;
#pragma unroll
        for (int c = 0; c < CHANNELS; c += 4) {
          float4 factors[COLUMNS];
#pragma unroll
          for (int k = 0; k < COLUMNS; k++) factors[k] = *reinterpret_cast<const float4*>(filter + k * CHANNELS + c);
#pragma unroll
          for (int i = 0; i < ROWS; i++) {
            const float4 x = *reinterpret_cast<const float4*>(pixels + i * read_w * PITCH + c);
#pragma unroll
            for (int k = 0; k < COLUMNS; k++) {
              sums[i][k] += x.x * factors[k].x;
              sums[i][k] += x.y * factors[k].y;
              sums[i][k] += x.z * factors[k].z;
              sums[i][k] += x.w * factors[k].w;
            }
          }
        }
      }
    __syncthreads();  // and may be overwritten
  }
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    const int row = row0 + first_row + i, column = column0 + lane;
    if (row >= of.pixels_h || column >= of.pixels_w) continue;
    const int begin = pass.output(Position{n, row, column});
#pragma unroll
    for (int k = 0; k < COLUMNS; k++)
      if (k < pass.columns) y[begin + k] = pass.finish(sums[i][k], bias, k);
  }
}

// __launch_bounds__(THREADS, 1): as in passes.cuh, so that registers are not saved by spilling.

// x (N, H, W, C), w (K, R, S, C), bias (K) or null -> y (N, P, Q, K).   Grid: tiles of all images.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_forward(const A_TYPE* x, const float* w, const float* bias, float* y, Conv g) {
  product(Forward(g), x, w, bias, y);
}

// gy (N, P, Q, K), w (K, R, S, C), bias (C) or null -> gx (N, H, W, C).   Grid: tiles of all images of the largest class,
// 1, classes.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv2d_input_grad(const A_TYPE* gy, const float* w, const float* bias, float* gx, Conv g) {
  const InputGrad pass(g, blockIdx.z);
  const Patches& of = pass.a.patches;
  // The same for all threads of the block; a class may have fewer tiles than the largest one.
  const int tiles = ceil_div(of.pixels_h, TILE_H) * ceil_div(of.pixels_w, TILE_W);
  if (static_cast<int>(blockIdx.x) < g.n * tiles) product(pass, gy, w, bias, gx);
}
