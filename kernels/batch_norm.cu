// batch_norm.cu: batch normalisation over the rows of a (groups, rows, channels) array, NHWC with N H W as rows; forward
// and backward, each with a LeakyReLU behind it if wanted. A group is a batch of its own, with statistics of its own.
//
// Idea: two launches each way, one that sums over rows and one that goes through the elements. Blocks sum chunks of rows;
//   the last block of a tile of channels to finish adds the chunks up, in order and in double. Which block that is differs
//   from run to run, what is added to what depends on the shape alone: deterministic. `finished` counts the blocks, in
//   integers; the last one sets it back to 0, for the next launch.
//   Where the convolution that made x has left the moments of its parts (conv2d/fragments.cuh), combine_moments sums over
//   those, and x is not read for them.
//   Moments take one pass over x: a thread sums d and d^2, d = x - its own first value. The usual danger, that the sum of
//   squares cancels, is gone where that value lies near the data: of n values none lies farther from their mean than
//   sqrt(n - 1) standard deviations (Samuelson), so at worst n roundings are lost, however large the mean is.
// Thread -> output: a block has a tile of 32 channels and a chunk of a group's rows. A thread has VECTOR neighbouring
//   channels, so 32 / VECTOR lanes read 128 bytes side by side, and takes every ROWS-th row, ROWS = 8 VECTOR; the loads of
//   IN_FLIGHT rows are asked for before the first is used. Grid: tiles of channels, chunks of rows, groups.
// Bytes in flight (computed, Little's law): 4 TB/s from memory that answers after 0.8 microseconds are 3.2 MB on their way,
//   24 KB for each of 132 multiprocessors. A thread asks for IN_FLIGHT x 16 bytes of x at once, a block for 16 KB; large
//   arrays are cut into some 512 blocks, 4 a multiprocessor, which makes 64 KB. With a float a thread, 4 KB.
// Shared memory: (2 ROWS + 8) x 32 doubles, 6 or 18 KiB, where sums are formed, else none.
//
// Statistics of a channel are double. `centre` is the mean as REAL, and what it lacks is put into the constant term.
// VECTOR = 4 wants x, y and gy at multiples of 16 bytes, and channels that are a multiple of 4.
//
// x and gx lie in memory as X_TYPE, y and gy as Y_TYPE: REAL, or 16 bits of it, as convolutions write and read them. A load
//   of four of these brings half the bytes, so a thread asks for twice as many.
//
// variants: [{"REAL": "float", "VECTOR": [1, 4], "X_TYPE": "float", "Y_TYPE": "float"},
//            {"REAL": "double", "VECTOR": 1, "X_TYPE": "double", "Y_TYPE": "double"},
//            {"REAL": "float", "VECTOR": 4, "X_TYPE": "bf16", "Y_TYPE": ["bf16", "float"]},
//            {"REAL": "float", "VECTOR": 4, "X_TYPE": "fp16", "Y_TYPE": ["fp16", "float"]}]
#include "common.cuh"
#include "last_block.cuh"
#include "stored.cuh"

#define TILE 32
#define LANES (TILE / VECTOR)
#define SHARES 8
#define ROWS (SHARES * VECTOR)
constexpr int IN_FLIGHT = sizeof(X_TYPE) == 2 ? 8 : 4;  // loads that a thread asks for at once
constexpr int PAIRS = IN_FLIGHT / 2;                    // of two arrays, then

// Of VECTOR neighbouring channels.
using Xs = Neighbours<X_TYPE, VECTOR>;
using Ys = Neighbours<Y_TYPE, VECTOR>;

__device__ __forceinline__ int rows_of(int chunk, int rows, int chunk_rows) {
  return min(chunk_rows, rows - chunk * chunk_rows);
}

// This thread's first channel, also as `s` among the statistics of all groups, and its rows: `count`, of which the first
// is at x[at], each `step` elements behind the one before.
struct Part {
  int c, s, at, step, count;
};

__device__ __forceinline__ Part thread_part(int rows, int channels, int chunk_rows) {
  const int c = blockIdx.x * TILE + threadIdx.x * VECTOR, group = blockIdx.z;
  const int first = blockIdx.y * chunk_rows + threadIdx.y;
  const int left = rows_of(blockIdx.y, rows, chunk_rows) - static_cast<int>(threadIdx.y);
  const int count = c < channels && left > 0 ? ceil_div(left, ROWS) : 0;
  return {c, group * channels + c, (group * rows + first) * channels + c, ROWS * channels, count};
}

// How many of a chunk's rows a row of threads takes.
__device__ __forceinline__ int rows_taken(int row, int chunk_count) { return ceil_div(max(chunk_count - row, 0), ROWS); }

// Sums are finished with one channel a thread: channel t % 32 of the tile, t = 0 ... 255, and share t / 32 of 8.
struct Share {
  int lane, number, c;
};

__device__ __forceinline__ Share thread_share() {
  const int t = threadIdx.y * LANES + threadIdx.x, lane = t % TILE;
  return {lane, t / TILE, static_cast<int>(blockIdx.x) * TILE + lane};
}

// The sum over the 8 shares, in their order, of each channel; every thread gets its channel's.
__device__ __forceinline__ double sum_shares(const Share& share, double value) {
  __shared__ double values[SHARES][TILE];
  __syncthreads();  // the values of the call before have been read
  values[share.number][share.lane] = value;
  __syncthreads();
  double sum = 0;
  for (int number = 0; number < SHARES; number++) sum += values[number][share.lane];
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

// The mean of some rows, and the sum of the squared differences from it.
struct Combined {
  double mean, spread;
};

// Of a thread's channel, those of the `rows` rows that items number first to last - 1 have together, item i rows_in(i) of
// them, with mean_of(i) and squares_of(i), of which AHEAD are asked for at once. (Chan, Golub and LeVeque, "Updating
// formulae and a pairwise algorithm for computing sample variances", 1979.)
template <int AHEAD, class Rows, class Mean, class Squares>
__device__ __forceinline__ Combined combine(const Share& share, int first, int last, int channels, int rows,
                                            Rows rows_in, Mean mean_of, Squares squares_of) {
  double mean = 0, spread = 0;
  if (share.c >= channels) last = first;
#pragma unroll AHEAD
  for (int i = first + share.number; i < last; i += SHARES) mean += rows_in(i) * mean_of(i);
  mean = sum_shares(share, mean) / rows;
#pragma unroll AHEAD
  for (int i = first + share.number; i < last; i += SHARES) {
    const double d = mean_of(i) - mean;
    spread += squares_of(i) + rows_in(i) * d * d;
  }
  return {mean, sum_shares(share, spread)};
}

// What moments and combine_moments are given and make; moments describes it.
struct Statistics {
  const REAL* gamma;
  const double *means, *squares;
  double *average, *variance, *inverse, *scale;
  REAL *running_mean, *running_var;
  double momentum, epsilon;
};

// By the last block of a tile of channels: all groups' from those of their chunks, of rows_in(chunk) rows each.
template <class Rows>
__device__ __forceinline__ void finish_moments(const Share& share, const Statistics& of, int rows, int channels,
                                               Rows rows_in) {
  const int c = share.c, chunks = gridDim.y;
  for (int group = 0; group < gridDim.z; group++) {
    const int first = group * chunks * channels + c;
    const Combined all = combine<1>(
        share, 0, chunks, channels, rows, rows_in, [=](int chunk) { return of.means[first + chunk * channels]; },
        [=](int chunk) { return of.squares[first + chunk * channels]; });
    if (share.number != 0 || c >= channels) continue;
    const int s = group * channels + c;
    const double biased = all.spread / rows, unbiased = all.spread / (rows - 1);
    of.average[s] = all.mean;
    of.variance[s] = biased;
    of.inverse[s] = 1 / sqrt(biased + of.epsilon);
    of.scale[s] = of.gamma[c] * of.inverse[s];
    auto average = [&](REAL* running, double value) {
      if (running) running[c] = static_cast<REAL>(of.momentum * running[c] + (1 - of.momentum) * value);
    };
    average(of.running_mean, all.mean);
    average(of.running_var, unbiased);
  }
}

// x (groups, rows, channels) -> average, variance (groups, channels), the biased one, and what normalises by them: inverse =
// 1 / sqrt(variance + epsilon), scale = gamma inverse. means, squares (groups, chunks, channels): of each chunk, the mean
// and the sum of squared differences. finished (tiles of channels): 0 before and after.
// running = momentum running + (1 - momentum) batch's, group after group, whose variance is the unbiased one. Null: there
// is none.
extern "C" __global__ void __launch_bounds__(256)
    moments(const X_TYPE* x, const REAL* gamma, double* means, double* squares, unsigned* finished, double* average,
            double* variance, double* inverse, double* scale, REAL* running_mean, REAL* running_var, double momentum,
            double epsilon, int rows, int channels, int chunk_rows) {
  const Part part = thread_part(rows, channels, chunk_rows);
  Xs first_row = {};
  if (part.count > 0) first_row = load<X_TYPE, VECTOR>(x + part.at);
  REAL origin[VECTOR], sum[VECTOR] = {}, square[VECTOR] = {};
  for (int v = 0; v < VECTOR; v++) origin[v] = widened(first_row.of[v]);
  for (int first = 0; first < part.count; first += IN_FLIGHT) {
    Xs xs[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++)
      xs[i] = first + i < part.count ? load<X_TYPE, VECTOR>(x + part.at + (first + i) * part.step) : first_row;
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++)
      for (int v = 0; v < VECTOR; v++) {
        const REAL d = widened(xs[i].of[v]) - origin[v];
        sum[v] += d;
        square[v] += d * d;
      }
  }
  __shared__ double thread_means[ROWS][TILE], thread_squares[ROWS][TILE];
  const double inverse_count = part.count ? 1.0 / part.count : 0;
  for (int v = 0; v < VECTOR; v++) {
    const int lane = threadIdx.x * VECTOR + v;
    const double offset = sum[v] * inverse_count;
    thread_means[threadIdx.y][lane] = origin[v] + offset;
    thread_squares[threadIdx.y][lane] = square[v] - sum[v] * offset;
  }
  __syncthreads();  // all threads' moments are there
  const Share share = thread_share();
  const int c = share.c, count = rows_of(blockIdx.y, rows, chunk_rows);
  const bool inside = c < channels;
  double mean = 0, spread = 0;
  for (int row = share.number * VECTOR; row < (share.number + 1) * VECTOR; row++)
    mean += rows_taken(row, count) * thread_means[row][share.lane];
  mean = sum_shares(share, mean) / count;
  for (int row = share.number * VECTOR; row < (share.number + 1) * VECTOR; row++) {
    const double d = thread_means[row][share.lane] - mean;
    spread += thread_squares[row][share.lane] + rows_taken(row, count) * d * d;
  }
  spread = sum_shares(share, spread);
  if (share.number == 0 && inside) {
    const int at = (blockIdx.z * gridDim.y + blockIdx.y) * channels + c;
    means[at] = mean;
    squares[at] = spread;
  }
  if (!last_block(finished + blockIdx.x, gridDim.y * gridDim.z)) return;

  finish_moments(share, {gamma, means, squares, average, variance, inverse, scale, running_mean, running_var, momentum,
                         epsilon},
                 rows, channels, [=](int chunk) { return rows_of(chunk, rows, chunk_rows); });
}

// How a convolution's output is cut into parts (minigan/ops/moments.py); numbers of one group.
struct Parts {
  int part_rows, class_rows, class_parts, run;
};

// The same statistics from moments that the convolution that made x has left (conv2d/fragments.cuh): part_means,
// part_squares (parts, channels). A block adds up chunk_parts parts of a group, of which each has `members`.
extern "C" __global__ void __launch_bounds__(256)
    combine_moments(const double* part_means, const float* part_squares, Parts parts, const REAL* gamma, double* means,
                    double* squares, unsigned* finished, double* average, double* variance, double* inverse,
                    double* scale, REAL* running_mean, REAL* running_var, double momentum, double epsilon, int members,
                    int rows, int channels, int chunk_parts) {
  const Share share = thread_share();
  const int c = share.c, group = blockIdx.z, groups = gridDim.z;
  auto rows_before = [=](int member) {
    return member / parts.class_parts * parts.class_rows + member % parts.class_parts * parts.part_rows;
  };
  auto index = [=](int member) {
    return ((member / parts.run * groups + group) * parts.run + member % parts.run) * channels + c;
  };
  auto chunk_rows = [=](int chunk) {
    return rows_before(min((chunk + 1) * chunk_parts, members)) - rows_before(chunk * chunk_parts);
  };
  const int first = blockIdx.y * chunk_parts;
  const Combined all = combine<IN_FLIGHT>(
      share, first, min(first + chunk_parts, members), channels, chunk_rows(blockIdx.y),
      [=](int member) { return rows_before(member + 1) - rows_before(member); },
      [=](int member) { return part_means[index(member)]; }, [=](int member) { return part_squares[index(member)]; });
  if (share.number == 0 && c < channels) {
    const int at = (group * gridDim.y + blockIdx.y) * channels + c;
    means[at] = all.mean;
    squares[at] = all.spread;
  }
  if (!last_block(finished + blockIdx.x, gridDim.y * groups)) return;
  finish_moments(share, {gamma, means, squares, average, variance, inverse, scale, running_mean, running_var, momentum,
                         epsilon},
                 rows, channels, chunk_rows);
}

// y = leaky(value), where leaky(v) = v > 0 ? v : negative * v; negative = 1: no LeakyReLU.
__device__ __forceinline__ void normalize_part(const X_TYPE* x, Y_TYPE* y, const Part& part, const Affine (&a)[VECTOR],
                                               REAL negative) {
  for (int first = 0; first < part.count; first += IN_FLIGHT) {
    Xs xs[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++)
      if (first + i < part.count) xs[i] = load<X_TYPE, VECTOR>(x + part.at + (first + i) * part.step);
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      if (first + i >= part.count) break;
      REAL ys[VECTOR];
      for (int v = 0; v < VECTOR; v++) {
        const REAL value = apply(a[v], widened(xs[i].of[v]));
        ys[v] = value > 0 ? value : negative * value;
      }
      store(y + part.at + (first + i) * part.step, ys);
    }
  }
}

// y = leaky(scale (x - average) + beta).   average, scale (groups, channels); beta (channels), or (groups, channels) if
// beta_of_group.
extern "C" __global__ void __launch_bounds__(256)
    normalize(const X_TYPE* x, const double* average, const double* scale, const REAL* beta, Y_TYPE* y, REAL negative,
              bool beta_of_group, int rows, int channels, int chunk_rows) {
  const Part part = thread_part(rows, channels, chunk_rows);
  if (part.count == 0) return;
  const int first = beta_of_group ? part.s : part.c;
  Affine a[VECTOR];
  for (int v = 0; v < VECTOR; v++) a[v] = affine(average[part.s + v], scale[part.s + v], beta[first + v]);
  normalize_part(x, y, part, a, negative);
}

// The same by a mean and a variance that are given, (channels): y = leaky(gamma (x - mean) / sqrt(variance + epsilon) + beta).
extern "C" __global__ void __launch_bounds__(256)
    normalize_given(const X_TYPE* x, const REAL* gamma, const REAL* beta, const REAL* mean, const REAL* variance,
                    Y_TYPE* y, double epsilon, REAL negative, int rows, int channels, int chunk_rows) {
  const Part part = thread_part(rows, channels, chunk_rows);
  if (part.count == 0) return;
  Affine a[VECTOR];
  for (int v = 0; v < VECTOR; v++) {
    const int c = part.c + v;
    a[v] = affine(mean[c], gamma[c] * (1 / sqrt(variance[c] + epsilon)), beta[c]);
  }
  normalize_part(x, y, part, a, negative);
}

// Behind a LeakyReLU gy counts times its slope. beta null: there is none, and `negative` is not read.
__device__ __forceinline__ REAL before_leaky(const Affine& a, REAL x, REAL gy, bool leaky, REAL negative) {
  return leaky && !(apply(a, x) > 0) ? negative * gy : gy;
}

__device__ __forceinline__ void load_pairs(const X_TYPE* x, const Y_TYPE* gy, const Part& part, int first,
                                           Xs (&xs)[PAIRS], Ys (&gs)[PAIRS]) {
#pragma unroll
  for (int i = 0; i < PAIRS; i++)
    if (first + i < part.count) {
      xs[i] = load<X_TYPE, VECTOR>(x + part.at + (first + i) * part.step);
      gs[i] = load<Y_TYPE, VECTOR>(gy + part.at + (first + i) * part.step);
    }
}

// x, gy (groups, rows, channels) -> ggamma, gbeta (channels); totals (2, groups, channels): the same of each group; and
// coefficients (3, groups, channels) of gx = gamma / sigma (g - mean(g) - x^ mean(g x^)) as k0 g + k1 (x - centre) + k2,
// where g = before_leaky. given: mean and variance do not depend on x, so gx = gamma / sigma g. sums, products (groups,
// chunks, channels): of each chunk, the sums of g and of g (x - average). finished (tiles of channels): 0 before and after.
extern "C" __global__ void __launch_bounds__(256)
    gradient_sums(const X_TYPE* x, const Y_TYPE* gy, const REAL* gamma, const double* average, const double* inverse,
                  const REAL* beta, double* sums, double* products, unsigned* finished, REAL* ggamma, REAL* gbeta,
                  double* totals, double* coefficients, REAL negative, bool given, int rows, int channels,
                  int chunk_rows) {
  const Part part = thread_part(rows, channels, chunk_rows);
  Affine a[VECTOR] = {};
  for (int v = 0; v < VECTOR && part.c < channels; v++) {
    const int c = part.c + v, s = part.s + v;
    a[v] = affine(average[s], gamma[c] * inverse[s], beta ? beta[c] : 0);
  }
  REAL sum[VECTOR] = {}, product[VECTOR] = {};
  for (int first = 0; first < part.count; first += PAIRS) {
    Xs xs[PAIRS];
    Ys gs[PAIRS];
    load_pairs(x, gy, part, first, xs, gs);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      if (first + i >= part.count) break;
      for (int v = 0; v < VECTOR; v++) {
        const REAL value = widened(xs[i].of[v]), g = before_leaky(a[v], value, widened(gs[i].of[v]), beta, negative);
        sum[v] += g;
        product[v] += g * (value - a[v].centre);
      }
    }
  }
  __shared__ double thread_sums[ROWS][TILE], thread_products[ROWS][TILE];
  for (int v = 0; v < VECTOR; v++) {
    thread_sums[threadIdx.y][threadIdx.x * VECTOR + v] = sum[v];
    thread_products[threadIdx.y][threadIdx.x * VECTOR + v] = product[v];
  }
  __syncthreads();  // all threads' sums are there
  const Share share = thread_share();
  const int c = share.c, size = gridDim.z * channels;
  const bool inside = c < channels;
  double total = 0, total_product = 0;
  for (int row = share.number * VECTOR; row < (share.number + 1) * VECTOR; row++) {
    total += thread_sums[row][share.lane];
    total_product += thread_products[row][share.lane];
  }
  total = sum_shares(share, total);
  total_product = sum_shares(share, total_product);
  if (share.number == 0 && inside) {
    const int at = (blockIdx.z * gridDim.y + blockIdx.y) * channels + c;
    const double mean = average[blockIdx.z * channels + c];
    sums[at] = total;
    products[at] = total_product - (mean - static_cast<REAL>(mean)) * total;
  }
  if (!last_block(finished + blockIdx.x, gridDim.y * gridDim.z)) return;

  const int chunks = gridDim.y;
  double all_gamma = 0, all_beta = 0;
  for (int group = 0; group < gridDim.z; group++) {
    total = total_product = 0;
    for (int chunk = share.number; chunk < chunks && inside; chunk += SHARES) {
      const int at = (group * chunks + chunk) * channels + c;
      total += sums[at];
      total_product += products[at];
    }
    total = sum_shares(share, total);
    total_product = sum_shares(share, total_product);
    if (share.number != 0 || !inside) continue;
    const int s = group * channels + c;
    const double scale = gamma[c] * inverse[s], group_gamma = total_product * inverse[s];
    const double slope = given ? 0 : -scale * inverse[s] * group_gamma / rows;
    const double missing = average[s] - static_cast<REAL>(average[s]);
    totals[s] = group_gamma;
    totals[size + s] = total;
    coefficients[s] = scale;
    coefficients[size + s] = slope;
    coefficients[2 * size + s] = given ? 0 : -scale * total / rows - slope * missing;
    all_gamma += group_gamma;
    all_beta += total;
  }
  if (share.number == 0 && inside) {
    ggamma[c] = static_cast<REAL>(all_gamma);
    gbeta[c] = static_cast<REAL>(all_beta);
  }
}

// gx = k0 g + k1 (x - centre) + k2, with the coefficients of gradient_sums and g as there.
extern "C" __global__ void __launch_bounds__(256)
    input_gradient(const X_TYPE* x, const Y_TYPE* gy, const REAL* gamma, const double* average, const double* inverse,
                   const REAL* beta, const double* coefficients, X_TYPE* gx, REAL negative, int rows, int channels,
                   int chunk_rows) {
  const Part part = thread_part(rows, channels, chunk_rows);
  if (part.count == 0) return;
  const int size = gridDim.z * channels;
  Affine a[VECTOR];
  REAL k0[VECTOR], k1[VECTOR], k2[VECTOR];
  for (int v = 0; v < VECTOR; v++) {
    const int c = part.c + v, s = part.s + v;
    a[v] = affine(average[s], gamma[c] * inverse[s], beta ? beta[c] : 0);
    k0[v] = static_cast<REAL>(coefficients[s]);
    k1[v] = static_cast<REAL>(coefficients[size + s]);
    k2[v] = static_cast<REAL>(coefficients[2 * size + s]);
  }
  for (int first = 0; first < part.count; first += PAIRS) {
    Xs xs[PAIRS];
    Ys gs[PAIRS];
    load_pairs(x, gy, part, first, xs, gs);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      if (first + i >= part.count) break;
      REAL values[VECTOR];
      for (int v = 0; v < VECTOR; v++) {
        const REAL value = widened(xs[i].of[v]), g = before_leaky(a[v], value, widened(gs[i].of[v]), beta, negative);
        values[v] = k0[v] * g + k1[v] * (value - a[v].centre) + k2[v];
      }
      store(gx + part.at + (first + i) * part.step, values);
    }
  }
}
