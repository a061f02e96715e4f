// scan, rows and queries as codes of 8 bits: a quarter of the bytes, a multiple of the products.
//
// A row is p = s c + e, a query r = t b + f, with codes c, b:  |<r, p> - t s <b, c>| <= |t b| |e| + |f| |p|, the sum of
// the codes' products exact in int32. Instructions multiply unsigned by signed bytes: rows are lifted by kLift, and
// kLift times the sum of the query's codes is where its sums start. AVX2 and SSE add pairs of products in int16:
// queries of 7 bits keep them below 2^15 (255 * 63 * 2 = 32,130).
#pragma once
#include <cstdint>

#include "cpu/scan.h"
#include "cpu/scan_tile.h"

namespace graceful_fast {
namespace {

#if defined(GF_AVX2) || defined(GF_SSE)
constexpr int kQueryLevels = 63;
#else
constexpr int kQueryLevels = 127;
#endif
#if defined(GF_AVX512) || defined(GF_AVX2) || defined(GF_SSE)
constexpr int kLift = 128;
#else
constexpr int kLift = 0;
#endif
constexpr uint32_t kLiftWord = kLift * 0x01010101u;

// sums[lane] += the products of the lane's four row bytes (lifted) with the four codes in `query`.
GF_INLINE Ints dot4(Ints sums, Words rows, Words query) {
#if defined(GF_AVX512)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)rows, (__m512i)query);
#elif defined(GF_AVX2)
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)rows, (__m256i)query);
  return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(GF_SSE)
  const __m128i pairs = _mm_maddubs_epi16((__m128i)rows, (__m128i)query);
  return sums + (Ints)_mm_madd_epi16(pairs, _mm_set1_epi16(1));
#elif defined(GF_NEON) && defined(__ARM_FEATURE_DOTPROD)
  return (Ints)vdotq_s32((int32x4_t)sums, (int8x16_t)rows, (int8x16_t)query);
#else
#pragma GCC unroll 4
  for (int shift = 0; shift < 32; shift += 8)
    sums += ((Ints)(rows << (24 - shift)) >> 24) * ((Ints)(query << (24 - shift)) >> 24);
  return sums;
#endif
}

GF_INLINE Words broadcast_word(int32_t word) { return Words{} + uint32_t(word); }
GF_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

// codes of p[0 .. count), count a multiple of kCodeAlignment; residual: |p - scale codes|, rounded up. Returns the
// scale.
inline float quantize_row(const float* p, int64_t count, int levels, int8_t* codes, float& residual) {
  Floats most = {};
  for (int64_t i = 0; i < count; i += kFloats) {
    const Floats size = (Floats)((Words)load<Floats>(p + i) & 0x7fffffffu);
    most = size > most ? size : most;
  }
  float largest = 0;
  for (int lane = 0; lane < kFloats; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  const bool none = largest < 0x1p-100f;  // its inverse could overflow; the residual then is the row
  const float scale = none ? 0 : largest / levels, inverse = none ? 0 : levels / largest;
  Floats squares = {};
  for (int64_t i = 0; i < count; i += kFloats) {
    const Floats value = load<Floats>(p + i);
    const Floats half = (Floats)(((Words)value & 0x80000000u) | (Words)broadcast(0.5f));
    const Ints code = __builtin_convertvector(fma(value, broadcast(inverse), half), Ints);
    const Floats rest = fma(to_floats(code), broadcast(-scale), value);
    squares = fma(rest, rest, squares);
    store(codes + i, __builtin_convertvector(code, Lanes<int8_t, kFloats>));
  }
  // The sum of squares loses at most gamma_count, each rest 2^-23 of its value where there is no fma. What squares lose
  // to underflow, 2^-75 sqrt(count) times the other side's norm R, bound.h has: exact R^2 + tiny >= 2^-69 dim R.
  const double slack = 1 + double(count + 16) * 0x1p-24;
  residual = float((__builtin_sqrt(double(sum<float, kFloats>(squares))) * slack +
                    double(largest) * __builtin_sqrt(double(count)) * 0x1p-22) *
                   (1 + 0x1p-22));
  return scale;
}

// Four rows of codes, `words` of four codes each -> columns of a panel [words][kN], lifted.
inline void interleave_codes(const int8_t* const* rows, int64_t words, uint32_t* panel) {
  using Four = Lanes<uint32_t, 4>;
  for (int64_t i = 0; i < words; i += 4) {
    const Four a = load<Four>(rows[0] + 4 * i), b = load<Four>(rows[1] + 4 * i), c = load<Four>(rows[2] + 4 * i),
               d = load<Four>(rows[3] + 4 * i);
    const Four ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Four cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Four column[4] = {
        __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
        __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7)};
    for (int64_t j = 0; j < 4; ++j) store(panel + (i + j) * kN, column[j] ^ kLiftWord);
  }
}

// Of the rows of a chunk, by slot, in scan units.
struct CodedRows {
  const float *scale, *residual, *norm, *start;
};

// Of the queries, by query, everything over the query's own scale t: a row may matter if
//   scale * sum + residual_weight * residual + norm_weight * norm + start / t >= limit.
struct CodedQueries {
  const float *step, *inverse, *residual_weight, *norm_weight, *limit;  // step: t
  const int32_t* origin;                                                // where sums start: -kLift * sum of its codes
};

// The largest that the score of row `at` with query r may be, over the query's scale. even: the norm's part is in the
// limit already and rows start at 0.
template <bool even>
GF_INLINE Floats most_of(Ints sums, const CodedQueries& q, int64_t r, const CodedRows& x, int64_t at) {
  Floats most = to_floats(sums) * load<Floats>(x.scale + at);
  most = fma(broadcast(q.residual_weight[r]), load<Floats>(x.residual + at), most);
  if constexpr (!even) {
    most = fma(broadcast(q.norm_weight[r]), load<Floats>(x.norm + at), most);
    most = fma(broadcast(q.inverse[r]), load<Floats>(x.start + at), most);
  }
  return most;
}

// A tile's sums that reach something -> scores and what reaches. Not inlined: it would keep in registers what
// `code_tile` needs no more.
template <bool even>
__attribute__((noinline)) void finish_codes(const int32_t* sums, const CodedQueries& q, int64_t query,
                                            const CodedRows& x, int64_t slot, float* scores, uint32_t* reached) {
  for (int r = 0; r < kM; ++r) {
    const Floats limit = broadcast(q.limit[query + r]), step = broadcast(q.step[query + r]);
    reached[r] = 0;
    for (int half = 0; half < 2; ++half) {
      const int64_t at = slot + half * kFloats;
      const Ints sum = load<Ints>(sums + r * kN + half * kFloats);
      reached[r] |= bits(at_least(most_of<even>(sum, q, query + r, x, at), limit)) << half * kFloats;
      store(scores + r * kN + half * kFloats,
            fma(to_floats(sum) * load<Floats>(x.scale + at), step, load<Floats>(x.start + at)));
    }
  }
}

// As `tile`, of codes.
template <bool even>
inline bool code_tile(const int32_t* queries, const uint32_t* rows, int64_t words, const CodedQueries& q, int64_t query,
                      const CodedRows& x, int64_t slot, float* scores, uint32_t* reached) {
  Ints sums[kM][2];
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) sums[r][0] = sums[r][1] = Ints{} + q.origin[query + r];
#pragma GCC unroll 2
  for (int64_t i = 0; i < words; ++i) {
    const Words row0 = load<Words>(rows), row1 = load<Words>(rows + kFloats);
#pragma GCC unroll 16
    for (int r = 0; r < kM; ++r) {
      const Words word = broadcast_word(queries[r]);
      sums[r][0] = dot4(sums[r][0], row0, word);
      sums[r][1] = dot4(sums[r][1], row1, word);
    }
    queries += kM;
    rows += kN;
  }
  Reach any{};
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    const Floats limit = broadcast(q.limit[query + r]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      any = either(any, at_least(most_of<even>(sums[r][half], q, query + r, x, slot + half * kFloats), limit));
    }
  }
  if (bits(any) == 0) return false;
  alignas(64) int32_t stored[kM * kN];
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    store(stored + r * kN, sums[r][0]);
    store(stored + r * kN + kFloats, sums[r][1]);
  }
  finish_codes<even>(stored, q, query, x, slot, scores, reached);
  return true;
}

GF_INLINE Words load_part(const int8_t* from, int64_t bytes) {  // a multiple of 16; zeros beyond
  Words words = {};
  for (int64_t i = 0; i < bytes; i += 16) std::memcpy(reinterpret_cast<char*>(&words) + i, from + i, 16);
  return words;
}

// Four rows x one query where they lie: products[r] = <query, rows[r]>. in_order: the rows that follow are next.
template <bool in_order>
inline void code_dots(const int8_t* query, const int8_t* const* rows, int64_t stride, int32_t origin,
                      int32_t* products) {
  Ints sums[4] = {};
  int64_t i = 0;
  for (; i + kVectorBytes <= stride; i += kVectorBytes) {
    const Words codes = load<Words>(query + i);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      if constexpr (in_order) prefetch_ahead(rows[r] + i);
      sums[r] = dot4(sums[r], load<Words>(rows[r] + i) ^ kLiftWord, codes);
    }
  }
  if (i < stride) {
    const Words codes = load_part(query + i, stride - i);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sums[r] = dot4(sums[r], load_part(rows[r] + i, stride - i) ^ kLiftWord, codes);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) products[r] = sum<int32_t, kFloats>(sums[r]) + origin;
}

}  // namespace
}  // namespace graceful_fast
