// Blocks of float16 and bfloat16 to float32 and back, bit for bit what math/half.h does to one number.
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

// to[j] = widen(from[j]). No vectors by hand: the compilers' own use the registers' full width, and are faster.
template <class T, class S>
void widen_block(const T* from, int n, S* to) {
#if defined(GF_AVX512)
  if constexpr (std::is_same_v<T, Half> && std::is_same_v<S, float>) {
    int j = 0;
    for (; j + kFloats <= n; j += kFloats) {
      const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + j));
      store(to + j, (Floats)_mm512_maskz_cvtph_ps(0xffff, halves));
    }
    for (; j < n; ++j) to[j] = widen(from[j]);
    return;
  }
#endif
  for (int j = 0; j < n; ++j) to[j] = S(widen(from[j]));
}

// narrow(from[j], to[j])
template <class S, class T>
void narrow_block(const S* from, int n, T* to) {
  int j = 0;
  if constexpr (sizeof(T) == 2 && std::is_same_v<S, float>) {
    for (; j + kFloats <= n; j += kFloats) {
      store(to + j, __builtin_convertvector(narrow_bits(load<Words>(from + j), T{}), Shorts));
    }
  }
  for (; j < n; ++j) narrow(decltype(widen(T{}))(from[j]), to[j]);
}

}  // namespace
}  // namespace graceful_fast
