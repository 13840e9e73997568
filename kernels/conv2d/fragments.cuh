// fragments.cuh: the way of a tile's sums from mma.sync's fragments to memory, and what batch norm asks of them besides:
// their moments, so that nobody reads the outputs once more for those. Included behind TILES_M and TILES_N, the blocks of
// 16 x 8 of a warp.
//
// Each warp's part of a tile, WARP_M rows, has moments of its own: of each column the mean and the sum of the squared
// differences from it. The 8 lanes of one lane % 4 have a column's rows in their registers, so shuffles add them up, in an
// order that is always the same; without shared memory or a barrier. batch_norm.cu puts the parts together.
//
// Differences d from the column's first value are as small as its deviation, however large the mean; the squares are those
// of d minus its mean, in a second pass through registers. Both sums are float; first value and mean of d, in double.
#pragma once

#include "geometry.cuh"

constexpr int PART_ROWS = TILES_M * 16;

// A pass whose outputs batch norm asks about. means, squares (parts, columns), where a class's parts begin at first_part.
template <class Pass>
struct Observed : Pass {
  double* means;
  float* squares;
  int first_part;
};

template <class Pass>
constexpr bool OBSERVED = false;
template <class Pass>
constexpr bool OBSERVED<Observed<Pass>> = true;

// The sum over the 8 lanes that have rows of the same column.
__device__ __forceinline__ float column_sum(float value) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) value += __shfl_xor_sync(FULL_WARP, value, lanes);
  return value;
}

// Of what was written, that is, values as they are in memory; else as write_fragments.
template <class Pass, class Rows, class Columns>
__device__ __forceinline__ void leave_moments(const Observed<Pass>& pass, const float (&values)[TILES_M][TILES_N][4],
                                              int first_row, int first_column, Rows row_of, Columns column_of) {
  const int count = min(PART_ROWS, pass.rows - first_row), lane = threadIdx.x % 32;
  if (count <= 0) return;  // the same for all lanes
  const float share = 1.0f / count;
  const int begin = (pass.first_part + first_row / PART_ROWS) * pass.columns;
#pragma unroll
  for (int j = 0; j < TILES_N; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float first = __shfl_sync(FULL_WARP, values[0][j][e], lane % 4);  // row 0, which every part has
      float sum = 0, square = 0;
#pragma unroll
      for (int group = 0; group < TILES_M * 2; group++)
        if (row_of(group, lane / 4) < count) sum += values[group / 2][j][group % 2 * 2 + e] - first;
      const float mean = column_sum(sum) * share;
#pragma unroll
      for (int group = 0; group < TILES_M * 2; group++) {
        const float d = values[group / 2][j][group % 2 * 2 + e] - first - mean;
        if (row_of(group, lane / 4) < count) square += d * d;
      }
      square = column_sum(square);
      const int column = first_column + column_of(j, lane % 4 * 2 + e);
      if (lane < 4 && column < pass.columns) {
        pass.means[begin + column] = static_cast<double>(first) + mean;
        pass.squares[begin + column] = square;
      }
    }
}

// Two columns of a row that begins at y + begin, as far as there are such. stored(y, value): what a value is in memory.
// 7_tensor_cores_16_bits.cu has the same for its outputs (output.cuh).
__device__ __forceinline__ float stored(const float*, float value) { return value; }
__device__ __forceinline__ void write_two(float* y, int begin, int first, int second, int columns,
                                          const float (&values)[2]) {
  if (first < columns) y[begin + first] = values[0];
  if (second < columns) y[begin + second] = values[1];
}

// A warp's sums, from row and column on, to y, with what follows them (pass.finish). row_of(group, g), column_of(group, g):
// which line of the warp's part is line g of group number `group` of eight; row_of(0, 0) is 0. y: float*, or Output.
template <class Pass, class Rows, class Columns, class Y>
__device__ __forceinline__ void write_fragments(const Pass& pass, float (&sums)[TILES_M][TILES_N][4], int first_row,
                                                int first_column, Rows row_of, Columns column_of, const float* bias,
                                                Y y) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < TILES_M; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first_row + row_of(i * 2 + half, lane / 4);
      if (row >= pass.rows) continue;
      const int begin = pass.output(row);
#pragma unroll
      for (int j = 0; j < TILES_N; j++) {
        int columns[2];
        float values[2] = {};
#pragma unroll
        for (int e = 0; e < 2; e++) {
          columns[e] = first_column + column_of(j, lane % 4 * 2 + e);
          if (columns[e] >= pass.columns) continue;
          values[e] = pass.finish(sums[i][j][half * 2 + e], bias, columns[e]);
          if constexpr (OBSERVED<Pass>) sums[i][j][half * 2 + e] = stored(y, values[e]);
        }
        write_two(y, begin, columns[0], columns[1], pass.columns, values);
      }
    }
  if constexpr (OBSERVED<Pass>) leave_moments(pass, sums, first_row, first_column, row_of, column_of);
}
