// mma.sync. The fragments' layouts are those of the PTX manual, "Matrix fragments for mma.m16n8k8"
// and "... for mma.m16n8k16": with g = lane / 4 and q = lane % 4, a lane holds rows g and g + 8 of A and C.
#include "numbers.h"
#include "runtime.h"

namespace emulator {

using Row = float __attribute__((vector_size(32)));  // 8 numbers, one instruction

struct Fragments {
  float* c;
  const unsigned *a, *b;
};

// C[16][8] += A[16][K] * B[K][8] out of, and back into, the registers of 32 lanes. One register of A or B holds `Pack`
// neighbouring values along k, lowest bits first.
template <int K, int Pack, float (*widen)(unsigned bits)>
static void execute_mma(void** operands, unsigned lanes) {
  if (lanes != 0xffffffffu) fail("mma.sync needs all 32 lanes, has 0x%08x", lanes);
  float a[16][K];
  Row b[K], c[16];
  for (int lane = 0; lane < 32; lane++) {
    const Fragments& f = *static_cast<Fragments*>(operands[lane]);
    int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; i++)
      for (int p = 0; p < Pack; p++)
        a[g + 8 * (i % 2)][Pack * q + p + i / 2 * (K / 2)] = widen(f.a[i] >> (p * (32 / Pack)));
    for (int i = 0; i < 2; i++)
      for (int p = 0; p < Pack; p++) b[Pack * q + p + i * (K / 2)][g] = widen(f.b[i] >> (p * (32 / Pack)));
    for (int i = 0; i < 4; i++) c[g + 8 * (i / 2)][2 * q + i % 2] = f.c[i];
  }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < K; k++) c[i] += a[i][k] * b[k];
  for (int lane = 0; lane < 32; lane++) {
    float* out = static_cast<Fragments*>(operands[lane])->c;
    for (int i = 0; i < 4; i++) out[i] = c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
}

static float widen_tf32(unsigned bits) { return as_float(bits & 0xffffe000u); }  // tensor cores ignore the low bits
static float widen_low_bf16(unsigned bits) { return as_float(bits << 16); }
static float widen_low_fp16(unsigned bits) { return widen_fp16(static_cast<unsigned short>(bits)); }

void multiply_tf32(float* c, const unsigned* a, const unsigned* b) {
  Fragments operand = {c, a, b};
  collective("mma.m16n8k8.tf32", execute_mma<8, 1, widen_tf32>, 0xffffffffu, &operand);
}

void multiply_bf16(float* c, const unsigned* a, const unsigned* b) {
  Fragments operand = {c, a, b};
  collective("mma.m16n8k16.bf16", execute_mma<16, 2, widen_low_bf16>, 0xffffffffu, &operand);
}

void multiply_fp16(float* c, const unsigned* a, const unsigned* b) {
  Fragments operand = {c, a, b};
  collective("mma.m16n8k16.fp16", execute_mma<16, 2, widen_low_fp16>, 0xffffffffu, &operand);
}

}  // namespace emulator
