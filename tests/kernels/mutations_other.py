"""Bugs to plant in the kernels besides convolution, and the tests that have to notice them. mutate.py plants them."""

import contextlib
import io
from pathlib import Path

import pytest
from mutate import Mutation

LEAKY, ELU, LOSSES, NORM = "leaky_relu.cu", "elu.cu", "losses.cu", "batch_norm.cu"
POOL, UPSAMPLE, ADAM, RANDOM, BATCH = "max_pool.cu", "upsample.cu", "adam.cu", "random.cu", "batch.cu"
GRAPH, SUMS, LAST, ELEMENTS = "graph.cu", "sums.cu", "last_block.cuh", "elementwise.cu"
HALVES, STORED, ELU_OF = "elements_16_bits.cu", "stored.cuh", "elu.cuh"

TESTS = {
    LEAKY: "test_elementwise.py",
    HALVES: "test_half.py",
    STORED: "test_half.py",
    ELU: "test_elementwise.py",
    ELU_OF: "test_elementwise.py",
    ELEMENTS: "test_elementwise.py",
    LOSSES: "test_elementwise.py",
    NORM: "test_batch_norm.py test_half.py",
    POOL: "test_pooling.py test_half.py",
    UPSAMPLE: "test_pooling.py test_half.py",
    ADAM: "test_adam.py",
    GRAPH: "test_adam.py",
    RANDOM: "test_random.py",
    BATCH: "test_batch.py",
    SUMS: "test_sums.py test_half.py",
    LAST: "test_sums.py",
}

MUTATIONS = [
    # -- elementwise
    Mutation("leaky: 0 is positive", LEAKY, "condition[i] > 0", "condition[i] >= 0"),
    Mutation("leaky: an element too many", LEAKY, "i >= n", "i > n"),
    Mutation("leaky: the wrong side", LEAKY, "? x[i] : scaled", "? scaled : x[i]"),
    Mutation("leaky: 0 times infinity", LEAKY, "slope == 0 && x[i] == x[i] ? 0 : slope", "slope"),
    Mutation("elu: e^x - 1 cancels", ELU_OF, "alpha * expm1(x)", "alpha * (static_cast<T>(exp(x)) - 1)"),
    Mutation("elu: an element too many", ELU, "if (i < n) y[i]", "if (i <= n) y[i]"),
    Mutation("elu gradient: alpha is 1", ELU_OF, "(y + alpha)", "(y + 1)"),
    Mutation("elu gradient: last element lost", ELU, "if (i < n) gx[i]", "if (i < n - 1) gx[i]"),
    Mutation("elements: sigmoid mirrored", ELEMENTS, "(x[i] < 0 ? e", "(x[i] > 0 ? e"),
    Mutation("elements: e^x overflows", ELEMENTS, "exp(-fabs(x[i]))", "exp(x[i])"),
    Mutation(
        "elements: sigmoid of one too many",
        ELEMENTS,
        "if (i >= n) return;\n  const REAL e =",
        "if (i > n) return;\n  const REAL e =",
    ),
    Mutation("elements: tanh's y not squared", ELEMENTS, "(1 - y[i] * y[i])", "(1 - y[i])"),
    Mutation("elements: tanh's last element lost", ELEMENTS, "if (i < n) gx[i]", "if (i < n - 1) gx[i]"),
    Mutation("elements: bias of the row", ELEMENTS, "bias[i % channels]", "bias[i / channels]"),
    Mutation("elements: slope on the wrong side", ELEMENTS, "value > 0 ? value", "value < 0 ? value"),
    Mutation(
        "elements: bias, 0 times infinity",
        ELEMENTS,
        "slope == 0 && value == value ? static_cast<REAL>(0) : slope",
        "slope",
    ),
    Mutation("elements: bias, NaN lost", ELEMENTS, "slope == 0 && value == value", "slope == 0"),
    # -- losses
    Mutation("logistic: e^z overflows", LOSSES, "log1p(exp(-fabs(z)))", "log1p(exp(-z)) + (z < 0 ? z : 0)"),
    Mutation("logistic: sign of the target", LOSSES, "positive - z * t", "positive + z * t"),
    Mutation("sigmoid: mirrored", LOSSES, "(z < 0 ? e", "(z > 0 ? e"),
    Mutation("sums: no barrier", LOSSES, "= sum;\n  __syncthreads();\n", "= sum;\n"),
    Mutation("sums: last warp lost", LOSSES, "warp < THREADS / 32; warp++", "warp < THREADS / 32 - 1; warp++"),
    Mutation("sums: all in one place", LOSSES, "sums[blockIdx.x] = sum;", "sums[0] = sum;"),
    Mutation("sums: stride of a block", LOSSES, "i += grid_threads()) sum += fabs", "i += THREADS) sum += fabs"),
    Mutation(
        "mean: blocks beyond 256 lost",
        LOSSES,
        "i < gridDim.x; i += THREADS",
        "i < min(gridDim.x, 256u); i += THREADS",
    ),
    Mutation("mean: always the array of targets", LOSSES, "t ? t[i] : target", "t[i]"),
    Mutation("mean: never the array of targets", LOSSES, "t ? t[i] : target", "target"),
    Mutation(
        "l1 gradient: sign(0) = -1", LOSSES, "d < 0 ? static_cast<REAL>(-1) : d", "d <= 0 ? static_cast<REAL>(-1) : d"
    ),
    Mutation("l1 gradient: gy forgotten", LOSSES, "gy[0] / n * (d > 0", "static_cast<REAL>(1) / n * (d > 0"),
    # -- batch norm
    Mutation("shares: no first barrier", NORM, "  __syncthreads();  // the values", "  // the values"),
    Mutation("shares: no second barrier", NORM, "= value;\n  __syncthreads();", "= value;"),
    Mutation("shares: last one lost", NORM, "number < SHARES; number++", "number < SHARES - 1; number++"),
    Mutation(
        "moments: no barrier before the shares", NORM, "  __syncthreads();  // all threads' moments are there\n", ""
    ),
    Mutation("sums: no barrier before the shares", NORM, "  __syncthreads();  // all threads' sums are there\n", ""),
    Mutation(
        "share: channels unguarded",
        NORM,
        "  const bool inside = c < channels;\n  double mean",
        "  const bool inside = true;\n  double mean",
    ),
    Mutation("part: channels unguarded", NORM, "c < channels && left > 0 ?", "left > 0 ?"),
    Mutation(
        "part: a chunk's rows unguarded",
        NORM,
        "rows_of(blockIdx.y, rows, chunk_rows) - static_cast<int>(threadIdx.y)",
        "rows - static_cast<int>(blockIdx.y) * chunk_rows - static_cast<int>(threadIdx.y)",
    ),
    Mutation(
        "part: the last chunk is whole",
        NORM,
        "return min(chunk_rows, rows - chunk * chunk_rows);",
        "return chunk_rows;",
    ),
    Mutation("part: first group for all", NORM, "(group * rows + first)", "first"),
    Mutation("part: statistics of the first group", NORM, "return {c, group * channels + c,", "return {c, c,"),
    Mutation("part: rows of one thread next to each other", NORM, "ROWS * channels, count}", "channels, count}"),
    Mutation("moments: one counter for all tiles", NORM, "last_block(finished + blockIdx.x", "last_block(finished"),
    Mutation("moments: blocks of a group counted", NORM, "gridDim.y * gridDim.z)) return", "gridDim.y)) return"),
    Mutation(
        "moments: nothing subtracted", NORM, "if (part.count > 0) first_row = load<X_TYPE, VECTOR>(x + part.at);", ""
    ),
    Mutation("moments: rows beyond the chunk", NORM, ": first_row;", ": Xs{};"),
    Mutation(
        "moments: each thread's own mean",
        NORM,
        "spread += thread_squares[row][share.lane] + rows_taken(row, count) * d * d",
        "spread += thread_squares[row][share.lane] + 0 * d",
    ),
    Mutation("moments: sum of squares as it is", NORM, "= square[v] - sum[v] * offset", "= square[v]"),
    Mutation(
        "moments: chunks one on another",
        NORM,
        "const int at = (blockIdx.z * gridDim.y + blockIdx.y) * channels + c;\n    means",
        "const int at = blockIdx.z * gridDim.y * channels + c;\n    means",
    ),
    Mutation(
        "moments: groups one on another",
        NORM,
        "const int at = (blockIdx.z * gridDim.y + blockIdx.y) * channels + c;\n    means",
        "const int at = blockIdx.y * channels + c;\n    means",
    ),
    Mutation(
        "combine: last chunk counts as whole",
        NORM,
        "return rows_of(chunk, rows, chunk_rows); });",
        "return chunk_rows; });",
    ),
    Mutation("combine: between chunks forgotten", NORM, "+ rows_in(i) * d * d", "+ 0 * d"),
    Mutation("combine: squares forgotten", NORM, "spread += squares_of(i) + ", "spread += "),
    Mutation("combine: all rows alike", NORM, "mean += rows_in(i) * mean_of(i)", "mean += rows_in(first) * mean_of(i)"),
    Mutation("combine: channels unguarded", NORM, "if (share.c >= channels) last = first;", ""),
    Mutation(
        "parts: short ones count whole",
        NORM,
        "member / parts.class_parts * parts.class_rows + member % parts.class_parts * parts.part_rows",
        "member * parts.part_rows",
    ),
    Mutation("parts: groups do not alternate", NORM, "member / parts.run * groups + group", "group"),
    Mutation("parts: the first group's", NORM, "parts.run * groups + group) *", "parts.run * groups) *"),
    Mutation("parts: one of a run", NORM, "* parts.run + member % parts.run) *", "* parts.run) *"),
    Mutation(
        "parts: last chunk counts as whole",
        NORM,
        "rows_before(min((chunk + 1) * chunk_parts, members))",
        "rows_before((chunk + 1) * chunk_parts)",
    ),
    Mutation("parts: last chunk without an end", NORM, "min(first + chunk_parts, members)", "first + chunk_parts"),
    Mutation(
        "parts: chunks of all groups in one place",
        NORM,
        "(group * gridDim.y + blockIdx.y) * channels + c;\n    means[at] = all",
        "blockIdx.y * channels + c;\n    means[at] = all",
    ),
    Mutation("parts: chunks of a group counted", NORM, "gridDim.y * groups)) return", "gridDim.y)) return"),
    Mutation(
        "parts: one counter for all tiles",
        NORM,
        "last_block(finished + blockIdx.x, gridDim.y * groups)",
        "last_block(finished, gridDim.y * groups)",
    ),
    Mutation("combine: unbiased variance", NORM, "biased = all.spread / rows,", "biased = all.spread / (rows - 1),"),
    Mutation("combine: no epsilon", NORM, "sqrt(biased + of.epsilon)", "sqrt(biased)"),
    Mutation("combine: gamma forgotten", NORM, "of.scale[s] = of.gamma[c] * of", "of.scale[s] = of"),
    Mutation(
        "combine: every share writes",
        NORM,
        "share.number != 0 || c >= channels) continue;\n    const int s = group * channels + c;\n    const double b",
        "c >= channels) continue;\n    const int s = group * channels + c;\n    const double b",
    ),
    Mutation("running: biased variance", NORM, "unbiased = all.spread / (rows - 1)", "unbiased = all.spread / rows"),
    Mutation("running: always a mean", NORM, "if (running) running[c]", "running[c]"),
    Mutation("running: momentum of the batch", NORM, "(1 - of.momentum) * value", "of.momentum * value"),
    Mutation("affine: the mean's rounding lost", NORM, "beta - scale * (average - centre)", "beta"),
    Mutation(
        "normalize: slope on the wrong side",
        NORM,
        "value > 0 ? value : negative * value",
        "value > 0 ? negative * value : value",
    ),
    Mutation(
        "normalize: a row too many",
        NORM,
        "      if (first + i >= part.count) break;",
        "      if (first + i > part.count) break;",
    ),
    Mutation("normalize: beta of the first group", NORM, "beta_of_group ? part.s : part.c", "part.c"),
    Mutation("given: no epsilon", NORM, "sqrt(variance[c] + epsilon)", "sqrt(variance[c])"),
    Mutation("given: gamma forgotten", NORM, "gamma[c] * (1 / sqrt", "(1 / sqrt"),
    Mutation("gradients: LeakyReLU forgotten", NORM, "leaky && !(apply(a, x) > 0) ?", "false ?"),
    Mutation(
        "gradients: second row of a pair lost",
        NORM,
        "if (first + i < part.count) {\n      xs[i] = load<X_TYPE, VECTOR>(x + part.at + (first + i) * part.step);",
        "if (first + i < part.count) {\n      xs[i] = load<X_TYPE, VECTOR>(x + part.at + first * part.step);",
    ),
    Mutation(
        "sums: the mean's rounding lost",
        NORM,
        "total_product - (mean - static_cast<REAL>(mean)) * total",
        "total_product",
    ),
    Mutation("sums: of each group the last", NORM, "all_gamma += group_gamma", "all_gamma = group_gamma"),
    Mutation("gradients: sigma once", NORM, "-scale * inverse[s] * group_gamma", "-scale * group_gamma"),
    Mutation(
        "gradients: mean not subtracted",
        NORM,
        "given ? 0 : -scale * total / rows - slope * missing",
        "given ? 0 : -slope * missing",
    ),
    Mutation("gradients: given statistics follow x", NORM, "slope = given ? 0 :", "slope = false ? 0 :"),
    Mutation("gradients: coefficients overlap", NORM, "coefficients[2 * size + s] =", "coefficients[size + s] ="),
    Mutation("gradients: the mean's rounding lost from gx", NORM, " - slope * missing;", ";"),
    Mutation("gradients: totals overlap", NORM, "totals[size + s] = total", "totals[s] = total"),
    Mutation("input gradient: shift lost", NORM, "- a[v].centre) + k2[v]", "- a[v].centre)"),
    Mutation(
        "input gradient: all rows in one place", NORM, "store(gx + part.at + (first + i) * part.step,", "store(gx,"
    ),
    Mutation(
        "input gradient: gy is not read",
        NORM,
        "value, widened(gs[i].of[v]), beta, negative);\n        values",
        "value, float(sizeof(gs[i].of[v])), beta, negative);\n        values",
    ),
    # -- 16 bits
    Mutation(
        "stored: one number for all", STORED, "round_to(values[i], stored.of[i])", "round_to(values[0], stored.of[i])"
    ),
    Mutation(
        "stored: bf16 is not widened",
        STORED,
        "widened(bf16 x) { return to_float(x); }",
        "widened(bf16 x) { return x.bits; }",
    ),
    Mutation(
        "stored: fp16 as bf16",
        STORED,
        "widened(fp16 x) { return to_float(x); }",
        "widened(fp16 x) { return to_float(bf16{x.bits}); }",
    ),
    Mutation(
        "widen: an element too many",
        HALVES,
        "if (i >= n) return;\n  const auto xs",
        "if (i > n) return;\n  const auto xs",
    ),
    Mutation("widen: the first half twice", HALVES, "widened(xs.of[first + v])", "widened(xs.of[v])"),
    Mutation("widen: only the second half", HALVES, "store(y + i + first, values)", "store(y + i + 4, values)"),
    Mutation(
        "elements, 16 bits: eight too many",
        HALVES,
        "if (i >= n) return;\n  const auto as",
        "if (i > n) return;\n  const auto as",
    ),
    Mutation("leaky, 16 bits: 0 is positive", HALVES, "of > 0", "of >= 0"),
    Mutation("leaky, 16 bits: the wrong side", HALVES, "? value : scaled", "? scaled : value"),
    Mutation("leaky, 16 bits: 0 times infinity", HALVES, "slope == 0 && value == value ? 0 : slope", "slope"),
    Mutation("leaky, 16 bits: a NaN is lost", HALVES, "slope == 0 && value == value", "slope == 0"),
    Mutation("elements, 16 bits: one operand twice", HALVES, "load<HALF, COUNT>(b + i)", "load<HALF, COUNT>(a + i)"),
    Mutation("elements, 16 bits: one number for all", HALVES, "widened(bs.of[v]))", "widened(bs.of[0]))"),
    Mutation("elu, 16 bits: alpha is 1", HALVES, "elu_of(value, alpha)", "elu_of(value, 1.0f)"),
    Mutation(
        "elu gradient, 16 bits: y is gy", HALVES, "elu_gradient_of(out, gradient,", "elu_gradient_of(gradient, out,"
    ),
    # -- sums of columns
    Mutation(
        "column sums: last row lost",
        SUMS,
        "n - tile0 - column, width) - first",
        "n - tile0 - column - 1, width) - first",
    ),
    Mutation(
        "column sums: rows unguarded",
        SUMS,
        "min(ceil_div<long long>(n - tile0 - column, width) - first, 0ll + chunk_rows)",
        "chunk_rows",
    ),
    Mutation("column sums: chunks overlap", SUMS, "- first, 0ll + chunk_rows)", "- first, 1ll + chunk_rows)"),
    Mutation(
        "column sums: columns of the tile unguarded",
        SUMS,
        "column < tile ? min",
        "column < TILE ? min",
        equivalent="what is read in vain, never beyond the end, is added to nothing",
    ),
    Mutation("column sums: all in float", SUMS, "#define ROWS 64", "#define ROWS 64000"),
    Mutation("column sums: rows twice", SUMS, "row + static_cast<long long>(ROWS)", "row + 2ll * ROWS"),
    Mutation("column sums: a number of the vector twice", SUMS, "widened(xs.of[j])", "widened(xs.of[j / 2])"),
    Mutation("column sums: not folded", SUMS, "i < count; i += period", "i < min(count, period); i += period"),
    Mutation("column sums: no barrier", SUMS, "= total[j];\n  __syncthreads();", "= total[j];"),
    Mutation(
        "column sums: no second barrier",
        SUMS,
        "    values[i] = sum;\n  }\n  __syncthreads();",
        "    values[i] = sum;\n  }",
    ),
    Mutation(
        "column sums: always the first tile",
        SUMS,
        "y[tile0 + c] = static_cast<REAL>(sum",
        "y[c] = static_cast<REAL>(sum",
    ),
    Mutation("column sums: first tile of the chunks", SUMS, "channels) + tile0 + c] = sum", "channels) + c] = sum"),
    Mutation(
        "column sums: chunks on one another",
        SUMS,
        "partial[blockIdx.y * static_cast<long long>(channels) + tile0 + c]",
        "partial[tile0 + c]",
    ),
    Mutation(
        "column sums: some chunks lost",
        SUMS,
        "chunk < gridDim.y; chunk += groups",
        "chunk < gridDim.y - 1; chunk += groups",
    ),
    Mutation(
        "column sums: chunks twice",
        SUMS,
        "chunk < gridDim.y; chunk += groups",
        "chunk < gridDim.y; chunk += max(1, groups - 1)",
    ),
    Mutation("column sums: one counter for all tiles", SUMS, "counters + blockIdx.x", "counters"),
    Mutation("column sums: never divided", SUMS, "groups * columns, columns) / over", "groups * columns, columns)"),
    Mutation("last block: the first one", LAST, "== blocks - 1)", "== 0)"),
    Mutation("last block: the counter stays", LAST, "atomicInc(counter, blocks - 1)", "atomicInc(counter, blocks)"),
    Mutation(
        "last block: no barrier before",
        LAST,
        "  __threadfence();\n  __syncthreads();",
        "  __threadfence();",
        equivalent="to the emulator, whose blocks run one after the other",
    ),
    Mutation("last block: thread 0 alone knows", LAST, "__syncthreads_or(counts", "(counts"),
    # -- pooling
    Mutation("pool: no upper bound", POOL, "w < min(left + g.kernel_w, g.w)", "w < left + g.kernel_w"),
    Mutation("pool: no lower bound", POOL, "h = max(top, 0)", "h = top"),
    Mutation("pool: last of equals", POOL, "value > best[v] ||", "value >= best[v] ||"),
    Mutation("pool: NaN ignored", POOL, " || value != value", ""),
    Mutation("pool: starts with 0", POOL, "place < 0 || ", ""),
    Mutation("put: first window lost", POOL, "g.kernel_h + 1, 0)", "g.kernel_h + 1 + g.stride_h, 0)"),
    Mutation("put: last window lost", POOL, "q <= min((w + g.left)", "q < min((w + g.left)"),
    Mutation("put: a window too many", POOL, "/ g.stride_h, g.p - 1)", "/ g.stride_h, g.p)"),
    Mutation("put: index ignored", POOL, "if (where.of[v] == h * g.w + w) sums", "sums"),
    Mutation(
        "put: more windows than needed",
        POOL,
        "ceil_div(max(h + g.top - g.kernel_h + 1, 0), g.stride_h)",
        "max(h + g.top - g.kernel_h + 1, 0) / g.stride_h",
        equivalent="a window that does not hold the pixel has no index that points to it",
    ),
    Mutation("take: always the first image", POOL, "(n * g.h * g.w + index[i])", "index[i]"),
    Mutation(
        "upsample: rows and columns swapped",
        UPSAMPLE,
        "row / scale * width + column / scale",
        "column / scale * width + row / scale",
    ),
    Mutation("upsample: narrow rows", UPSAMPLE, "channels % wide;", "channels % width;"),
    Mutation("sum blocks: last row lost", UPSAMPLE, "a < scale; a++", "a < scale - 1; a++"),
    Mutation("sum blocks: another element", UPSAMPLE, "store(y + i, sums);", "store(y + i, sums), store(y + n, sums);"),
    Mutation("sum blocks: of 16 bits the first for all", UPSAMPLE, "widened(xs.of[v])", "widened(xs.of[0])"),
    Mutation(
        "pool: of 16 bits the first for all",
        POOL,
        "const REAL value = widened(xs.of[v])",
        "const REAL value = widened(xs.of[0])",
    ),
    Mutation(
        "pool: of 16 bits the first four indices twice",
        POOL,
        "store(index + i + v, where[v / INDICES])",
        "store(index + i + v, where[0])",
    ),
    Mutation(
        "pool: of 16 bits only four indices",
        POOL,
        "v += INDICES) store(index + i + v",
        "v += COUNT) store(index + i + v",
    ),
    Mutation(
        "put: of 16 bits the first four indices twice",
        POOL,
        "load<int, INDICES>(index + output + first)",
        "load<int, INDICES>(index + output)",
    ),
    Mutation(
        "put: of 16 bits the first four values twice",
        POOL,
        "sums[first + v] += widened(gys.of[first + v])",
        "sums[first + v] += widened(gys.of[v])",
    ),
    Mutation("put: of 16 bits sums of four", POOL, "sums[first + v] +=", "sums[v] +="),
    # -- Adam
    Mutation("adam: the tensor before", ADAM, "first[middle] <= blockIdx.x", "first[middle] < blockIdx.x"),
    Mutation("adam: the last tensor never", ADAM, "end = tensors; end", "end = tensors - 1; end"),
    Mutation("adam: block of the launch", ADAM, "(blockIdx.x - table.first[tensor])", "(blockIdx.x)"),
    Mutation("adam: no end", ADAM, "min(first + BLOCK_ELEMENTS, size)", "first + BLOCK_ELEMENTS"),
    Mutation("adam: blocks too short", ADAM, "BLOCK_ELEMENTS 2048", "BLOCK_ELEMENTS 1024"),
    Mutation("adam: rates swapped", ADAM, "v[i] += keep2", "v[i] += keep1"),
    Mutation("adam: epsilon under the root", ADAM, "(sqrt(v[i]) + epsilon)", "sqrt(v[i] + epsilon)"),
    Mutation(
        "adam: moments swapped",
        ADAM,
        "reinterpret_cast<REAL*>(table.v[tensor])",
        "reinterpret_cast<REAL*>(table.m[tensor])",
    ),
    Mutation("adam: some elements twice", ADAM, "i < end; i += THREADS", "i < end; i += THREADS / 2"),
    Mutation("adam: numbers ignored", ADAM, "if (numbers)", "if (false)"),
    Mutation("adam: one number for both", ADAM, "numbers[1]", "numbers[0]"),
    Mutation("words: one too many", GRAPH, "i < count", "i <= count"),
    Mutation("words: always the first", GRAPH, "source.words[i]", "source.words[0]"),
    # -- random numbers
    Mutation("uniform: key ignored", RANDOM, "draw(key ? *key : seed", "draw(seed"),
    Mutation("philox: nine rounds", RANDOM, "round < 10", "round < 9"),
    Mutation("philox: constants swapped", RANDOM, "key1 += 0xBB67AE85u", "key1 += 0x9E3779B9u"),
    Mutation(
        "philox: low word for the high one",
        RANDOM,
        "static_cast<unsigned>(product0 >> 32) ^",
        "static_cast<unsigned>(product0) ^",
    ),
    Mutation("draw: half of the counter", RANDOM, "static_cast<unsigned>(counter >> 32), 0, 0", "0, 0, 0"),
    Mutation("draw: half of the seed", RANDOM, "static_cast<unsigned>(seed >> 32))", "0)"),
    Mutation("uniform: too few bits", RANDOM, "(words[j] >> 8) * 0x1p-24f", "(words[j] >> 9) * 0x1p-23f"),
    Mutation(
        "uniform: an element too many",
        RANDOM,
        "j < n) y[thread * PER_THREAD + j] = min",
        "j <= n) y[thread * PER_THREAD + j] = min",
    ),
    Mutation("uniform: up to its end", RANDOM, "min(low + (high - low) * u[j], last)", "low + (high - low) * u[j]"),
    Mutation(
        "uniform: a number in four threads",
        RANDOM,
        "draw(key ? *key : seed, counter + thread, u)",
        "draw(key ? *key : seed, counter + thread / 4, u)",
    ),
    Mutation("normal: half of the angle", RANDOM, "sine_cosine(2 * u[j + 1]", "sine_cosine(u[j + 1]"),
    Mutation("normal: logarithm of 0", RANDOM, "log(1 - u[j])", "log(u[j])"),
    Mutation("normal: an element too many", RANDOM, "+ j + 1 < n) y", "+ j + 1 <= n) y"),
    # -- batches
    Mutation("batch: mirror is off by one", BATCH, "width - 1 - column : column", "width - column : column"),
    Mutation("batch: never mirrored", BATCH, "number < 0 ? width - 1 - column : column", "column"),
    Mutation("batch: an image too many", BATCH, "image >= count", "image > count"),
    Mutation("batch: 32-bit offset", BATCH, "(image * pixels + row", "(static_cast<int>(image * pixels) + row"),
    Mutation(
        "batch: row of the whole batch", BATCH, "row = i / channels / width % height", "row = i / channels / width"
    ),
    Mutation("batch: a mirrored image is its neighbour", BATCH, "? ~number", "? -number"),
    Mutation("batch: an element too many", BATCH, "if (i >= batch", "if (i > batch"),
]


class FirstFailure:
    """A plugin of pytest: what the first failing test said."""

    text = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.text:
            self.text = str(report.longreprtext)


def check(files: set[str]) -> None:
    """The tests of the files' kernels, as they are, in this process; up to the first failure."""
    first = FirstFailure()
    paths = sorted({str(Path(__file__).with_name(name)) for file in files for name in TESTS[file].split()})
    with contextlib.redirect_stdout(io.StringIO()):
        # Without conftest.py, which would have the emulator itself built anew.
        status = pytest.main(["-x", "-q", "--noconftest", "-p", "no:cacheprovider", *paths], plugins=[first])
    # What mutate.py prints; it also looks for "does not compile".
    errors = [line.removeprefix("E").strip() for line in first.text.splitlines() if line.startswith("E  ")]
    assert status == 0, "; ".join(errors) or first.text
