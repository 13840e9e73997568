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
#include "elu.cuh"

// slope: of the LeakyReLU that the outputs of the forward pass and of the input gradient go through; 1: none. In builds
// with ELU=1 they go through an ELU instead, and slope is its alpha.
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

// What follows a sum, while it is in a register: the bias, if there is one, and the activation. Which one is a macro's
// choice, as both in one build, chosen at run time, would take all builds a third longer to compile.
struct Epilogue {
  double slope;
  template <class T>
  __device__ __forceinline__ T finish(T sum, const T* bias, int column) const {
    const T value = sum + (bias ? bias[column] : 0);
#ifdef ELU
    return elu_of(value, static_cast<T>(slope));
#else
    return leaky(value, slope);
#endif
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

// Where a line lies that is beyond the last one, or its patch: outside of every image, with every tap. A multiple of
// every vector, as an asynchronous copy takes no other address, not even of what it does not read.
constexpr int NOWHERE = -(1 << 29);

struct Position {
  int image, row, column;
};

struct Pixel {
  int image, h, w;  // the number of its image's first pixel; where its patch begins in that image
};

struct Tap {
  int row, column, channel;  // of the patch
};

// The taps along one axis, of a patch's `taps`, that are inside of an image of this size for any patch that begins
// between `lowest` and `highest`.
struct Range {
  int begin, count;

  __device__ __forceinline__ Range(int lowest, int highest, int size, int taps, int direction) {
    begin = max(0, direction > 0 ? -highest : lowest - size + 1);
    count = max(0, min(taps, direction > 0 ? size - lowest : highest + 1) - begin);
  }
};

// Up to this many pixels of an image, the images are together in the order of pixels (Patches): that many images of 64
// pixels have 44 % of them at the border. In larger ones more is read by several neighbours than is left out.
constexpr int SMALL_IMAGE = 256;

__device__ __forceinline__ int images_together(int images, int pixels_h, int pixels_w) {
  return pixels_h * pixels_w <= SMALL_IMAGE ? images : 1;
}

// The matrix of patches: a row for each pixel, a column for each tap and channel. Never in memory, only indexed.
struct Patches {
  int height, width, channels;  // of the images (N, height, width, channels) that are read
  int pixels_h, pixels_w;       // patches in an image
  int step_h, step_w;           // the patch of pixel (i, j) begins at (first_h + step_h i, first_w + step_w j),
  int first_h, first_w;
  int taps_h, taps_w;
  int direction;  // and its tap (i, j) lies at direction * (i, j) from there
  int together;   // how many images' pixels of one position are neighbours in the order of pixels: all or, usually, 1
  Divider by_pixel_row, by_together, by_group, by_channels, by_tap_row;

  __device__ __forceinline__ Patches(int height, int width, int channels, int pixels_h, int pixels_w, int step_h,
                                     int step_w, int first_h, int first_w, int taps_h, int taps_w, int direction,
                                     int together)
      : height(height), width(width), channels(channels), pixels_h(pixels_h), pixels_w(pixels_w), step_h(step_h),
        step_w(step_w), first_h(first_h), first_w(first_w), taps_h(taps_h), taps_w(taps_w), direction(direction),
        together(together), by_pixel_row(pixels_w), by_together(together), by_group(pixels_h * pixels_w * together),
        by_channels(channels), by_tap_row(taps_w * channels) {}

  __device__ __forceinline__ Position position(int i) const {
    const int group = by_group.quotient(i), rest = i - group * pixels_h * pixels_w * together;
    const int place = by_together.quotient(rest), row = by_pixel_row.quotient(place);
    return {group * together + rest - place * together, row, place - row * pixels_w};
  }

  __device__ __forceinline__ Pixel pixel(int i) const {
    const Position at = position(i);
    return {at.image * height * width, first_h + step_h * at.row, first_w + step_w * at.column};
  }

  __device__ __forceinline__ Tap tap(int i) const {
    const int row = by_tap_row.quotient(i), rest = i - row * taps_w * channels;
    const int column = by_channels.quotient(rest);
    return {row, column, rest - column * channels};
  }

  // From pixel i to pixel i + n, and from tap i to tap i + n, where by = pixel(n) or tap(n): additions with carries,
  // which are cheaper than to decode i + n. Pixels: only image by image.
  __device__ __forceinline__ void advance(Pixel& pixel, const Pixel& by) const {
    pixel.w += by.w - first_w, pixel.h += by.h - first_h, pixel.image += by.image;
    if (pixel.w >= first_w + step_w * pixels_w) pixel.w -= step_w * pixels_w, pixel.h += step_h;
    if (pixel.h >= first_h + step_h * pixels_h) pixel.h -= step_h * pixels_h, pixel.image += height * width;
  }

  __device__ __forceinline__ void advance(Tap& tap, const Tap& by) const {
    tap.channel += by.channel, tap.column += by.column, tap.row += by.row;
    if (tap.channel >= channels) tap.channel -= channels, tap.column++;
    if (tap.column >= taps_w) tap.column -= taps_w, tap.row++;
  }

  // The index in the array of a patch's first element, and how far a tap lies from there; the sum is the element's.
  __device__ __forceinline__ int begin(Pixel pixel) const {
    return (pixel.image + pixel.h * width + pixel.w) * channels;
  }
  __device__ __forceinline__ int offset(Tap tap) const {
    return direction * (tap.row * width + tap.column) * channels + tap.channel;
  }

  // Whether tap (row, column) of the patch that begins at (h, w) is inside of the image.
  __device__ __forceinline__ bool inside(int h, int w, int row, int column) const {
    return static_cast<unsigned>(h + direction * row) < static_cast<unsigned>(height) &&
           static_cast<unsigned>(w + direction * column) < static_cast<unsigned>(width);
  }

  // Leaves out the first and the last rows and columns of taps that are outside of the image for all pixels from number
  // `from` to number `to`. Returns how many of the first ones that are. Only where all images are together: then
  // neighbouring pixels are at the same few positions, and those at the border read padding together.
  __device__ __forceinline__ Tap leave_out_padding(int from, int to) {
    const Pixel first = pixel(from), last = pixel(to);
    const bool one_row = first.h == last.h;
    const Range rows(first.h, last.h, height, taps_h, direction);
    const Range columns(one_row ? first.w : first_w, one_row ? last.w : first_w + step_w * (pixels_w - 1), width, taps_w,
                        direction);
    first_h += direction * rows.begin, taps_h = rows.count;
    first_w += direction * columns.begin, taps_w = columns.count;
    by_tap_row = Divider(taps_w * channels);
    return {rows.begin, columns.begin, 0};
  }
};

// The patches of x that the pixels of y read.
__device__ __forceinline__ Patches input_patches(const Conv& g, int together) {
  return Patches(g.h, g.w, g.c, g.p, g.q, g.stride_h, g.stride_w, -g.top, -g.left, g.r, g.s, 1, together);
}

// ---- operands -------------------------------------------------------------------------------------------------------
// An operand is a matrix of `lines` (rows of A, columns of B) by depth. What belongs to a line is decoded once, and so is
// a step of the depth, from which advance(step, step(n)) goes n steps on. index(line, step) in the array is then cheap;
// where inside(line, step) is false, there is a zero instead. along_depth: neighbours in the array are neighbours in
// depth; else they are neighbouring lines.

struct PixelsByTaps {
  struct Line {
    int h, w, begin;
  };
  using Step = Tap;
  static constexpr bool along_depth = true;
  Patches patches;
  int lines;
  __device__ __forceinline__ Line line(int i) const {
    if (i >= lines) return {NOWHERE, NOWHERE, 0};
    const Pixel pixel = patches.pixel(i);
    return {pixel.h, pixel.w, patches.begin(pixel)};
  }
  __device__ __forceinline__ Step step(int d) const { return patches.tap(d); }
  __device__ __forceinline__ void advance(Step& step, const Step& by) const { patches.advance(step, by); }
  __device__ __forceinline__ bool inside(const Line& line, const Step& step) const {
    return patches.inside(line.h, line.w, step.row, step.column);
  }
  __device__ __forceinline__ int index(const Line& line, const Step& step) const {
    return line.begin + patches.offset(step);
  }
};

struct TapsByPixels {
  struct Line {
    int row, column, offset;
  };
  using Step = Pixel;
  static constexpr bool along_depth = false;
  Patches patches;
  int lines;
  __device__ __forceinline__ Line line(int i) const {
    if (i >= lines) return {NOWHERE, NOWHERE, 0};
    const Tap tap = patches.tap(i);
    return {tap.row, tap.column, patches.offset(tap)};
  }
  __device__ __forceinline__ Step step(int d) const { return patches.pixel(d); }
  __device__ __forceinline__ void advance(Step& step, const Step& by) const { patches.advance(step, by); }
  __device__ __forceinline__ bool inside(const Line& line, const Step& step) const {
    return patches.inside(step.h, step.w, line.row, line.column);
  }
  __device__ __forceinline__ int index(const Line& line, const Step& step) const {
    return patches.begin(step) + line.offset;
  }
};

// w of the forward pass: (K, R, S, C) as it lies in memory; tap (0, 0) of the patches is (first_r, first_s) of the filter.
struct Filters {
  using Line = int;
  struct Step {
    int index, place;  // relative to the line; in the row of taps
  };
  static constexpr bool along_depth = true;
  Patches patches;  // decodes the depth as it does for x
  int lines, r, s, first_r, first_s;
  __device__ __forceinline__ void leave_out(const Tap& taps, const Patches& rest) {
    first_r += taps.row, first_s += taps.column, patches = rest;
  }
  __device__ __forceinline__ Line line(int i) const {
    return i < lines ? ((i * r + first_r) * s + first_s) * patches.channels : NOWHERE;
  }
  __device__ __forceinline__ int row_length() const { return patches.taps_w * patches.channels; }
  __device__ __forceinline__ Step step(int d) const {
    const int row = patches.by_tap_row.quotient(d), place = d - row * row_length();
    return {row * s * patches.channels + place, place};
  }
  __device__ __forceinline__ void advance(Step& step, const Step& by) const {
    step.index += by.index, step.place += by.place;
    if (step.place >= row_length()) step.place -= row_length(), step.index += s * patches.channels - row_length();
  }
  __device__ __forceinline__ bool inside(Line line, const Step&) const { return line >= 0; }
  __device__ __forceinline__ int index(Line line, const Step& step) const { return line + step.index; }
};

// gy of the weight gradient: (N P Q, K), so its lines k are neighbours in memory.
struct OutputGrads {
  using Line = int;
  using Step = int;
  static constexpr bool along_depth = false;
  int lines;
  __device__ __forceinline__ Line line(int i) const { return i < lines ? i : NOWHERE; }
  __device__ __forceinline__ Step step(int d) const { return d * lines; }
  __device__ __forceinline__ void advance(Step& step, Step by) const { step += by; }
  __device__ __forceinline__ bool inside(Line line, Step) const { return line >= 0; }
  __device__ __forceinline__ int index(Line line, Step step) const { return line + step; }
};

// w of the input gradient: lines c, depth (r', s', k), where taps r' and s' count those of a parity class.
struct ClassFilters {
  using Line = int;
  using Step = Tap;
  static constexpr bool along_depth = false;
  Patches patches;  // decodes the depth as it does for gy
  int lines, r, s, first_r, first_s, stride_h, stride_w;
  __device__ __forceinline__ void leave_out(const Tap& taps, const Patches& rest) {
    first_r += taps.row * stride_h, first_s += taps.column * stride_w, patches = rest;
  }
  __device__ __forceinline__ Line line(int i) const { return i < lines ? i : NOWHERE; }
  __device__ __forceinline__ Step step(int d) const { return patches.tap(d); }
  __device__ __forceinline__ void advance(Step& step, const Step& by) const { patches.advance(step, by); }
  __device__ __forceinline__ bool inside(Line line, const Step&) const { return line >= 0; }
  __device__ __forceinline__ int index(Line line, const Step& step) const {
    return ((step.channel * r + first_r + step.row * stride_h) * s + first_s + step.column * stride_w) * lines + line;
  }
};

// The index of the element of step d, or negative for a zero, where nothing is decoded beforehand.
template <class Operand>
__device__ __forceinline__ int element(const Operand& operand, const typename Operand::Line& line, int d, int end) {
  if (d >= end) return -1;
  const auto step = operand.step(d);
  return operand.inside(line, step) ? operand.index(line, step) : -1;
}

// ---- the three passes -----------------------------------------------------------------------------------------------
// Y[row][column] = sum of A[row][d] B[column][d] over begin <= d < end. Row `row` of Y begins at output(row) of the
// array.

struct Forward : Epilogue {
  int rows, columns, begin, end;
  PixelsByTaps a;
  Filters b;

  __device__ __forceinline__ explicit Forward(const Conv& g)
      : Epilogue{g.slope}, rows(g.n * g.p * g.q), columns(g.k), begin(0), end(g.r * g.s * g.c),
        a{input_patches(g, images_together(g.n, g.p, g.q)), rows}, b{a.patches, columns, g.r, g.s, 0, 0} {}

  __device__ __forceinline__ int output(Position at) const {
    return ((at.image * a.patches.pixels_h + at.row) * a.patches.pixels_w + at.column) * columns;
  }
  __device__ __forceinline__ int output(int row) const { return output(a.patches.position(row)); }
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
        a{Patches(g.p, g.q, g.k, v.positions, h.positions, 1, 1, v.offset, h.offset, v.count, h.count, -1,
                  images_together(g.n, v.positions, h.positions)),
          rows},
        b{a.patches, columns, g.r, g.s, v.first, h.first, g.stride_h, g.stride_w} {}

  __device__ __forceinline__ int output(Position at) const {
    return ((at.image * height + at.row * stride_h + row_remainder) * width + at.column * stride_w + column_remainder) *
           columns;
  }
  __device__ __forceinline__ int output(int row) const { return output(a.patches.position(row)); }
};

// A pass for `count` rows from `first` on alone: without the taps that only read padding there. In small images those
// are many: of the 5 x 5 taps of 8 x 8 outputs, stride 2, one in seven.
template <class Pass>
__device__ __forceinline__ Pass without_padding(Pass pass, int first, int count) {
  const Patches& of = pass.a.patches;
  if (of.together > 1) {
    const Tap left_out = pass.a.patches.leave_out_padding(first, min(first + count, pass.rows) - 1);
    pass.b.leave_out(left_out, of);
    pass.end = of.taps_h * of.taps_w * of.channels;
  }
  return pass;
}

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
        origin(0), pitch(columns), a{rows}, b{input_patches(g, 1), columns} {}

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

// Its depth are the pixels, those of all images: no tap is left out.
__device__ __forceinline__ const WeightGrad& without_padding(const WeightGrad& pass, int, int) { return pass; }
