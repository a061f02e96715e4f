// Vectors of this instruction set's width, by the compilers' vector extension: one source for every width, NEON
// included. Included by kernel sources only (compiled with GF_ISA); everything is in an anonymous namespace, see isa.h.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define GF_INLINE inline __attribute__((always_inline))

namespace graceful_fast {
namespace {

// GF_PORTABLE_VECTORS, for tests: vectors of that many bytes on any machine, without an instruction of its own.
#if defined(GF_PORTABLE_VECTORS)
constexpr int kVectorBytes = GF_PORTABLE_VECTORS;
#elif defined(__AVX512F__)
#define GF_AVX512
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__) && defined(__FMA__)
#define GF_AVX2
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#if defined(__x86_64__)
#define GF_SSE
#elif defined(__aarch64__)
#define GF_NEON
#endif
#endif

template <class T, int bytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T, int lanes>
using Lanes = typename VectorOf<T, lanes* int(sizeof(T))>::type;  // a fixed number of lanes, any width of machine

constexpr int kFloats = kVectorBytes / 4;
using Floats = Lanes<float, kFloats>;
using Ints = Lanes<int32_t, kFloats>;
using Words = Lanes<uint32_t, kFloats>;

template <class V, class T>
GF_INLINE V load(const T* from) {  // unaligned
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class T>
GF_INLINE void store(T* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// A store that leaves the caches alone, to an address that is a multiple of the vector's size; plain where there is
// none. `fence` after the last one.
template <class V, class T>
GF_INLINE void stream(T* to, V v) {
#if defined(GF_AVX512)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#endif
#if defined(GF_AVX512) || defined(GF_AVX2)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#endif
#if defined(GF_AVX512) || defined(GF_AVX2) || defined(GF_SSE)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)v);
#endif
  store(to, v);
}
GF_INLINE void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// a * b + c, fused where the machine has it (the build has -ffp-contract=off, so only this says fma).
GF_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(GF_AVX512)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(GF_AVX2)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(GF_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// x < least ? 0 : a * b + c
GF_INLINE Floats fma_from(float least, Floats x, Floats a, Floats b, Floats c) {
#if defined(GF_AVX512)
  const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(least), _CMP_NLT_UQ);
  return (Floats)_mm512_maskz_fmadd_ps(kept, (__m512)a, (__m512)b, (__m512)c);  // g++ 12 would add a blend
#else
  return x < least ? Floats{} : fma(a, b, c);
#endif
}

// Where one instruction looks a register's lanes up in another register: how many 32-bit entries that one holds.
#if defined(GF_AVX512) || defined(GF_AVX2)
#define GF_POWERS
constexpr int kTable = kFloats;
GF_INLINE Words pick(const uint32_t* table, Words index) {  // table[index % kTable]
  const Words entries = load<Words>(table);
#if defined(GF_AVX512)
  return (Words)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)index, (__m512i)entries);
#else
  return (Words)_mm256_permutevar8x32_epi32((__m256i)entries, (__m256i)index);
#endif
}
#endif

}  // namespace
}  // namespace graceful_fast
