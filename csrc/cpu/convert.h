// Blocks of float16 and bfloat16 to float32, vectors of float32 back, bit for bit what math/half.h does to one number.
#pragma once
#include <type_traits>

#include "cpu/simd.h"
#include "math/half.h"

namespace graceful_fast {
namespace {

using Shorts = Lanes<uint16_t, kFloats>;

GF_INLINE Words narrow_bits(Words bits, BFloat16) {
  const Floats value = (Floats)bits;
  const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return value == value ? rounded : Words{} + 0x7fc0u;
}
GF_INLINE Words narrow_bits(Words bits, Half) {
  const Words magnitude = bits & 0x7fffffffu;
  const Ints size = (Ints)magnitude;  // signed: baseline x86 has no unsigned comparison
  const Words subnormal = (Words)((Floats)magnitude + 0.5f) - 0x3f000000u;
  const Words normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const Words finite = size < (113 << 23) ? subnormal : normal;
  const Words special = size > 0x7f800000 ? Words{} + 0x7e00u : Words{} + 0x7c00u;
  return (bits >> 16 & 0x8000u) | (size >= (143 << 23) ? special : finite);
}

// What `widen` does to one number.
GF_INLINE Floats widened(Shorts values, BFloat16) { return (Floats)(__builtin_convertvector(values, Words) << 16); }
GF_INLINE Floats widened(Shorts values, Half) {
#if defined(GF_AVX512)
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)values);
#else
  const Words bits = __builtin_convertvector(values, Words), rest = (bits & 0x7fffu) << 13;
  const Words special = (Words)((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (Floats)((bits & 0x8000u) << 16 | (Words)((Floats)(rest | special) * 0x1p112f));
#endif
}
// What `narrow` does to one number.
template <class T>
GF_INLINE Shorts narrowed(Floats values, T type) {
  return __builtin_convertvector(narrow_bits((Words)values, type), Shorts);
}

// to[j] = widen(from[j]). No vectors by hand: the compilers' own use the registers' full width, and are faster.
template <class T, class S>
void widen_block(const T* from, int n, S* to) {
#if defined(GF_AVX512)
  if constexpr (std::is_same_v<T, Half> && std::is_same_v<S, float>) {
    int j = 0;
    for (; j + kFloats <= n; j += kFloats) store(to + j, widened(load<Shorts>(from + j), Half{}));
    for (; j < n; ++j) to[j] = widen(from[j]);
    return;
  }
#endif
  for (int j = 0; j < n; ++j) to[j] = S(widen(from[j]));
}

}  // namespace
}  // namespace graceful_fast
