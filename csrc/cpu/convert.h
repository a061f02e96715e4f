// Blocks of float16 and bfloat16 to float32, vectors of float32 back, bit for bit what math/half.h does to one number.
#pragma once
#include <type_traits>

#include "cpu/simd.h"
#include "math/half.h"

namespace graceful_fast {
namespace {

using Shorts = Lanes<uint16_t, kFloats>;

#if defined(GF_AVX512)
// Indices of 16-bit words: number i for both halves of lane i; the high halves of lanes 0 to 15.
constexpr Words kLaneOfHalf = {0x00000, 0x10001, 0x20002, 0x30003, 0x40004, 0x50005, 0x60006, 0x70007,
                               0x80008, 0x90009, 0xa000a, 0xb000b, 0xc000c, 0xd000d, 0xe000e, 0xf000f};
constexpr Words kHighHalf = {0x030001, 0x070005, 0x0b0009, 0x0f000d, 0x130011, 0x170015, 0x1b0019, 0x1f001d};
#endif

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
GF_INLINE Floats widened(Shorts values, BFloat16) {
#if defined(GF_AVX512)
  return (Floats)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, (__m512i)kLaneOfHalf,
                                                _mm512_castsi256_si512((__m256i)values));
#else
  return (Floats)(__builtin_convertvector(values, Words) << 16);
#endif
}
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
#if defined(GF_AVX512)
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __m512i bits = (__m512i)values;
    const __mmask16 number = _mm512_cmp_ps_mask((__m512)values, (__m512)values, _CMP_ORD_Q);
    const __mmask16 odd = _mm512_mask_test_epi32_mask(number, bits, _mm512_set1_epi32(0x10000));
    const __m512i quiet = _mm512_set1_epi32(0x7fc00000);
    __m512i rounded = _mm512_mask_add_epi32(quiet, number, bits, _mm512_set1_epi32(0x7fff));
    rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
    const auto high = (Lanes<int64_t, 8>)_mm512_maskz_permutexvar_epi16(~0u, (__m512i)kHighHalf, rounded);
    return (Shorts)__builtin_shufflevector(high, high, 0, 1, 2, 3);
  }
#endif
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
