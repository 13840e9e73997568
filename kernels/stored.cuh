// stored.cuh: values of a tensor as they lie in memory: as REAL, or, between some layers, as 16 bits of it. Arithmetic is
// done in REAL; a kernel that reads or writes either is told the type by a macro.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

template <class T>
__device__ __forceinline__ T widened(T x) {
  return x;
}
__device__ __forceinline__ float widened(bf16 x) { return to_float(x); }
__device__ __forceinline__ float widened(fp16 x) { return to_float(x); }

template <class T>
__device__ __forceinline__ void round_to(T x, T& y) {
  y = x;
}

// COUNT neighbours; one load or store, of 16 bytes at most.
template <class T, int COUNT>
struct __align__(COUNT * sizeof(T)) Neighbours {
  T of[COUNT];
};

template <class T, int COUNT>
__device__ __forceinline__ Neighbours<T, COUNT> load(const T* p) {
  return *reinterpret_cast<const Neighbours<T, COUNT>*>(p);
}

// How many neighbours a thread has where others have one number: 16 bytes of 16 bits, as their channels are a multiple of 8.
template <class T>
constexpr int TOGETHER = sizeof(T) == 2 ? 8 : 1;

// As T, to nearest even.
template <class T, int COUNT>
__device__ __forceinline__ void store(T* p, const REAL (&values)[COUNT]) {
  Neighbours<T, COUNT> stored;
#pragma unroll
  for (int i = 0; i < COUNT; i++) round_to(values[i], stored.of[i]);
  *reinterpret_cast<Neighbours<T, COUNT>*>(p) = stored;
}

// As they are.
template <class T, int COUNT>
__device__ __forceinline__ void store(T* p, const Neighbours<T, COUNT>& values) {
  *reinterpret_cast<Neighbours<T, COUNT>*>(p) = values;
}
