// sm_90's asynchronous proxy: the second path to shared memory, by which bulk copies write and wgmma reads. What a
// thread writes by the first path, the generic one, is seen by the second only behind a fence.proxy.async of that
// thread. So there is a second copy of dynamic shared memory here, `view`, which begins as NaN.
//
// Generic writes that are followed: those of asynchronous copies, from the kernel's first use of anything in this file.
// A plain store to shared memory never gets into the view: wgmma then reads NaN, and nothing passes by mistake.
#include <cstdint>
#include <cstring>
#include <vector>

#include "runtime.h"

namespace emulator {

namespace {

// Where dynamic shared memory begins in the window of shared memory: at a multiple of 128, as DYN_SHARED promises, and
// not of 1024, so that a kernel that relies on more is seen.
constexpr unsigned kWindow = 0x480;

struct Range {
  unsigned char* begin;
  unsigned bytes;
};

struct BulkCopy {
  unsigned char* to;
  const void* from;
  unsigned bytes;
};

struct Mbarrier {
  const unsigned long long* address;
  unsigned count, pending;  // arrivals of a phase, and those that are missing in this one
  long long bytes_due;      // expected and not yet copied
  unsigned phase;
  unsigned maker;  // the thread that initialised it
  bool fenced;     // since then
  std::vector<BulkCopy> copies;  // on their way
};

std::vector<unsigned char> view;
bool in_use;  // in this block
std::vector<std::vector<Range>> unfenced;  // by thread
std::vector<Mbarrier> mbarriers;

void use() {
  if (in_use) return;
  in_use = true;
  view.assign(dynamic_shared_bytes(), 0xff);
  unfenced.resize(thread_count_of_block());
  for (auto& ranges : unfenced) ranges.clear();
}

void publish(const unsigned char* begin, unsigned bytes) {
  memcpy(view.data() + (begin - dynamic_shared()), begin, bytes);
}

bool in_dynamic(const void* p, size_t bytes) {
  uintptr_t address = reinterpret_cast<uintptr_t>(p), first = reinterpret_cast<uintptr_t>(dynamic_shared());
  return address >= first && address + bytes <= first + dynamic_shared_bytes();
}

Mbarrier& find(const unsigned long long* barrier, const char* who) {
  for (Mbarrier& known : mbarriers)
    if (known.address == barrier) return known;
  fail("%s: no thread has initialised this mbarrier", who);
  return mbarriers.front();  // fail() does not come back
}

void land(Mbarrier& barrier, const BulkCopy& copy) {
  memcpy(copy.to, copy.from, copy.bytes);
  publish(copy.to, copy.bytes);
  barrier.bytes_due -= copy.bytes;
}

void complete_if_due(Mbarrier& barrier) {
  if (barrier.pending || barrier.bytes_due) return;
  barrier.phase++;
  barrier.pending = barrier.count;
  wake_all();
}

}  // namespace

void begin_block_async() {
  in_use = false;
  mbarriers.clear();
}

const char* end_block_async() {
  for (const Mbarrier& barrier : mbarriers)
    if (!barrier.copies.empty()) return "ends while a bulk copy that nobody waited for is under way";
  return nullptr;
}

void copy_landed(void* to, unsigned bytes) {
  if (in_use && in_dynamic(to, bytes)) unfenced[thread_number()].push_back({static_cast<unsigned char*>(to), bytes});
}

unsigned shared_address(const void* p) {
  use();
  if (!in_dynamic(p, 0)) fail("shared_address: this does not lie in dynamic shared memory");
  return kWindow + static_cast<unsigned>(static_cast<const unsigned char*>(p) - dynamic_shared());
}

const unsigned char* async_view(unsigned address, unsigned bytes) {
  use();
  if (address < kWindow || address + bytes > kWindow + view.size())
    fail("wgmma: a descriptor leads to address 0x%x, outside of dynamic shared memory (0x%x to 0x%zx)", address,
         kWindow, kWindow + view.size());
  return view.data() + (address - kWindow);
}

void fence_proxy_async() {
  use();
  for (const Range& range : unfenced[thread_number()]) publish(range.begin, range.bytes);
  unfenced[thread_number()].clear();
  for (Mbarrier& barrier : mbarriers)
    if (barrier.maker == thread_number()) barrier.fenced = true;
}

void init_mbarrier(unsigned long long* barrier, unsigned count) {
  use();
  if (reinterpret_cast<uintptr_t>(barrier) % 8 || !in_shared(barrier, 8))
    fail("mbarrier_init: expected 8 aligned bytes of shared memory");
  for (const Mbarrier& known : mbarriers)
    if (known.address == barrier) fail("mbarrier_init: this mbarrier is in use");
  mbarriers.push_back({barrier, count, count, 0, 0, thread_number(), false, {}});
}

void arrive_and_expect(unsigned long long* barrier, unsigned bytes) {
  Mbarrier& known = find(barrier, "mbarrier_arrive_expect");
  if (known.pending == 0) fail("mbarrier_arrive_expect: more than the %u arrivals of a phase", known.count);
  known.pending--;
  known.bytes_due += bytes;
  complete_if_due(known);
}

// Copies land when the first thread waits for them, and not before: shows a wait that is missing. Or at once: shows a
// slot that is still read.
void wait_for_mbarrier(unsigned long long* barrier, unsigned parity) {
  while (find(barrier, "mbarrier_wait").phase % 2 == parity) {
    Mbarrier& known = find(barrier, "mbarrier_wait");
    if (known.pending == 0 && !known.copies.empty()) {
      for (const BulkCopy& copy : known.copies) land(known, copy);
      known.copies.clear();
      complete_if_due(known);
      if (known.phase % 2 != parity) break;
    }
    sleep("an mbarrier");
  }
}

void copy_bulk(void* shared, const void* global, unsigned bytes, unsigned long long* barrier) {
  Mbarrier& known = find(barrier, "copy_bulk");
  if (!known.fenced) fail("copy_bulk: no fence_proxy_async() behind mbarrier_init(), so the copy may not see it");
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16 || bytes % 16)
    fail("copy_bulk: addresses and size are no multiples of 16");
  if (!in_dynamic(shared, bytes)) fail("copy_bulk: the destination does not lie in dynamic shared memory");
  if (in_shared(global, bytes)) fail("copy_bulk: the source lies in shared memory");
  BulkCopy copy = {static_cast<unsigned char*>(shared), global, bytes};
  if (copies_land_early()) {
    land(known, copy);
    complete_if_due(known);
  } else {
    known.copies.push_back(copy);
  }
}

}  // namespace emulator
