// ptx.cuh: each PTX instruction that the kernels use, as a device function; in the emulator, its CPU twin.
#pragma once

#include "common.cuh"

#ifndef CUDA_EMULATOR
__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
#endif

// ---- number formats -------------------------------------------------------------------------------------------------

// float -> TF32 (a float with 10 mantissa bits), to nearest, ties away from zero. sm_80
__device__ __forceinline__ unsigned to_tf32(float x) {
#ifdef CUDA_EMULATOR
  return emulator::round_to_tf32(x);
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// float -> bf16, to nearest even.
__device__ __forceinline__ bf16 to_bf16(float x) {
  bf16 y;
#ifdef CUDA_EMULATOR
  y.bits = emulator::round_to_bf16(x);
#elif __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else  // no such instruction before sm_80
  unsigned bits = __float_as_uint(x);
  y.bits = x != x ? 0x7fff : static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
#endif
  return y;
}

// float -> fp16, to nearest even; 65520 and more becomes infinity.
__device__ __forceinline__ fp16 to_fp16(float x) {
  fp16 y;
#ifdef CUDA_EMULATOR
  y.bits = emulator::round_to_fp16(x);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
  return y;
}

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ __forceinline__ float to_float(fp16 x) {
#ifdef CUDA_EMULATOR
  return emulator::widen_fp16(x.bits);
#else
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#endif
}

// Two 16-bit numbers in one register, as ldmatrix and mma want them; `low` is the one with the smaller index.
template <class Half>
__device__ __forceinline__ unsigned pack(Half low, Half high) {
  return low.bits | static_cast<unsigned>(high.bits) << 16;
}

// ---- asynchronous copies, global -> shared. sm_80 -------------------------------------------------------------------
// Both addresses are multiples of the size. Where `valid` is false, zeros are written and `global` is not read. The
// data is there after a wait (in the thread that copied) and a barrier (in the others).

__device__ __forceinline__ void cp_async4(void* shared, const void* global, bool valid = true) {
#ifdef CUDA_EMULATOR
  emulator::copy_async(shared, global, 4, valid);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
#endif
}

__device__ __forceinline__ void cp_async8(void* shared, const void* global, bool valid = true) {
#ifdef CUDA_EMULATOR
  emulator::copy_async(shared, global, 8, valid);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 8 : 0)
               : "memory");
#endif
}

// Past the L1 cache (.cg), as tiles that each block reads once want it.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
#ifdef CUDA_EMULATOR
  emulator::copy_async(shared, global, 16, valid);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}

// Closes the group of all copies since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#ifdef CUDA_EMULATOR
  emulator::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's committed groups, the newest ones, are still on their way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef CUDA_EMULATOR
  emulator::wait_for_copies(pending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// Waits for all copies of this thread, committed or not.
__device__ __forceinline__ void cp_async_wait_all() {
#ifdef CUDA_EMULATOR
  emulator::wait_for_copies(-1);
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// ---- ldmatrix: 8 x 8 matrices of 16-bit numbers, shared -> registers. sm_75 -----------------------------------------
// Lane l gives the address of row l % 8 (16 bytes, aligned) of matrix l / 8; the lanes beyond the last matrix give any
// valid one. With g = l / 4 and q = l % 4, lane l receives of each matrix the elements 2q and 2q + 1 of row g; with
// _trans, of column g. An 8 x 4 block of floats can be loaded as such a matrix, without _trans: lane l then holds
// float q of row g.

__device__ __forceinline__ void ldmatrix_x1(unsigned (&r)[1], const void* row) {
#ifdef CUDA_EMULATOR
  emulator::load_matrices(r, row, 1, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], const void* row) {
#ifdef CUDA_EMULATOR
  emulator::load_matrices(r, row, 2, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
#ifdef CUDA_EMULATOR
  emulator::load_matrices(r, row, 4, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x1_trans(unsigned (&r)[1], const void* row) {
#ifdef CUDA_EMULATOR
  emulator::load_matrices(r, row, 1, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
#ifdef CUDA_EMULATOR
  emulator::load_matrices(r, row, 2, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
#ifdef CUDA_EMULATOR
  emulator::load_matrices(r, row, 4, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// ---- mma.sync: C[16][8] += A[16][K] * B[K][8] by one warp, float sums. sm_80 ----------------------------------------
// With g = lane / 4 and q = lane % 4, a lane holds
//   C: c[0], c[1] = row g, columns 2q, 2q + 1;  c[2], c[3] = row g + 8. As (row, column), the others:
//   TF32, K = 8:         a = (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4);  b = (q, g), (q + 4, g)
//   bf16, fp16, K = 16:  the same with pairs along k: q stands for 2q, 2q + 1, and q + 4 for 2q + 8, 2q + 9

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_EMULATOR
  emulator::multiply_tf32(c, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_EMULATOR
  emulator::multiply_bf16(c, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_m16n8k16_fp16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_EMULATOR
  emulator::multiply_fp16(c, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
