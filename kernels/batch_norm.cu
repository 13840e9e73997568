// batch_norm.cu: batch normalisation over the rows of a (rows, channels) matrix, NHWC with N H W as rows; forward and
// backward, each with a LeakyReLU behind it if wanted.
//
// Idea: a reduction over rows in two steps. Blocks reduce fixed chunks of rows; one more launch adds the chunks up, in order
//   and in double. What is added to what depends on the shape alone: deterministic, without atomics.
//   Moments take one pass over x: a thread sums d and d^2, d = x - its own first value. The usual danger, that the sum of
//   squares cancels, is gone where that value lies near the data: of n values none lies farther from their mean than
//   sqrt(n - 1) standard deviations (Samuelson), so at worst n roundings are lost, however large the mean is.
// Thread -> output: a block of 32 x 8 threads has 32 channels (one lane each, so a warp reads 32 neighbours) and a chunk
//   of rows, of which thread y takes every eighth. Grid: tiles of channels, chunks of rows.
// Shared memory: 2 KiB (a double for each thread) where sums are formed, else none.
//
// Statistics of a channel are double. `centre` is the mean as REAL, and what it lacks is put into the constant term.
//
// variants: {"REAL": ["float", "double"]}
#include "common.cuh"

#define LANES 32
#define ROWS 8

// This thread's channel, and the rows of its block: count of them from `first` on.
struct Part {
  int c, first, count;
};

__device__ __forceinline__ Part block_part(int rows, int channels, int chunk_rows) {
  const int c = blockIdx.x * LANES + threadIdx.x, first = blockIdx.y * chunk_rows;
  return {c, first, c < channels ? min(chunk_rows, rows - first) : 0};
}

// The sum over the block's 8 rows of threads, in their order, for each lane; every thread gets it.
__device__ __forceinline__ double sum_rows(double value) {
  __shared__ double values[ROWS][LANES];
  __syncthreads();  // the values of the call before have been read
  values[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
  for (int row = 0; row < ROWS; row++) sum += values[row][threadIdx.x];
  return sum;
}

// Normalisation as slope * (x - centre) + shift.
struct Affine {
  REAL centre, slope, shift;
};

__device__ __forceinline__ Affine affine(double average, double scale, double beta) {
  const REAL centre = static_cast<REAL>(average);
  return {centre, static_cast<REAL>(scale), static_cast<REAL>(beta - scale * (average - centre))};
}

// The same instruction in forward and backward, so that both agree on the sign.
__device__ __forceinline__ REAL apply(const Affine& a, REAL x) { return fma(a.slope, x - a.centre, a.shift); }

// x (rows, channels) -> means, squares (chunks, channels): of each chunk, the mean and the sum of squared differences.
extern "C" __global__ void __launch_bounds__(256)
    moments(const REAL* x, double* means, double* squares, int rows, int channels, int chunk_rows) {
  const Part part = block_part(rows, channels, chunk_rows);
  REAL origin = 0, sum = 0, square = 0;
  int n = 0;
  for (int i = threadIdx.y; i < part.count; i += ROWS) {
    const REAL value = x[(part.first + i) * channels + part.c];
    if (n == 0) origin = value;
    const REAL d = value - origin;
    sum += d;
    square += d * d;
    n++;
  }
  const double offset = n ? static_cast<double>(sum) / n : 0;
  const double mean = origin + offset;
  const double total = sum_rows(n * mean) / max(part.count, 1);
  const double spread = sum_rows(square - sum * offset + n * (mean - total) * (mean - total));
  if (threadIdx.y == 0 && part.c < channels) {
    means[blockIdx.y * channels + part.c] = total;
    squares[blockIdx.y * channels + part.c] = spread;
  }
}

// means, squares (chunks, channels) -> average, variance (channels), the biased one, and what normalises by them: inverse =
// 1 / sqrt(variance + epsilon), scale = gamma inverse.   Grid: tiles of channels.
extern "C" __global__ void __launch_bounds__(256)
    combine_moments(const double* means, const double* squares, const REAL* gamma, double* average, double* variance,
                    double* inverse, double* scale, double epsilon, int rows, int channels, int chunk_rows, int chunks) {
  const int c = blockIdx.x * LANES + threadIdx.x;
  const bool inside = c < channels;
  double sum = 0;
  for (int i = threadIdx.y; i < chunks && inside; i += ROWS)
    sum += min(chunk_rows, rows - i * chunk_rows) * means[i * channels + c];
  const double mean = sum_rows(sum) / rows;
  double square = 0;
  for (int i = threadIdx.y; i < chunks && inside; i += ROWS) {
    const double d = means[i * channels + c] - mean;
    square += squares[i * channels + c] + min(chunk_rows, rows - i * chunk_rows) * d * d;
  }
  square = sum_rows(square);
  if (threadIdx.y == 0 && inside) {
    average[c] = mean;
    variance[c] = square / rows;
    inverse[c] = 1 / sqrt(square / rows + epsilon);
    scale[c] = gamma[c] * inverse[c];
  }
}

// running = momentum running + (1 - momentum) batch's, whose variance is the unbiased one. Null: there is none.   Grid: tiles
// of channels.
extern "C" __global__ void __launch_bounds__(256)
    update_running(const double* average, const double* variance, REAL* running_mean, REAL* running_var, double momentum,
                   int rows, int channels) {
  const int c = blockIdx.x * LANES + threadIdx.x;
  if (threadIdx.y != 0 || c >= channels) return;
  const double unbiased = variance[c] * rows / (rows - 1);
  if (running_mean) running_mean[c] = static_cast<REAL>(momentum * running_mean[c] + (1 - momentum) * average[c]);
  if (running_var) running_var[c] = static_cast<REAL>(momentum * running_var[c] + (1 - momentum) * unbiased);
}

// y = leaky(scale (x - average) + beta), where leaky(v) = v > 0 ? v : negative * v; negative = 1: no LeakyReLU.
extern "C" __global__ void __launch_bounds__(256)
    normalize(const REAL* x, const double* average, const double* scale, const REAL* beta, REAL* y, REAL negative, int rows,
              int channels, int chunk_rows) {
  const Part part = block_part(rows, channels, chunk_rows);
  if (part.count == 0) return;
  const Affine a = affine(average[part.c], scale[part.c], beta[part.c]);
  for (int i = threadIdx.y; i < part.count; i += ROWS) {
    const int at = (part.first + i) * channels + part.c;
    const REAL value = apply(a, x[at]);
    y[at] = value > 0 ? value : negative * value;
  }
}

// x, gy (rows, channels) -> sums, products (chunks, channels): of each chunk, the sums of g and of g (x - average), where
// g = gy, or behind a LeakyReLU gy times its slope. beta null: no LeakyReLU, and `negative` is not read.
extern "C" __global__ void __launch_bounds__(256)
    gradient_sums(const REAL* x, const REAL* gy, const REAL* gamma, const double* average, const double* inverse,
                  const REAL* beta, double* sums, double* products, REAL negative, int rows, int channels,
                  int chunk_rows) {
  const Part part = block_part(rows, channels, chunk_rows);
  REAL sum = 0, product = 0;
  double missing = 0;
  if (part.count > 0) {
    const int c = part.c;
    const Affine a = affine(average[c], gamma[c] * inverse[c], beta ? beta[c] : 0);
    for (int i = threadIdx.y; i < part.count; i += ROWS) {
      const int at = (part.first + i) * channels + c;
      const REAL g = beta && !(apply(a, x[at]) > 0) ? negative * gy[at] : gy[at];
      sum += g;
      product += g * (x[at] - a.centre);
    }
    missing = average[c] - a.centre;
  }
  const double total = sum_rows(sum), total_product = sum_rows(product - missing * sum);
  if (threadIdx.y == 0 && part.c < channels) {
    sums[blockIdx.y * channels + part.c] = total;
    products[blockIdx.y * channels + part.c] = total_product;
  }
}

// sums, products (chunks, channels) -> ggamma, gbeta (channels), and the three coefficients (3, channels) of gx =
// gamma / sigma (g - mean(g) - x^ mean(g x^)) as k0 g + k1 (x - centre) + k2.   Grid: tiles of channels.
extern "C" __global__ void __launch_bounds__(256)
    combine_gradients(const double* sums, const double* products, const REAL* gamma, const double* average,
                      const double* inverse, REAL* ggamma, REAL* gbeta, double* coefficients, int rows, int channels,
                      int chunks) {
  const int c = blockIdx.x * LANES + threadIdx.x;
  const bool inside = c < channels;
  double sum = 0, product = 0;
  for (int i = threadIdx.y; i < chunks && inside; i += ROWS) {
    sum += sums[i * channels + c];
    product += products[i * channels + c];
  }
  sum = sum_rows(sum);
  product = sum_rows(product);
  if (threadIdx.y == 0 && inside) {
    const double scale = gamma[c] * inverse[c], slope = -scale * inverse[c] * inverse[c] * product / rows;
    gbeta[c] = static_cast<REAL>(sum);
    ggamma[c] = static_cast<REAL>(product * inverse[c]);
    coefficients[c] = scale;
    coefficients[channels + c] = slope;
    coefficients[2 * channels + c] = -scale * sum / rows - slope * (average[c] - static_cast<REAL>(average[c]));
  }
}

// gx = k0 g + k1 (x - centre) + k2, with the coefficients of combine_gradients and g as in gradient_sums.
extern "C" __global__ void __launch_bounds__(256)
    input_gradient(const REAL* x, const REAL* gy, const REAL* gamma, const double* average, const double* inverse,
                   const REAL* beta, const double* coefficients, REAL* gx, REAL negative, int rows, int channels,
                   int chunk_rows) {
  const Part part = block_part(rows, channels, chunk_rows);
  if (part.count == 0) return;
  const int c = part.c;
  const Affine a = affine(average[c], gamma[c] * inverse[c], beta ? beta[c] : 0);
  const REAL k0 = static_cast<REAL>(coefficients[c]);
  const REAL k1 = static_cast<REAL>(coefficients[channels + c]);
  const REAL k2 = static_cast<REAL>(coefficients[2 * channels + c]);
  for (int i = threadIdx.y; i < part.count; i += ROWS) {
    const int at = (part.first + i) * channels + c;
    const REAL g = beta && !(apply(a, x[at]) > 0) ? negative * gy[at] : gy[at];
    gx[at] = k0 * g + k1 * (x[at] - a.centre) + k2;
  }
}
