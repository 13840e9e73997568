// wgmma.mma_async: D[64][N] += A[64][K] * B[K][N] by the four warps of a warpgroup; K = 16 for numbers of 16 bits, 8 for
// TF32. B lies in shared memory, named by a descriptor, and so does A, or, in TF32, it is in registers. Each warp makes
// 16 rows, so that a warp's products are computed by themselves.
//
// A product is asynchronous. Its accumulators are NaN until a wait for its group, and its operands are read when it is
// issued (even seeds: shows operands that are not there yet) or only at that wait (odd seeds: shows operands that are
// overwritten before).
#include <cstring>
#include <memory>
#include <vector>

#include "numbers.h"
#include "runtime.h"

namespace emulator {

namespace {

constexpr int kMaxColumns = 256;

struct Accumulators {
  float* registers[32];  // of the lanes
  int columns, in_flight;
  float values[16][kMaxColumns];
};

struct Operands {
  float* d;
  Format format;
  int columns;
  unsigned long long a, b;
  bool a_by_lines, b_by_lines;
  const unsigned* a_registers;  // each lane's own; null where `a` is a descriptor

  bool same_as(const Operands& o) const {  // but for d and A's registers
    return format == o.format && columns == o.columns && a == o.a && b == o.b && a_by_lines == o.a_by_lines &&
           b_by_lines == o.b_by_lines;
  }
};

struct Product {
  Operands operands;
  Accumulators* accumulators;
  const unsigned* a_registers[32];
};

struct WarpState {
  std::vector<std::unique_ptr<Accumulators>> accumulators;  // those that products are under way for
  std::vector<Product> products;                            // the oldest first
  std::vector<unsigned> group_sizes;                        // of committed ones
  std::vector<Operands> issued;                             // all of them in this block
  bool fenced = false;  // accumulators may be used by products, until the next wait hands some back
  bool a_fenced = false;  // and A's registers, which are filled anew for each group
};

std::vector<WarpState> states;

unsigned warp_number() { return thread_number() / 32; }

// ---- descriptors ----------------------------------------------------------------------------------------------------

// Lines x K numbers out of shared memory as a descriptor says. "Canonical layouts" of the PTX manual, 128-byte
// swizzle: rows of 128 bytes, in whose address bits 4 to 6 are xored with bits 7 to 9.
//   by depth (K-major):  line l is row l % 8 of group l / 8, `stride` bytes apart; its steps lie side by side
//   by lines (MN-major): step k is row k % 8 of group k / 8, `stride` bytes apart; 64 lines lie side by side in it, and
//                        the next 64 are `lead` bytes further
template <class Number, float (*widen)(Number)>
void read_matrix(unsigned long long descriptor, bool by_lines, int first, int lines, float (*out)[kMaxColumns]) {
  constexpr int kPiece = 16 / sizeof(Number), kDepth = 2 * kPiece;  // numbers in 16 bytes; steps of a product
  unsigned start = (descriptor & 0x3fff) << 4, lead = (descriptor >> 16 & 0x3fff) << 4;
  unsigned stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) fail("wgmma: the emulator knows the 128-byte swizzle (1) only, not mode %llu",
                                  descriptor >> 62);
  if (descriptor >> 49 & 7) fail("wgmma: the emulator knows no base offset, so swizzled rows begin at 1024 bytes");
  auto piece = [&](unsigned address) {
    return reinterpret_cast<const Number*>(async_view(address ^ (address >> 3 & 0x70), 16));
  };
  for (int line = first; line < first + lines; line += by_lines ? 8 : 1)
    for (int step = 0; step < kDepth; step += by_lines ? 1 : kPiece) {
      const Number* numbers =
          by_lines ? piece(start + line / 8 % 8 * 16 + line / 64 * lead + step % 8 * 128 + step / 8 * stride)
                   : piece(start + line % 8 * 128 + line / 8 * stride + step * sizeof(Number));
      for (int i = 0; i < kPiece; i++)
        out[by_lines ? step : step + i][line - first + (by_lines ? i : 0)] = widen(numbers[i]);
    }
}

float widen_bf16(unsigned short bits) { return as_float(static_cast<unsigned>(bits) << 16); }
float widen_tf32(unsigned bits) { return as_float(bits & 0xffffe000u); }  // tensor cores ignore the low bits

// The warp's 16 rows of A out of the lanes' registers: "register fragments for wgmma.mma_async.m64nNk8" of the manual.
void read_registers(const Product& product, float (*out)[kMaxColumns]) {
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++)
      out[lane % 4 + i / 2 * 4][lane / 4 + i % 2 * 8] = widen_tf32(product.a_registers[lane][i]);
}

template <class Number, float (*widen)(Number)>
void compute(const Product& product, unsigned warp) {
  static float a[16][kMaxColumns], b[16][kMaxColumns];  // [step][line]
  const Operands& o = product.operands;
  if (o.a_registers) read_registers(product, a);
  else read_matrix<Number, widen>(o.a, o.a_by_lines, warp % 4 * 16, 16, a);
  read_matrix<Number, widen>(o.b, o.b_by_lines, 0, o.columns, b);
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < static_cast<int>(32 / sizeof(Number)); k++)
      for (int j = 0; j < o.columns; j++) product.accumulators->values[i][j] += a[k][i] * b[k][j];
}

void compute(const Product& product, unsigned warp) {
  switch (product.operands.format) {
    case Format::bf16: return compute<unsigned short, widen_bf16>(product, warp);
    case Format::fp16: return compute<unsigned short, widen_fp16>(product, warp);
    case Format::tf32: return compute<unsigned, widen_tf32>(product, warp);
  }
}

// ---- accumulators ---------------------------------------------------------------------------------------------------

// Calls use(register, value) for all: lane l holds rows l / 4 and l / 4 + 8, of each 8 columns 2 (l % 4) and the next.
template <class Use>
void each_register(Accumulators& accumulators, Use use) {
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < accumulators.columns / 2; i++)
      use(accumulators.registers[lane][i],
          accumulators.values[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2]);
}

Accumulators& accumulators_of(WarpState& state, void** operands, int columns) {
  float* const first = static_cast<Operands*>(operands[0])->d;
  for (auto& known : state.accumulators)
    if (known->registers[0] == first) {
      if (known->columns != columns) fail("wgmma: products of two shapes for the same accumulators, without a wait");
      return *known;
    }
  if (!state.fenced) fail("wgmma: no wgmma_fence() since the accumulators were the threads' own");
  auto made = std::make_unique<Accumulators>();
  made->columns = columns;
  made->in_flight = 0;
  for (int lane = 0; lane < 32; lane++) made->registers[lane] = static_cast<Operands*>(operands[lane])->d;
  each_register(*made, [](float& own, float& value) {
    value = own;
    own = as_float(0x7fc00000u);
  });
  state.accumulators.push_back(std::move(made));
  return *state.accumulators.back();
}

// ---- instructions of a warp -----------------------------------------------------------------------------------------

void all_lanes(unsigned lanes, const char* name) {
  if (lanes != 0xffffffffu) fail("%s needs all 32 lanes, has 0x%08x", name, lanes);
  if (warp_number() / 4 * 128 + 128 > thread_count_of_block())
    fail("%s needs warpgroups of 128 threads, the block has %u threads", name, thread_count_of_block());
}

void execute_issue(void** operands, unsigned lanes) {
  all_lanes(lanes, "wgmma.mma_async");
  const Operands& o = *static_cast<Operands*>(operands[0]);
  for (int lane = 1; lane < 32; lane++)
    if (!o.same_as(*static_cast<Operands*>(operands[lane])))
      fail("wgmma: lanes 0 and %d of a warp give different descriptors", lane);
  WarpState& state = states[warp_number()];
  state.issued.push_back(o);
  for (unsigned warp = warp_number() / 4 * 4, end = warp + 4; warp < end; warp++) {
    const std::vector<Operands>& other = states[warp].issued;
    if (other.size() >= state.issued.size() && !o.same_as(other[state.issued.size() - 1]))
      fail("wgmma: warps %u and %u of a warpgroup give different descriptors", warp_number(), warp);
  }
  if (o.a_registers && !state.a_fenced) fail("wgmma: no wgmma_fence() since the last group, so A may not be there yet");
  Accumulators& accumulators = accumulators_of(state, operands, o.columns);
  accumulators.in_flight++;
  Product product = {o, &accumulators, {}};
  for (int lane = 0; lane < 32; lane++) product.a_registers[lane] = static_cast<Operands*>(operands[lane])->a_registers;
  state.products.push_back(product);
  if (!copies_land_early()) compute(state.products.back(), warp_number());
}

void execute_fence(void**, unsigned lanes) {
  all_lanes(lanes, "wgmma.fence");
  states[warp_number()].fenced = states[warp_number()].a_fenced = true;
}

unsigned committed(const WarpState& state) {
  unsigned count = 0;
  for (unsigned size : state.group_sizes) count += size;
  return count;
}

void execute_commit(void**, unsigned lanes) {
  all_lanes(lanes, "wgmma.commit_group");
  WarpState& state = states[warp_number()];
  state.group_sizes.push_back(state.products.size() - committed(state));
  state.a_fenced = false;
}

void execute_wait(void** operands, unsigned lanes) {
  all_lanes(lanes, "wgmma.wait_group");
  WarpState& state = states[warp_number()];
  size_t pending = *static_cast<int*>(operands[0]);
  while (state.group_sizes.size() > pending) {
    for (unsigned i = 0; i < state.group_sizes.front(); i++) {
      if (copies_land_early()) compute(state.products[i], warp_number());
      state.products[i].accumulators->in_flight--;
    }
    state.products.erase(state.products.begin(), state.products.begin() + state.group_sizes.front());
    state.group_sizes.erase(state.group_sizes.begin());
  }
  std::erase_if(state.accumulators, [&](auto& done) {
    if (done->in_flight) return false;
    each_register(*done, [](float& own, float& value) { own = value; });
    state.fenced = false;
    return true;
  });
}

}  // namespace

void begin_block_products() {
  states.clear();
  states.resize((thread_count_of_block() + 31) / 32);
}

const char* end_block_products() {
  for (size_t warp = 0; warp < states.size(); warp++) {
    if (!states[warp].products.empty()) return "ends while a wgmma that nobody waited for is under way";
    if (states[warp].issued.size() != states[warp / 4 * 4].issued.size())
      return "the warps of a warpgroup have executed different numbers of wgmma";
  }
  return nullptr;
}

void multiply_async(Format format, float* d, int columns, unsigned long long a, unsigned long long b, bool a_by_lines,
                    bool b_by_lines) {
  Operands operands = {d, format, columns, a, b, a_by_lines, b_by_lines, nullptr};
  collective("wgmma.mma_async", execute_issue, 0xffffffffu, &operands);
}

void multiply_async_tf32(float* d, int columns, const unsigned* a, unsigned long long b) {
  Operands operands = {d, Format::tf32, columns, 0, b, false, false, a};
  collective("wgmma.mma_async", execute_issue, 0xffffffffu, &operands);
}

void fence_warpgroup() { collective("wgmma.fence", execute_fence, 0xffffffffu, nullptr); }
void commit_products() { collective("wgmma.commit_group", execute_commit, 0xffffffffu, nullptr); }
void wait_for_products(int pending_groups) {
  collective("wgmma.wait_group", execute_wait, 0xffffffffu, &pending_groups);
}

}  // namespace emulator
