// common.cuh: what every kernel source includes. How a kernel is written here:
//
//   // variants: {"REAL": ["float", "double"]}       every combination of macros that Python may ask for (JSON)
//   #include "common.cuh"
//   extern "C" __global__ void __launch_bounds__(256) name(const REAL* x, REAL* y, int n) { ... }
//
// - Choices made at compile time are macros (REAL, tile sizes), declared in the `variants` line of the head comment and
//   given to launch(); no templated kernels. Lines of the head comment (before the first line of code) that are read:
//       variants: {"BM": [64, 128], "REAL": ["float"]}           the product; or a list of such objects
//       requires: sm_80                                          the oldest architecture; "sm_90a": this one only.
//                                                                in one object of `variants`, "requires": for it alone
//       option: ELU=1                                            a macro that any variant may have besides; --check
//                                                                compiles the last variant with it, to be quick
//       64-bit indices: name, ...                                kernels that may get more than 2^31 - 1 elements
//       spills: name on sm_75: the reason                        registers that may go to memory, and why
//       dynamic shared: name: STAGES * BM * 4                    bytes of DYN_SHARED that launches of a kernel ask for
// - Only "x.cuh" headers of this folder, no <...>: the compiler of the GPU (NVRTC) has none. So `unsigned` and
//   `long long`, not uint32_t.
// - Static shared memory as in CUDA; dynamic shared memory by DYN_SHARED(T, name), 128-byte aligned.
// - PTX only through ptx.cuh, whose instructions have CPU twins, so that each kernel runs in the emulator as it is.
// - Every thread of a block reaches each __syncthreads(): no early `return` above one.
#pragma once

#ifndef REAL
#define REAL float
#endif

#ifndef CUDA_EMULATOR
#define DYN_SHARED(T, name)                                              \
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared_bytes)
#endif

#define FULL_WARP 0xffffffffu
#define INFINITE __builtin_huge_val()

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
__host__ __device__ constexpr T round_up(T a, T multiple) {
  return ceil_div(a, multiple) * multiple;
}

// The number of this thread in the grid, and the number of threads, along x.
__device__ __forceinline__ long long grid_thread() {
  return blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
}
__device__ __forceinline__ long long grid_threads() { return gridDim.x * static_cast<long long>(blockDim.x); }

// Sum over the 32 lanes of a warp; every lane gets it.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(FULL_WARP, value, lanes);
  return value;
}

// 16-bit floating-point numbers as they lie in memory: NumPy's float16, and the upper half of a float32 (uint16 in
// NumPy, which has no bfloat16). Arithmetic is done in float; the conversions are in ptx.cuh.
struct fp16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};
