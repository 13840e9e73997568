// Runs the threads of a CUDA grid on the CPU: block after block, each thread a fiber, switched at barriers only.
#include "runtime.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

const Index* thread_index;
Index block_index, block_size, grid_size;

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStackBytes = 128 << 10;  // builder.py lets no function take more than half of it
// Stacks that start at multiples of 4096 would all fall into the same few lines of the cache.
constexpr size_t kStackStride = kStackBytes + 9 * 64;
// Behind dynamic shared memory, checked after each block; none under ASan, which forbids the first byte behind it.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kGuardBytes = 0;
#else
constexpr size_t kGuardBytes = 128;
#endif

struct Copy {
  void* to;
  const void* from;
  unsigned bytes;
  bool valid;
};

struct Warp;

struct Thread {
  Index index;
  unsigned lane;
  Warp* warp;
  Fiber fiber;
  char* stack;
  std::vector<Copy> copies;           // cp.async that have not landed, oldest first
  std::vector<unsigned> group_sizes;  // the committed groups among them; the copies behind these are the open group
};

struct Warp {
  Thread* threads;  // of its 32 lanes
  unsigned lanes;   // one bit each, here and below
  unsigned ready, started, alive, at_barrier, at_collective, asleep;
  void* operands[32];
  Instruction instructions[32];
  unsigned masks[32];
  const char* names[32];
};

Launch launch;
std::string error;
Fiber main_fiber;
Thread* current;

std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<unsigned> warp_order;
unsigned thread_count, warp_position, first_lane;

char* stacks;
std::vector<char*> free_stacks;
unsigned stacks_used;

unsigned arrived;  // at the barrier of the block
const char* asleep_at;
Barrier barrier_kind;
int votes, barrier_result;

unsigned char* dynamic_memory;
size_t dynamic_bytes;
bool copies_were_made;

unsigned random_state;
unsigned random_below(unsigned n) {
  random_state = random_state * 1664525u + 1013904223u;
  return static_cast<unsigned>((static_cast<uint64_t>(random_state) * n) >> 32);
}

const char* const kBarrierNames[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count"};

std::string format(const char* text, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(buffer, sizeof buffer, text, arguments);
  va_end(arguments);
  return buffer;
}

std::string show(Index i) { return format("(%u, %u, %u)", i.x, i.y, i.z); }

// ---- stacks ---------------------------------------------------------------------------------------------------------

char* take_stack() {
  if (free_stacks.empty()) return stacks + kStackStride * stacks_used++;
  char* stack = free_stacks.back();
  free_stacks.pop_back();
  return stack;
}

// ---- the scheduler --------------------------------------------------------------------------------------------------

// The next thread that can run. Stays in one warp as long as it gets on, as slow and fast warps do on a GPU.
Thread* next_ready() {
  for (size_t tried = 0; tried <= warps.size(); tried++) {
    Warp& warp = warps[warp_order[warp_position]];
    if (warp.ready) {
      unsigned rotated = warp.ready >> first_lane | warp.ready << (-first_lane & 31);
      unsigned lane = (__builtin_ctz(rotated) + first_lane) & 31;
      warp.ready &= ~(1u << lane);
      return warp.threads + lane;
    }
    warp_position = warp_position + 1 == warps.size() ? 0 : warp_position + 1;
  }
  return nullptr;
}

void set_current(Thread* thread) {
  current = thread;
  thread_index = &thread->index;
}

void run_threads();

// True the first time.
bool starts_now(Thread* thread) {
  unsigned bit = 1u << thread->lane;
  bool first = !(thread->warp->started & bit);
  thread->warp->started |= bit;
  return first;
}

// The current thread cannot go on: let another one run. Comes back when it can.
void wait() {
  Thread* self = current;
  Thread* next = next_ready();
  if (!next) {
    switch_fiber(self->fiber, main_fiber);  // a deadlock; never comes back
    abort();
  }
  set_current(next);
  if (starts_now(next)) {
    next->stack = take_stack();
    prepare_fiber(next->fiber, next->stack, kStackBytes, run_threads);
  }
  switch_fiber(self->fiber, next->fiber);
}

void complete(Warp& warp, unsigned lanes) {
  unsigned first = __builtin_ctz(lanes);
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    unsigned lane = __builtin_ctz(rest);
    if (warp.masks[lane] != warp.masks[first] || warp.instructions[lane] != warp.instructions[first])
      fail(
          "the lanes of one warp meet at different instructions: lane %u is at %s with mask 0x%08x, lane %u at %s with "
          "mask 0x%08x",
          first, warp.names[first], warp.masks[first], lane, warp.names[lane], warp.masks[lane]);
  }
  warp.instructions[first](warp.operands, lanes);
  warp.at_collective &= ~lanes;
}

// A lane exits: those that wait at a warp's instruction do not wait for it any longer.
void retire(Thread* thread) {
  Warp& warp = *thread->warp;
  warp.alive &= ~(1u << thread->lane);
  while (warp.at_collective) {
    unsigned before = warp.at_collective;
    for (unsigned rest = before; rest; rest &= rest - 1) {
      unsigned lanes = warp.masks[__builtin_ctz(rest)] & warp.alive;
      if ((warp.at_collective & lanes) == lanes) {
        complete(warp, lanes);
        warp.ready |= lanes;
        break;
      }
    }
    if (warp.at_collective == before) break;
  }
}

// The code of every fiber: one thread to its end, then the next on the same stack. Kernels without a barrier thus run
// as a plain loop.
void run_threads() {
  for (;;) {
    launch.kernel.call(launch.arguments);
    Thread* self = current;
    retire(self);
    Thread* next = next_ready();
    if (!next) {
      switch_fiber(self->fiber, main_fiber);
      abort();
    }
    set_current(next);
    if (starts_now(next)) {
      next->stack = self->stack;
    } else {
      free_stacks.push_back(self->stack);
      switch_fiber(self->fiber, next->fiber);
      abort();
    }
  }
}

// ---- reports --------------------------------------------------------------------------------------------------------

std::string state_of(const Thread& thread) {
  const Warp& warp = *thread.warp;
  unsigned bit = 1u << thread.lane;
  if (warp.at_barrier & bit) return std::string("wait at ") + kBarrierNames[static_cast<int>(barrier_kind)];
  if (warp.at_collective & bit)
    return format("wait at %s with mask 0x%08x", warp.names[thread.lane], warp.masks[thread.lane]);
  if (warp.asleep & bit) return std::string("wait at ") + asleep_at;
  return "have exited";
}

std::string deadlock_report() {
  std::vector<std::pair<std::string, std::string>> states;  // what they do -> which threads
  for (unsigned i = 0; i < thread_count;) {
    std::string state = state_of(threads[i]);
    unsigned end = i + 1;
    while (end < thread_count && state_of(threads[end]) == state) end++;
    std::string range = end - i == 1 ? format("%u", i) : format("%u-%u", i, end - 1);
    bool known = false;
    for (auto& [name, ranges] : states)
      if (name == state) ranges += ", " + range, known = true;
    if (!known) states.emplace_back(state, range);
    i = end;
  }
  std::string text = "deadlock: ";
  for (size_t i = 0; i < states.size(); i++)
    text += (i ? "; threads " : "threads ") + states[i].second + " " + states[i].first;
  return text +
         format(" (of %u threads, numbered x first). Every thread of the block must reach each barrier", thread_count);
}

bool any_alive() {
  for (Warp& warp : warps)
    if (warp.alive) return true;
  return false;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

void allocate_dynamic_shared(size_t bytes) {
  free(dynamic_memory);
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes + kGuardBytes) != 0) abort();
  dynamic_memory = static_cast<unsigned char*>(memory);
  dynamic_bytes = bytes;
}

bool guard_is_sound() {
  for (size_t i = 0; i < kGuardBytes; i++)
    if (dynamic_memory[dynamic_bytes + i] != 0xff) return false;
  return true;
}

bool within(const void* p, size_t bytes, const unsigned char* begin, size_t size) {
  uintptr_t address = reinterpret_cast<uintptr_t>(p), first = reinterpret_cast<uintptr_t>(begin);
  return address >= first && address + bytes <= first + size;
}

void land(const Copy& copy) {
  if (copy.valid)
    memcpy(copy.to, copy.from, copy.bytes);
  else
    memset(copy.to, 0, copy.bytes);
  copy_landed(copy.to, copy.bytes);
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

void forget_copies(Thread& thread) {
  thread.copies.clear();
  thread.group_sizes.clear();
}

void prepare_threads() {
  thread_count = launch.block.x * launch.block.y * launch.block.z;
  unsigned warp_count = (thread_count + 31) / 32;
  if (threads.size() < kMaxThreads) threads.resize(kMaxThreads);
  if (copies_were_made)  // by a launch before, perhaps with more threads
    for (Thread& thread : threads) forget_copies(thread);
  copies_were_made = false;
  warps.assign(warp_count, Warp{});
  Index index = {0, 0, 0};
  for (unsigned i = 0; i < thread_count; i++) {
    Thread& thread = threads[i];
    thread.index = index;
    thread.lane = i % 32;
    thread.warp = &warps[i / 32];
    thread.warp->lanes |= 1u << thread.lane;
    if (++index.x == launch.block.x) {
      index.x = 0;
      if (++index.y == launch.block.y) index.y = 0, index.z++;
    }
  }
  for (unsigned i = 0; i < warp_count; i++) warps[i].threads = &threads[32 * i];
  warp_order.resize(warp_count);
}

void choose_order(unsigned block) {
  std::iota(warp_order.begin(), warp_order.end(), 0u);
  warp_position = first_lane = 0;
  if (launch.seed == 0) return;
  random_state = launch.seed * 2654435761u + block * 40503u;
  for (unsigned i = warp_order.size(); i > 1; i--) std::swap(warp_order[i - 1], warp_order[random_below(i)]);
  first_lane = random_below(32);
}

bool run_block() {
  for (Warp& warp : warps) {
    warp.ready = warp.alive = warp.lanes;
    warp.started = warp.at_barrier = warp.at_collective = warp.asleep = 0;
  }
  arrived = votes = 0;
  begin_block_async();
  begin_block_products();
  if (copies_were_made)
    for (unsigned i = 0; i < thread_count; i++) forget_copies(threads[i]);
  free_stacks.clear();
  stacks_used = 0;
  for (const SharedArray* array = *launch.static_shared; array; array = array->next) poison(array->begin, array->bytes);
  poison(dynamic_memory, dynamic_bytes + kGuardBytes);

  Thread* first = next_ready();
  set_current(first);
  starts_now(first);
  first->stack = take_stack();
  prepare_fiber(first->fiber, first->stack, kStackBytes, run_threads);
  switch_fiber(main_fiber, first->fiber);

  std::string where = format("kernel %s, block ", launch.kernel.name) + show(block_index) + ": ";
  if (error.empty() && any_alive()) error = where + deadlock_report();
  if (error.empty() && !guard_is_sound())
    error = where + format("wrote behind the end of dynamic shared memory (%zu bytes)", dynamic_bytes);
  for (const char* unfinished : {end_block_async(), end_block_products()})
    if (error.empty() && unfinished) error = where + unfinished;
  return error.empty();
}

}  // namespace

// ---- what kernels call ----------------------------------------------------------------------------------------------

void fail(const char* text, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, text);
  vsnprintf(buffer, sizeof buffer, text, arguments);
  va_end(arguments);
  error = format("kernel %s, block ", launch.kernel.name) + show(block_index) + ", thread " + show(*thread_index) +
          ": " + buffer;
  switch_fiber(current->fiber, main_fiber);
}

int barrier(Barrier kind, bool predicate) {
  if (arrived && kind != barrier_kind)
    fail("is at %s while others wait at %s", kBarrierNames[static_cast<int>(kind)],
         kBarrierNames[static_cast<int>(barrier_kind)]);
  barrier_kind = kind;
  votes += predicate;
  if (++arrived < thread_count) {
    current->warp->at_barrier |= 1u << current->lane;
    wait();
    return barrier_result;
  }
  for (Warp& warp : warps) warp.ready |= std::exchange(warp.at_barrier, 0u);
  arrived = 0;
  return barrier_result = std::exchange(votes, 0);
}

void collective(const char* name, Instruction instruction, unsigned mask, void* operand) {
  unsigned lane = current->lane, bit = 1u << lane;
  Warp& warp = *current->warp;
  if (!(mask & bit)) fail("%s with mask 0x%08x, which leaves out the calling lane %u", name, mask, lane);
  warp.operands[lane] = operand;
  warp.instructions[lane] = instruction;
  warp.masks[lane] = mask;
  warp.names[lane] = name;
  warp.at_collective |= bit;
  unsigned lanes = mask & warp.alive;
  if ((warp.at_collective & lanes) == lanes) {
    complete(warp, lanes);
    warp.ready |= lanes & ~bit;
  } else {
    wait();
  }
}

void poison(unsigned char* begin, size_t bytes) { memset(begin, 0xff, bytes); }

unsigned char* dynamic_shared() { return dynamic_memory; }
size_t dynamic_shared_bytes() { return dynamic_bytes; }

bool in_shared(const void* p, size_t bytes) {
  if (within(p, bytes, dynamic_memory, dynamic_bytes)) return true;
  for (const SharedArray* array = *launch.static_shared; array; array = array->next)
    if (within(p, bytes, array->begin, array->bytes)) return true;
  return false;
}

unsigned thread_number() { return static_cast<unsigned>(current - threads.data()); }
unsigned thread_count_of_block() { return thread_count; }
bool copies_land_early() { return launch.seed & 1; }

void sleep(const char* at) {
  asleep_at = at;
  current->warp->asleep |= 1u << current->lane;
  wait();
}

void wake_all() {
  for (Warp& warp : warps) warp.ready |= std::exchange(warp.asleep, 0u);
}

void copy_async(void* shared, const void* global, unsigned bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes)
    fail("cp_async%u: the shared address is no multiple of %u", bytes, bytes);
  if (reinterpret_cast<uintptr_t>(global) % bytes)  // of what is not read, too: the PTX manual makes no exception
    fail("cp_async%u: the global address is no multiple of %u", bytes, bytes);
  if (!in_shared(shared, bytes)) fail("cp_async%u: the destination does not lie in shared memory", bytes);
  if (valid && in_shared(global, bytes)) fail("cp_async%u: the source lies in shared memory", bytes);
  Copy copy = {shared, global, bytes, valid};
  copies_were_made = true;
  if (copies_land_early()) {
    land(copy);  // hardware may be this fast: shows a slot that others still read
    copy.bytes = 0;
  }
  current->copies.push_back(copy);
}

void commit_copies() {
  copies_were_made = true;
  unsigned committed = 0;
  for (unsigned size : current->group_sizes) committed += size;
  current->group_sizes.push_back(current->copies.size() - committed);
}

// Data lands here and not before, as late as hardware may let it: shows a wait that is missing or too lax.
void wait_for_copies(int pending_groups) {
  if (pending_groups < 0) {
    commit_copies();
    pending_groups = 0;
  }
  auto& copies = current->copies;
  auto& groups = current->group_sizes;
  if (groups.size() <= static_cast<size_t>(pending_groups)) return;
  size_t done_groups = groups.size() - pending_groups, done = 0;
  for (size_t g = 0; g < done_groups; g++) done += groups[g];
  for (size_t i = 0; i < done; i++)
    if (copies[i].bytes) land(copies[i]);
  copies.erase(copies.begin(), copies.begin() + done);
  groups.erase(groups.begin(), groups.begin() + done_groups);
}

struct MatrixLoad {
  unsigned* registers;
  const char* row;
};

// Lane l names row l % 8 of matrix l / 8 (8 rows of 16 bytes). It receives two neighbouring 16-bit elements of row
// l / 4, or of column l / 4 if transposed.
template <int count, bool transposed>
static void execute_matrix_load(void** operands, unsigned lanes) {
  if (lanes != 0xffffffffu) fail("ldmatrix needs all 32 lanes, has 0x%08x", lanes);
  for (int matrix = 0; matrix < count; matrix++) {
    const char* rows[8];
    for (int i = 0; i < 8; i++) {
      rows[i] = static_cast<MatrixLoad*>(operands[matrix * 8 + i])->row;
      if (reinterpret_cast<uintptr_t>(rows[i]) % 16)
        fail("ldmatrix: lane %d's row is no multiple of 16", matrix * 8 + i);
      if (!in_shared(rows[i], 16)) fail("ldmatrix: lane %d's row does not lie in shared memory", matrix * 8 + i);
    }
    for (int lane = 0; lane < 32; lane++) {
      unsigned* to = &static_cast<MatrixLoad*>(operands[lane])->registers[matrix];
      if (transposed) {
        memcpy(to, rows[2 * (lane % 4)] + 2 * (lane / 4), 2);
        memcpy(reinterpret_cast<char*>(to) + 2, rows[2 * (lane % 4) + 1] + 2 * (lane / 4), 2);
      } else {
        memcpy(to, rows[lane / 4] + 4 * (lane % 4), 4);
      }
    }
  }
}

void load_matrices(unsigned* registers, const void* row, int count, bool transposed) {
  static const Instruction instructions[3][2] = {{execute_matrix_load<1, false>, execute_matrix_load<1, true>},
                                                 {execute_matrix_load<2, false>, execute_matrix_load<2, true>},
                                                 {execute_matrix_load<4, false>, execute_matrix_load<4, true>}};
  MatrixLoad operand = {registers, static_cast<const char*>(row)};
  collective("ldmatrix", instructions[count / 2][transposed], 0xffffffffu, &operand);
}

const char* run(const Launch& requested) {
  launch = requested;
  error.clear();
  block_size = launch.block;
  grid_size = launch.grid;
  if (!stacks) {
    void* memory =
        mmap(nullptr, kStackStride * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return "the emulator found no memory for the stacks of its threads";
    stacks = static_cast<char*>(memory);
  }
  prepare_threads();
  if (thread_count > launch.kernel.max_threads) {
    error = format("kernel %s: a block of %u threads, but __launch_bounds__(%u)", launch.kernel.name, thread_count,
                   launch.kernel.max_threads);
    return error.c_str();
  }
  allocate_dynamic_shared(launch.shared_bytes);

  // Block i * step + start: with a seed, another order of the blocks too.
  uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z, step = 1, start = 0;
  if (launch.seed) {
    random_state = launch.seed * 2654435761u;
    unsigned range = blocks < 0xffffffffu ? blocks : 0xffffffffu;
    start = random_below(range);
    for (step = 1 + random_below(range); std::gcd(step, blocks) != 1; step++) {
    }
  }
  for (uint64_t i = 0; i < blocks; i++) {
    uint64_t b = (i * step + start) % blocks;
    block_index = {static_cast<unsigned>(b % launch.grid.x), static_cast<unsigned>(b / launch.grid.x % launch.grid.y),
                   static_cast<unsigned>(b / launch.grid.x / launch.grid.y)};
    choose_order(static_cast<unsigned>(b));
    if (!run_block()) {
#ifdef __SANITIZE_ADDRESS__
      __asan_unpoison_memory_region(stacks, kStackStride * kMaxThreads);  // the abandoned threads' frames
#endif
      return error.c_str();
    }
  }
  return nullptr;
}

}  // namespace emulator
