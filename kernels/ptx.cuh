// ptx.cuh: each PTX instruction that the kernels use, as a device function; in the emulator, its CPU twin.
#pragma once

#include "common.cuh"

// The address in the window of shared memory, which instructions and descriptors take.
__device__ __forceinline__ unsigned shared_address(const void* p) {
#ifdef CUDA_EMULATOR
  return emulator::shared_address(p);
#else
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
#endif
}

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

__device__ __forceinline__ void round_to(float x, bf16& y) { y = to_bf16(x); }
__device__ __forceinline__ void round_to(float x, fp16& y) { y = to_fp16(x); }

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
// Both addresses are multiples of the size, always. Where `valid` is false, zeros are written, and `global` is not read
// and may lead anywhere. The data is there after a wait (in the thread that copied) and a barrier (in the others).

__device__ __forceinline__ void cp_async4(void* shared, const void* global, bool valid = true) {
#ifdef CUDA_EMULATOR
  emulator::copy_async(shared, global, 4, valid);
#else
  asm volatile(
      "{\n.reg .pred zeros;\n"
      "setp.eq.s32 zeros, %2, 0;\n"
      "cp.async.ca.shared.global [%0], [%1], 4, zeros;\n}" ::"r"(shared_address(shared)),
      "l"(global), "r"(static_cast<int>(valid))
      : "memory");
#endif
}

__device__ __forceinline__ void cp_async8(void* shared, const void* global, bool valid = true) {
#ifdef CUDA_EMULATOR
  emulator::copy_async(shared, global, 8, valid);
#else
  asm volatile(
      "{\n.reg .pred zeros;\n"
      "setp.eq.s32 zeros, %2, 0;\n"
      "cp.async.ca.shared.global [%0], [%1], 8, zeros;\n}" ::"r"(shared_address(shared)),
      "l"(global), "r"(static_cast<int>(valid))
      : "memory");
#endif
}

// Past the L1 cache (.cg), as tiles that each block reads once want it.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
#ifdef CUDA_EMULATOR
  emulator::copy_async(shared, global, 16, valid);
#else
  asm volatile(
      "{\n.reg .pred zeros;\n"
      "setp.eq.s32 zeros, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, zeros;\n}" ::"r"(shared_address(shared)),
      "l"(global), "r"(static_cast<int>(valid))
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

// ---- sm_90a: mbarriers and bulk copies ------------------------------------------------------------------------------
// An mbarrier counts, in phases: one ends when `count` arrivals have come and all bytes that they expect are copied.
// Phases have parity 0, 1, 0, ... It lies in shared memory, and is for the others behind a __syncthreads(), for copies
// behind a fence_proxy_async().

__device__ __forceinline__ void mbarrier_init(unsigned long long* barrier, unsigned count) {
#ifdef CUDA_EMULATOR
  emulator::init_mbarrier(barrier, count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
}

// Arrives, and lets the phase last until so many bytes more are copied.
__device__ __forceinline__ void mbarrier_arrive_expect(unsigned long long* barrier, unsigned bytes) {
#ifdef CUDA_EMULATOR
  emulator::arrive_and_expect(barrier, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// Waits until the phase of this parity has ended.
__device__ __forceinline__ void mbarrier_wait(unsigned long long* barrier, unsigned parity) {
#ifdef CUDA_EMULATOR
  emulator::wait_for_mbarrier(barrier, parity);
#else
  unsigned ended = 0;
  while (!ended)
    asm volatile(
        "{\n.reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#endif
}

// The TMA unit copies so many bytes, which lie side by side on both sides, and counts them at the mbarrier. One thread
// calls it. Addresses and size are multiples of 16.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, unsigned bytes,
                                          unsigned long long* barrier) {
#ifdef CUDA_EMULATOR
  emulator::copy_bulk(shared, global, bytes, barrier);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

// What this thread has written to shared memory, its landed cp.async included, is visible to wgmma and the TMA unit.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef CUDA_EMULATOR
  emulator::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- sm_90a: wgmma, D[64][N] += A[64][K] * B[K][N] by a warpgroup (128 threads), float sums --------------------------
// K = 16 for bf16 and fp16, 8 for TF32. Asynchronous: a product's operands must stay as they are, and its accumulators
// not be touched, until a wait for its group. With warp = 0 to 3, g = lane / 4 and q = lane % 4, a lane holds of each 8
// columns j
//   d[4 j], d[4 j + 1] = row 16 warp + g, columns 8 j + 2q, 8 j + 2q + 1;  d[4 j + 2], d[4 j + 3] = row 16 warp + g + 8

// An operand's descriptor, in the 128-byte swizzle: rows of 128 bytes in groups of 8, which begin at multiples of 1024
// bytes; the 16-byte piece i of row r lies in place i ^ r.
//   by depth (K-major):   a row is a line, its 64 steps side by side (32 in TF32); `stride` bytes to the next 8 lines;
//                         lead: 16
//   by lines (MN-major):  a row is a step, its 64 lines side by side; `stride` bytes to the next 8 steps, `lead` bytes
//                         to the next 64 lines
__device__ __forceinline__ unsigned long long matrix_descriptor(unsigned address, unsigned lead, unsigned stride) {
  auto encode = [](unsigned x) { return static_cast<unsigned long long>((x & 0x3ffff) >> 4); };
  return encode(address) | encode(lead) << 16 | encode(stride) << 32 | 1ull << 62;
}

// Nothing but a place that the compiler moves no computation and no use of these registers across.
template <int N>
__device__ __forceinline__ void settle(float (&d)[N]) {
#ifndef CUDA_EMULATOR
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

// Before the first product, and wherever threads have touched the accumulators d since the last one.
template <int N>
__device__ __forceinline__ void wgmma_fence(float (&d)[N]) {
  settle(d);
#ifdef CUDA_EMULATOR
  emulator::fence_warpgroup();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Or where they have written an A in registers.
template <int N, int STEPS>
__device__ __forceinline__ void wgmma_fence(float (&d)[N], unsigned (&a)[STEPS][4]) {
#ifndef CUDA_EMULATOR
#pragma unroll
  for (int i = 0; i < STEPS; i++)
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
#endif
  wgmma_fence(d);
}

// Closes the group of all products since the last commit.
__device__ __forceinline__ void wgmma_commit() {
#ifdef CUDA_EMULATOR
  emulator::commit_products();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most `pending` committed groups, the newest ones, are still on their way. d: the accumulators.
template <int pending, int N>
__device__ __forceinline__ void wgmma_wait(float (&d)[N]) {
#ifdef CUDA_EMULATOR
  emulator::wait_for_products(pending);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
  settle(d);
}

#define WGMMA_8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define WGMMA_32(d, i) WGMMA_8(d, i), WGMMA_8(d, i + 8), WGMMA_8(d, i + 16), WGMMA_8(d, i + 24)
#define WGMMA_64(d, i) WGMMA_32(d, i), WGMMA_32(d, i + 32)
#define WGMMA_128(d, i) WGMMA_64(d, i), WGMMA_64(d, i + 64)
#define WGMMA_NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64 \
  WGMMA_NAMES_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_128 \
  WGMMA_NAMES_64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// bf16 and fp16, d: 32, 64 or 128 accumulators for as many columns twice. a_by_lines, b_by_lines: 1 for a descriptor by
// lines, else 0. The first argument, the numbers' format, is only there to choose the function.
#ifdef CUDA_EMULATOR
__device__ __forceinline__ emulator::Format wgmma_format(bf16) { return emulator::Format::bf16; }
__device__ __forceinline__ emulator::Format wgmma_format(fp16) { return emulator::Format::fp16; }

template <int a_by_lines, int b_by_lines, class Half, int N>
__device__ __forceinline__ void wgmma_k16(Half half, float (&d)[N], unsigned long long a, unsigned long long b) {
  emulator::multiply_async(wgmma_format(half), d, 2 * N, a, b, a_by_lines, b_by_lines);
}
#else
#define WGMMA_K16(half, format, count, n, a, b, a_lines, b_lines)                                                    \
  template <int a_by_lines, int b_by_lines>                                                                          \
  __device__ __forceinline__ void wgmma_k16(half, float(&d)[count], unsigned long long a_tile,                       \
                                            unsigned long long b_tile) {                                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." format "." format " {" WGMMA_NAMES_##count "}, " a \
                 ", " b ", 1, 1, 1, " a_lines ", " b_lines ";"                                                       \
                 : WGMMA_##count(d, 0)                                                                               \
                 : "l"(a_tile), "l"(b_tile), "n"(a_by_lines), "n"(b_by_lines));                                      \
  }
WGMMA_K16(bf16, "bf16", 32, "64", "%32", "%33", "%34", "%35")
WGMMA_K16(fp16, "f16", 32, "64", "%32", "%33", "%34", "%35")
WGMMA_K16(bf16, "bf16", 64, "128", "%64", "%65", "%66", "%67")
WGMMA_K16(fp16, "f16", 64, "128", "%64", "%65", "%66", "%67")
WGMMA_K16(bf16, "bf16", 128, "256", "%128", "%129", "%130", "%131")
WGMMA_K16(fp16, "f16", 128, "256", "%128", "%129", "%130", "%131")
#endif

// TF32, whose operands in shared memory can lie by depth only. A comes from registers: as mma.sync's for TF32, warp w
// holds rows 16 w to 16 w + 15. The lowest 13 bits of a number in shared memory are ignored.
#ifdef CUDA_EMULATOR
template <int N>
__device__ __forceinline__ void wgmma_k8_tf32(float (&d)[N], const unsigned (&a)[4], unsigned long long b) {
  emulator::multiply_async_tf32(d, 2 * N, a, b);
}
#else
#define WGMMA_K8(count, n, a0, a1, a2, a3, b)                                                                          \
  __device__ __forceinline__ void wgmma_k8_tf32(float(&d)[count], const unsigned(&a)[4], unsigned long long b_tile) {  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k8.f32.tf32.tf32 {" WGMMA_NAMES_##count "}, {" a0 ", " a1 ", " \
                 a2 ", " a3 "}, " b ", 1, 1, 1;"                                                                       \
                 : WGMMA_##count(d, 0)                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile));                                           \
  }
WGMMA_K8(32, "64", "%32", "%33", "%34", "%35", "%36")
WGMMA_K8(64, "128", "%64", "%65", "%66", "%67", "%68")
WGMMA_K8(128, "256", "%128", "%129", "%130", "%131", "%132")
#endif
