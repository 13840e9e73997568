// The number formats of tensor cores, converted bit by bit as the hardware does.
#pragma once
#include <cstring>

namespace emulator {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

inline float as_float(unsigned bits) { return bits_as<float>(bits); }
inline unsigned as_bits(float x) { return bits_as<unsigned>(x); }

inline unsigned round_to_tf32(float x) {  // to nearest, ties away from zero; NaN stays NaN
  if (x != x) return 0x7fffffffu;
  return (as_bits(x) + 0x1000u) & 0xffffe000u;
}

inline unsigned short round_to_bf16(float x) {  // to nearest, ties to even
  if (x != x) return 0x7fff;
  unsigned bits = as_bits(x);
  return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline unsigned short round_to_fp16(float x) {  // to nearest, ties to even
  unsigned sign = as_bits(x) >> 16 & 0x8000u;
  unsigned magnitude = as_bits(x) & 0x7fffffffu;
  unsigned bits;
  if (magnitude > 0x7f800000u) return 0x7fff;  // NaN, as cvt.rn.f16.f32 writes it
  if (magnitude >= 0x477ff000u) {              // 65520 and more
    bits = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits
    bits = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    bits = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  return static_cast<unsigned short>(sign | bits);
}

inline float widen_fp16(unsigned short bits) {
  unsigned magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
  unsigned scaled = as_bits(as_float(magnitude) * 0x1p112f);  // 2^(127 - 15): the two exponents' biases
  if (magnitude >= 0x0f800000u) scaled = magnitude | 0x7f800000u;
  return as_float(scaled | sign);
}

}  // namespace emulator
