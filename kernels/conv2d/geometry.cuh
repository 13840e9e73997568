// geometry.cuh: a convolution's sizes, and its three passes as matrix products whose operands are gathered.
//
// N H W C: input x. K R S: filters w, (K, R, S, C). P Q: output y, (N, P, Q, K). Filter tap (r, s) of output pixel (p,
// q) reads input pixel (p stride_h - top + r, q stride_w - left + s), zero outside of the image.
//
//   pass              rows            columns        depth (what is summed over)      A                  B
//   forward           pixels of y     k              taps (r, s, c)                   patches of x       w
//   input gradient    pixels of x     c              taps (r, s, k) that reach them   patches of gy      w
//   weight gradient   k               taps (r, s, c) pixels of y                      gy                 patches of x
//
// All arithmetic is in int: the host (conv2d_launch.py) refuses arrays of more than 2^31 - 1 elements and larger
// products.
#pragma once

#include "common.cuh"

// slope: of the LeakyReLU that the outputs of the forward pass and of the input gradient go through; 1: none.
struct Conv {
  int n, h, w, c, k, r, s, p, q, stride_h, stride_w, top, left;
  double slope;
};

// A slope of 0 gives 0 for infinity too; a NaN stays one.
template <class T>
__device__ __forceinline__ T leaky(T y, double slope) {
  const T factor = static_cast<T>(slope);
  return y > 0 ? y : factor == 0 && y == y ? 0 : factor * y;
}

// What follows a sum, while it is in a register: the bias, if there is one, and LeakyReLU.
struct Epilogue {
  double slope;
  template <class T>
  __device__ __forceinline__ T finish(T sum, const T* bias, int column) const {
    return leaky(sum + (bias ? bias[column] : 0), slope);
  }
};

// n / divisor for 0 <= n < 2^31 by a multiplication, since a GPU has no instruction for integer division.
// (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994.)
struct Divider {
  unsigned divisor, multiplier, shift;

  __device__ __forceinline__ explicit Divider(int d) {
    divisor = max(d, 1);  // a class without pixels or taps divides by 0, but uses no quotient
    shift = divisor > 1 ? 31 - __clz(static_cast<int>(divisor - 1)) : 0;
    multiplier = static_cast<unsigned>(((1ull << (32 + shift)) + divisor - 1) / divisor);
  }

  __device__ __forceinline__ int quotient(int n) const {
    return divisor == 1 ? n : static_cast<int>(__umulhi(static_cast<unsigned>(n), multiplier) >> shift);
  }
};

// Where a pixel or a tap lies that is beyond the last one: outside of every image, also when the two are added.
constexpr int NOWHERE = -(1 << 29);

struct Pixel {
  int image, h, w;  // the number of its image's first pixel; where its patch begins in that image
};

struct Tap {
  int h, w, channel;  // relative to the beginning of the patch
};

// The matrix of patches: a row for each pixel, a column for each tap and channel. Never in memory, only indexed.
struct Patches {
  int height, width, channels;  // of the images (N, height, width, channels) that are read
  int pixels_h, pixels_w;       // patches in an image
  int step_h, step_w;           // the patch of pixel (i, j) begins at (first_h + step_h i, first_w + step_w j),
  int first_h, first_w;
  int taps_h, taps_w;
  int direction;  // and its tap (i, j) lies at direction * (i, j) from there
  Divider by_pixel_row, by_image, by_channels, by_tap_row;

  __device__ __forceinline__ Patches(int height, int width, int channels, int pixels_h, int pixels_w, int step_h,
                                     int step_w, int first_h, int first_w, int taps_h, int taps_w, int direction)
      : height(height), width(width), channels(channels), pixels_h(pixels_h), pixels_w(pixels_w), step_h(step_h),
        step_w(step_w), first_h(first_h), first_w(first_w), taps_h(taps_h), taps_w(taps_w), direction(direction),
        by_pixel_row(pixels_w), by_image(pixels_h * pixels_w), by_channels(channels), by_tap_row(taps_w * channels) {}

  __device__ __forceinline__ Pixel pixel(int i, int end) const {
    if (i >= end) return {0, NOWHERE, NOWHERE};
    const int n = by_image.quotient(i), rest = i - n * pixels_h * pixels_w;
    const int row = by_pixel_row.quotient(rest), column = rest - row * pixels_w;
    return {n * height * width, first_h + step_h * row, first_w + step_w * column};
  }

  __device__ __forceinline__ Tap tap(int i, int end) const {
    if (i >= end) return {NOWHERE, NOWHERE, 0};
    const int row = by_tap_row.quotient(i), rest = i - row * taps_w * channels;
    const int column = by_channels.quotient(rest);
    return {direction * row, direction * column, rest - column * channels};
  }

  // The element's index in the array; negative for a zero.
  __device__ __forceinline__ int at(Pixel pixel, Tap tap) const {
    const int h = pixel.h + tap.h, w = pixel.w + tap.w;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(height) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(width);
    return inside ? (pixel.image + h * width + w) * channels + tap.channel : -1;
  }
};

// The patches of x that the pixels of y read.
__device__ __forceinline__ Patches input_patches(const Conv& g) {
  return Patches(g.h, g.w, g.c, g.p, g.q, g.stride_h, g.stride_w, -g.top, -g.left, g.r, g.s, 1);
}

// ---- operands -------------------------------------------------------------------------------------------------------
// An operand is a matrix of `lines` (rows of A, columns of B) by depth. A thread decodes a line and a step of the depth
// once each, and at(line, step) is then cheap: the index in the array, or negative for a zero. along_depth: neighbours
// in the array are neighbours in depth; else they are neighbouring lines.

struct PixelsByTaps {
  using Line = Pixel;
  using Step = Tap;
  static constexpr bool along_depth = true;
  Patches patches;
  int lines;
  __device__ __forceinline__ Line line(int i) const { return patches.pixel(i, lines); }
  __device__ __forceinline__ Step step(int d, int end) const { return patches.tap(d, end); }
  __device__ __forceinline__ int at(Line line, Step step) const { return patches.at(line, step); }
};

struct TapsByPixels {
  using Line = Tap;
  using Step = Pixel;
  static constexpr bool along_depth = false;
  Patches patches;
  int lines;
  __device__ __forceinline__ Line line(int i) const { return patches.tap(i, lines); }
  __device__ __forceinline__ Step step(int d, int end) const { return patches.pixel(d, end); }
  __device__ __forceinline__ int at(Line line, Step step) const { return patches.at(step, line); }
};

// w of the forward pass: (K, R S C) as it lies in memory.
struct Filters {
  using Line = int;
  using Step = int;
  static constexpr bool along_depth = true;
  int lines, pitch;
  __device__ __forceinline__ Line line(int i) const { return i < lines ? i * pitch : -1; }
  __device__ __forceinline__ Step step(int d, int end) const { return d < end ? d : -1; }
  __device__ __forceinline__ int at(Line line, Step step) const { return (line | step) < 0 ? -1 : line + step; }
};

// gy of the weight gradient: (N P Q, K), so its lines k are neighbours in memory.
struct OutputGrads {
  using Line = int;
  using Step = int;
  static constexpr bool along_depth = false;
  int lines;
  __device__ __forceinline__ Line line(int i) const { return i < lines ? i : -1; }
  __device__ __forceinline__ Step step(int d, int end) const { return d < end ? d * lines : -1; }
  __device__ __forceinline__ int at(Line line, Step step) const { return (line | step) < 0 ? -1 : line + step; }
};

// w of the input gradient: lines c, depth (r', s', k), where taps r' and s' count those of a parity class.
struct ClassFilters {
  using Line = int;
  using Step = int;
  static constexpr bool along_depth = false;
  Patches patches;  // decodes the depth as it does for gy
  int lines, r, s, first_r, first_s, stride_h, stride_w;
  __device__ __forceinline__ Line line(int i) const { return i < lines ? i : -1; }
  __device__ __forceinline__ Step step(int d, int end) const {
    if (d >= end) return -1;
    const Tap tap = patches.tap(d, end);
    return ((tap.channel * r + first_r - tap.h * stride_h) * s + first_s - tap.w * stride_w) * lines;  // tap.h = -r'
  }
  __device__ __forceinline__ int at(Line line, Step step) const { return (line | step) < 0 ? -1 : line + step; }
};

// ---- the three passes -----------------------------------------------------------------------------------------------
// Y[row][column] = sum of A[row][d] B[column][d] over begin <= d < end. Row `row` of Y begins at output(row) of the
// array.

struct Forward : Epilogue {
  int rows, columns, begin, end;
  PixelsByTaps a;
  Filters b;

  __device__ __forceinline__ explicit Forward(const Conv& g)
      : Epilogue{g.slope}, rows(g.n * g.p * g.q), columns(g.k), begin(0), end(g.r * g.s * g.c), a{input_patches(g), rows},
        b{columns, end} {}

  __device__ __forceinline__ int output(int row) const { return row * columns; }
};

// The taps along one axis that reach the input positions of one remainder: position remainder + stride i is read by tap
// first + stride j of output position offset + i - j, for 0 <= j < count. All positions of a class thus meet the same
// few taps, and no multiplication by an inserted zero is left.
struct ParityClass {
  int positions, first, count, offset;

  __device__ __forceinline__ ParityClass(int size, int taps, int stride, int before, int remainder) {
    positions = remainder < size ? ceil_div(size - remainder, stride) : 0;
    first = (remainder + before) % stride;
    count = first < taps ? ceil_div(taps - first, stride) : 0;
    offset = (remainder + before - first) / stride;
  }
};

struct InputGrad : Epilogue {
  int rows, columns, begin, end;
  int height, width, row_remainder, column_remainder, stride_h, stride_w;
  PixelsByTaps a;
  ClassFilters b;

  // number: the class, 0 to stride_h stride_w - 1.
  __device__ __forceinline__ InputGrad(const Conv& g, int number)
      : InputGrad(g, number / g.stride_w, number % g.stride_w,
                  ParityClass(g.h, g.r, g.stride_h, g.top, number / g.stride_w),
                  ParityClass(g.w, g.s, g.stride_w, g.left, number % g.stride_w)) {}

  __device__ __forceinline__ InputGrad(const Conv& g, int row_remainder, int column_remainder, ParityClass v,
                                       ParityClass h)
      : Epilogue{g.slope}, rows(g.n * v.positions * h.positions), columns(g.c), begin(0), end(v.count * h.count * g.k), height(g.h),
        width(g.w), row_remainder(row_remainder), column_remainder(column_remainder), stride_h(g.stride_h),
        stride_w(g.stride_w),
        a{Patches(g.p, g.q, g.k, v.positions, h.positions, 1, 1, v.offset, h.offset, v.count, h.count, -1), rows},
        b{a.patches, columns, g.r, g.s, v.first, h.first, g.stride_h, g.stride_w} {}

  __device__ __forceinline__ int output(int row) const {
    const Patches& of = a.patches;
    const int n = of.by_image.quotient(row), rest = row - n * of.pixels_h * of.pixels_w;
    const int i = of.by_pixel_row.quotient(rest), j = rest - i * of.pixels_w;
    return ((n * height + i * stride_h + row_remainder) * width + j * stride_w + column_remainder) * columns;
  }
};

// The depth is N P Q, often a thousand times the rows. So it is cut into slices ("split-K"), each summed by blocks of
// its own.
struct WeightGrad {
  int rows, columns, begin, end;
  int origin, pitch;  // of the array that is written: the output, unless into_tiles says otherwise
  int summed = 0;     // line_sums.cuh: what is summed for a bias besides, and where to
  REAL* line_sums = nullptr;
  OutputGrads a;
  TapsByPixels b;

  __device__ __forceinline__ WeightGrad(const Conv& g, int slice, int slice_depth)
      : rows(g.k), columns(g.r * g.s * g.c), begin(slice * slice_depth), end(min(g.n * g.p * g.q, begin + slice_depth)),
        origin(0), pitch(columns), a{rows}, b{input_patches(g), columns} {}

  __device__ __forceinline__ int output(int row) const { return origin + row * pitch; }

  // Each block writes to a tile of its own, (slices, tiles, tile_rows, tile_columns), its tile number (row, column) of gw.
  __device__ __forceinline__ void into_tiles(int tile_rows, int tile_columns, int row, int column) {
    const int tile = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    pitch = tile_columns;
    origin = (tile - row) * tile_rows * tile_columns - column * tile_columns;
  }

  template <class T>
  __device__ __forceinline__ T finish(T sum, const T*, int) const {
    return sum;
  }
};
