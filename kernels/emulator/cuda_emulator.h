// CUDA's names for a C++ compiler without CUDA. Put before every kernel source by builder.py; the work is in
// runtime.cpp. What is missing here does not compile, so nothing is emulated wrongly in silence.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "numbers.h"
#include "runtime.h"

#define CUDA_EMULATOR 1
#define __CUDA_ARCH__ 800  // the code paths of sm_80; its PTX has CPU twins

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define __shared__ static  // and a SharedArray behind it, see runtime.h
#define DYN_SHARED(T, name) T* const name = reinterpret_cast<T*>(emulator::dynamic_shared())

#define threadIdx (*emulator::thread_index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define warpSize 32

// ---- vector types ---------------------------------------------------------------------------------------------------

using uint3 = emulator::Index;

#define EMULATOR_VECTOR(T, name)                                                     \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                 \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                         \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTOR(signed char, char)
EMULATOR_VECTOR(unsigned char, uchar)
EMULATOR_VECTOR(short, short)
EMULATOR_VECTOR(unsigned short, ushort)
EMULATOR_VECTOR(int, int)
EMULATOR_VECTOR(unsigned, uint)
EMULATOR_VECTOR(float, float)
EMULATOR_VECTOR(double, double)
#undef EMULATOR_VECTOR

// ---- barriers and warps ---------------------------------------------------------------------------------------------

inline void __syncthreads() { emulator::barrier(emulator::Barrier::sync, false); }
inline int __syncthreads_count(int predicate) { return emulator::barrier(emulator::Barrier::count, predicate != 0); }
inline int __syncthreads_or(int predicate) {
  return emulator::barrier(emulator::Barrier::vote_or, predicate != 0) != 0;
}
// Some thread says no = some thread's "not" says yes.
inline int __syncthreads_and(int predicate) {
  return emulator::barrier(emulator::Barrier::vote_and, predicate == 0) == 0;
}

namespace emulator {

inline void meet(void**, unsigned) {}

template <class T>
struct Shuffle {
  T value, result;
  int argument, width;
};

enum class Source { index, up, down, exclusive_or };

template <class T, Source source>
void execute_shuffle(void** operands, unsigned lanes) {
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    int lane = __builtin_ctz(rest);
    auto& own = *static_cast<Shuffle<T>*>(operands[lane]);
    int begin = lane & ~(own.width - 1), from;
    if (source == Source::index) from = begin + (own.argument & (own.width - 1));
    if (source == Source::up) from = lane - own.argument < begin ? lane : lane - own.argument;
    if (source == Source::down) from = lane + own.argument >= begin + own.width ? lane : lane + own.argument;
    if (source == Source::exclusive_or) from = (lane ^ own.argument) >= begin + own.width ? lane : lane ^ own.argument;
    if (lanes >> from & 1)
      own.result = static_cast<Shuffle<T>*>(operands[from])->value;
    else
      memset(&own.result, 0xff, sizeof(T));  // undefined on a GPU: the lane is not in the mask or has exited
  }
}

template <Source source, class T>
T shuffle(const char* name, unsigned mask, T value, int argument, int width) {
  static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_arithmetic_v<T>, "shuffles take 4- and 8-byte numbers");
  Shuffle<T> operand = {value, value, argument, width};
  collective(name, execute_shuffle<T, source>, mask, &operand);
  return operand.result;
}

struct Vote {
  bool predicate;
  unsigned ballot, lanes;
};

inline void execute_vote(void** operands, unsigned lanes) {
  unsigned ballot = 0;
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    int lane = __builtin_ctz(rest);
    ballot |= static_cast<unsigned>(static_cast<Vote*>(operands[lane])->predicate) << lane;
  }
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    Vote& vote = *static_cast<Vote*>(operands[__builtin_ctz(rest)]);
    vote.ballot = ballot;
    vote.lanes = lanes;
  }
}

inline Vote vote(const char* name, unsigned mask, int predicate) {
  Vote operand = {predicate != 0, 0, 0};
  collective(name, execute_vote, mask, &operand);
  return operand;
}

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::collective("__syncwarp", emulator::meet, mask, nullptr);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emulator::shuffle<emulator::Source::index>("__shfl_sync", mask, value, lane, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle<emulator::Source::up>("__shfl_up_sync", mask, value, delta, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle<emulator::Source::down>("__shfl_down_sync", mask, value, delta, width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return emulator::shuffle<emulator::Source::exclusive_or>("__shfl_xor_sync", mask, value, lanes, width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::vote("__ballot_sync", mask, predicate).ballot;
}
inline int __any_sync(unsigned mask, int predicate) {
  return emulator::vote("__any_sync", mask, predicate).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  emulator::Vote result = emulator::vote("__all_sync", mask, predicate);
  return result.ballot == result.lanes;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// One thread runs at a time, so a plain read-modify-write is atomic. The types are those that CUDA has.
namespace emulator {
template <class T, class... Allowed>
concept OneOf = (std::is_same_v<T, Allowed> || ...);
template <class T>
concept Word = OneOf<T, int, unsigned, unsigned long long>;
template <class T, class F>
T update(T* p, F&& f) {
  T old = *p;
  *p = f(old);
  return old;
}
}  // namespace emulator

template <class T>
  requires(emulator::Word<T> || emulator::OneOf<T, float, double>)
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T old) { return old + v; });
}
template <class T>
  requires(emulator::OneOf<T, int, unsigned>)
T atomicSub(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T old) { return old - v; });
}
template <class T>
  requires(emulator::Word<T> || emulator::OneOf<T, long long>)
T atomicMax(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T old) { return old > v ? old : v; });
}
template <class T>
  requires(emulator::Word<T> || emulator::OneOf<T, long long>)
T atomicMin(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T old) { return old < v ? old : v; });
}
template <class T>
  requires(emulator::Word<T>)
T atomicAnd(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T old) { return old & v; });
}
template <class T>
  requires(emulator::Word<T>)
T atomicOr(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T old) { return old | v; });
}
template <class T>
  requires(emulator::Word<T> || emulator::OneOf<T, float>)
T atomicExch(T* p, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T) { return v; });
}
template <class T>
  requires(emulator::Word<T> || emulator::OneOf<T, unsigned short>)
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return emulator::update(p, [=](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return emulator::update(p, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

using std::isfinite;
using std::isinf;
using std::isnan;

#define EMULATOR_MIN_MAX(T)                        \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
// As CUDA's: the other one if one is NaN.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }  // NaN becomes 0
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline void sincospif(float x, float* sine, float* cosine) {
  double angle = std::remainder(static_cast<double>(x), 2.0) * 3.14159265358979323846;
  *sine = static_cast<float>(std::sin(angle));
  *cosine = static_cast<float>(std::cos(angle));
}
inline void sincospi(double x, double* sine, double* cosine) {
  double angle = std::remainder(x, 2.0) * 3.14159265358979323846;
  *sine = std::sin(angle);
  *cosine = std::cos(angle);
}

inline unsigned __float_as_uint(float x) { return emulator::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return emulator::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits_as<float>(x); }
inline float __int_as_float(int x) { return emulator::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::bits_as<double>(x); }

inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; bit++) reversed |= (x >> bit & 1) << (31 - bit);
  return reversed;
}
inline void __trap() { emulator::fail("__trap()"); }

// ---- the kernels of this library ------------------------------------------------------------------------------------

namespace emulator {

template <class... P, size_t... I>
void call_kernel(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
}
template <class... P>
void call_kernel(void (*kernel)(P...), void** arguments) {
  call_kernel(kernel, arguments, std::index_sequence_for<P...>());
}
template <auto kernel>
void call(void** arguments) {
  call_kernel(kernel, arguments);
}

// A list that fills itself while the library is loaded; builder.py writes one Export before each kernel.
struct Export {
  Kernel kernel;
  const Export* next;
  static inline const Export* first = nullptr;
  Export(const char* name, void (*call)(void**), unsigned max_threads = 1024, unsigned = 0)
      : kernel{name, call, max_threads}, next(first) {
    first = this;
  }
};

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) const char* minigan_launch(const char* name, const unsigned* grid,
                                                                             const unsigned* block, size_t shared_bytes,
                                                                             void** arguments, unsigned seed) {
  for (const emulator::Export* item = emulator::Export::first; item; item = item->next)
    if (strcmp(item->kernel.name, name) == 0)
      return emulator::run({item->kernel,
                            {grid[0], grid[1], grid[2]},
                            {block[0], block[1], block[2]},
                            shared_bytes,
                            arguments,
                            seed,
                            &emulator::SharedArray::first});
  return "this kernel is not compiled with these macros: an #if leaves it out";
}
