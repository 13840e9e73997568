// What the emulator offers to compiled kernels. cuda_emulator.h gives it CUDA's names; ptx.cuh uses the rest.
#pragma once
#include <cstddef>

namespace emulator {

struct Index {
  unsigned x, y, z;
};

// Where the running thread is. Plain globals: one block runs at a time, on one OS thread.
extern const Index* thread_index;
extern Index block_index, block_size, grid_size;

// Ends the launch with an error that names the kernel, the block, the thread and this message. Does not come back.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- barriers of the block. All threads must come to the same kind. Gives the number of true predicates.
enum class Barrier { sync, vote_or, vote_and, count };
int barrier(Barrier kind, bool predicate);

// ---- instructions of a warp: every lane in `mask` hands in an operand, and the last one to arrive executes
// `instruction` for all of them. operands[lane] is set for the lanes in `lanes`: those in the mask that did not exit.
using Instruction = void (*)(void** operands, unsigned lanes);
void collective(const char* name, Instruction instruction, unsigned mask, void* operand);

// ---- memory
void poison(unsigned char* begin, size_t bytes);  // 0xff: NaN in every floating-point format, -1 as an integer
unsigned char* dynamic_shared();
void copy_async(void* shared, const void* global, unsigned bytes, bool valid);
void commit_copies();
void wait_for_copies(int pending_groups);  // -1: the group that is still open too
void load_matrices(unsigned* registers, const void* row, int count, bool transposed);

// ---- sm_90 (async_proxy.cpp): the asynchronous proxy's view of shared memory, mbarriers, bulk copies
unsigned shared_address(const void* p);  // of dynamic shared memory, as descriptors give it
void fence_proxy_async();
void init_mbarrier(unsigned long long* barrier, unsigned count);
void arrive_and_expect(unsigned long long* barrier, unsigned bytes);
void wait_for_mbarrier(unsigned long long* barrier, unsigned parity);
void copy_bulk(void* shared, const void* global, unsigned bytes, unsigned long long* barrier);

// ---- sm_90 (warpgroups.cpp): products of a warpgroup. d: the accumulators of one lane, 4 for each 8 columns
enum class Format { bf16, fp16, tf32 };
void multiply_async(Format format, float* d, int columns, unsigned long long a, unsigned long long b, bool a_by_lines,
                    bool b_by_lines);
void multiply_async_tf32(float* d, int columns, const unsigned* a, unsigned long long b);  // a: the lane's 4 registers
void fence_warpgroup();
void commit_products();
void wait_for_products(int pending_groups);

// ---- tensor cores: the fragments of one lane, laid out as in the PTX manual
void multiply_tf32(float* c, const unsigned* a, const unsigned* b);  // m16n8k8
void multiply_bf16(float* c, const unsigned* a, const unsigned* b);  // m16n8k16
void multiply_fp16(float* c, const unsigned* a, const unsigned* b);  // m16n8k16

// ---- what the other files of the emulator use
unsigned thread_number(), thread_count_of_block();
size_t dynamic_shared_bytes();
bool in_shared(const void* p, size_t bytes);
bool copies_land_early();          // and products are then computed late: what one order hides, the other shows
void sleep(const char* at);        // the current thread waits until wake_all(); a deadlock names `at`
void wake_all();
void begin_block_async();          // async_proxy.cpp
const char* end_block_async();     // null, or what was left unfinished
void copy_landed(void* to, unsigned bytes);  // a generic write, by the current thread
const unsigned char* async_view(unsigned address, unsigned bytes);
void begin_block_products();       // warpgroups.cpp
const char* end_block_products();

// ---- launching
struct Kernel {
  const char* name;
  void (*call)(void** arguments);
  unsigned max_threads;  // __launch_bounds__
};

// A static __shared__ array. The builder writes one of these behind each declaration; it is initialised, and so links
// itself in, when the first thread gets there. `first` is one per library.
struct SharedArray {
  unsigned char* begin;
  size_t bytes;
  const SharedArray* next;
  static inline const SharedArray* first = nullptr;
  template <class T>
  explicit SharedArray(T& array) : begin(reinterpret_cast<unsigned char*>(&array)), bytes(sizeof(T)), next(first) {
    first = this;
    poison(begin, bytes);
  }
};

struct Launch {
  Kernel kernel;
  Index grid, block;
  size_t shared_bytes;
  void** arguments;
  unsigned seed;  // 0: natural order, copies land late. Others shuffle blocks, warps, lanes; odd ones land copies early
  const SharedArray* const* static_shared;  // where the library's list begins
};

const char* run(const Launch& launch);  // null, or what went wrong

}  // namespace emulator
