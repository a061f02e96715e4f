// scan, the arithmetic: packing rows into panels, the register tile, dot products for a handful of queries.
#pragma once
#include <cstdint>

#include "cpu/simd.h"
#include "math/half.h"

namespace graceful_fast {
namespace {

// A tile is kM queries x kN rows of accumulators, two vectors wide. 2 FMA ports x 4 cycles = 8 chains hide the latency,
// the registers set the limit: AVX-512 has 32 (28 + 2 of the panel + 1 broadcast), NEON 32 (24 + 2 + broadcasts), AVX2
// and SSE 16 (12 + 2 + 1).
#if defined(GF_NEON)
constexpr int kM = 12;
#else
constexpr int kM = kVectorBytes == 64 ? 14 : 6;
#endif
constexpr int kN = 2 * kFloats;

GF_INLINE Floats broadcast(float x) { return x - Floats{}; }

// Which lanes reach a limit: a mask where the machine has registers for them.
#if defined(GF_AVX512)
using Reach = __mmask16;
GF_INLINE Reach at_least(Floats v, Floats limit) { return _mm512_cmp_ps_mask((__m512)v, (__m512)limit, _CMP_GE_OQ); }
GF_INLINE Reach either(Reach a, Reach b) { return _kor_mask16(a, b); }
GF_INLINE uint32_t bits(Reach reach) { return reach; }
GF_INLINE uint32_t bits(Ints mask) { return _mm512_movepi32_mask((__m512i)mask); }
#else
using Reach = Ints;
GF_INLINE Reach at_least(Floats v, Floats limit) { return v >= limit; }
GF_INLINE Reach either(Reach a, Reach b) { return a | b; }
GF_INLINE uint32_t bits(Reach reach) {  // bit i: lane i is set
#if defined(GF_AVX2)
  return uint32_t(_mm256_movemask_ps((__m256)reach));
#elif defined(GF_SSE)
  return uint32_t(_mm_movemask_ps((__m128)reach));
#else
  uint32_t result = 0;
  for (int i = 0; i < kFloats; ++i) result |= uint32_t(reach[i] & 1) << i;
  return result;
#endif
}
#endif

// scores[r][j] = start[j] + sum_i queries[i][r] rows[i][j]; bit j of reached[r]: it reaches the threshold of query r.
// False, and nothing is stored, if none does.
inline bool tile(const float* queries, const float* rows, int64_t dim, const float* start, const float* threshold,
                 float* scores, uint32_t* reached) {
  Floats sums[kM][2];
  const Floats start0 = load<Floats>(start), start1 = load<Floats>(start + kFloats);
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) sums[r][0] = start0, sums[r][1] = start1;
#pragma GCC unroll 4
  for (int64_t i = 0; i < dim; ++i) {
    const Floats row0 = load<Floats>(rows), row1 = load<Floats>(rows + kFloats);
#pragma GCC unroll 16
    for (int r = 0; r < kM; ++r) {
      const Floats query = broadcast(queries[r]);
      sums[r][0] = fma(query, row0, sums[r][0]);
      sums[r][1] = fma(query, row1, sums[r][1]);
    }
    queries += kM;
    rows += kN;
  }
  Reach any{};
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    const Floats limit = broadcast(threshold[r]);
    any = either(any, either(at_least(sums[r][0], limit), at_least(sums[r][1], limit)));
  }
  if (bits(any) == 0) return false;
#pragma GCC unroll 16
  for (int r = 0; r < kM; ++r) {
    const Floats limit = broadcast(threshold[r]);
    reached[r] = bits(at_least(sums[r][0], limit)) | bits(at_least(sums[r][1], limit)) << kFloats;
    store(scores + r * kN, sums[r][0]);
    store(scores + r * kN + kFloats, sums[r][1]);
  }
  return true;
}

template <class T, int lanes>
GF_INLINE T sum(Lanes<T, lanes> v) {
  if constexpr (lanes == 2) {
    return v[0] + v[1];
  } else {
    Lanes<T, lanes / 2> half[2];
    std::memcpy(half, &v, sizeof v);
    return sum<T, lanes / 2>(half[0] + half[1]);
  }
}

// What will be read soon where rows lie one after the other: the hardware's own reading ahead ends with each page.
template <class T>
GF_INLINE void prefetch_ahead(const T* at) {
  constexpr int64_t kAheadBytes = 16384;
  __builtin_prefetch(reinterpret_cast<const char*>(at) + kAheadBytes);
}

// Four rows x one query where they lie: for so few queries that packing would cost more than it saves. squares[r], if
// wanted: |rows[r]|^2.
template <bool wants_squares>
inline void dots(const float* query, const float* const* rows, int64_t dim, float* scores, float* squares) {
  // Row after row, as memory likes it: four at once would jump from line to line within a page.
  for (int r = 0; r < 4; ++r) {
    const float* const row = rows[r];
    Floats sums[2] = {}, norms = {};
    int64_t i = 0;
#pragma GCC unroll 4
    for (; i + kN <= dim; i += kN) {
      const Floats row0 = load<Floats>(row + i), row1 = load<Floats>(row + i + kFloats);
      if constexpr (wants_squares) prefetch_ahead(row + i), prefetch_ahead(row + i + kFloats);
      sums[0] = fma(load<Floats>(query + i), row0, sums[0]);
      sums[1] = fma(load<Floats>(query + i + kFloats), row1, sums[1]);
      if constexpr (wants_squares) norms = fma(row1, row1, fma(row0, row0, norms));
    }
    float score = sum<float, kFloats>(sums[0] + sums[1]), square = sum<float, kFloats>(norms);
    for (; i < dim; ++i) score += query[i] * row[i], square += row[i] * row[i];
    scores[r] = score;
    if constexpr (wants_squares) squares[r] = square;
  }
}

// to[i] = fl32(scale * x[i]), then zeros up to `padded`.
template <class T>
inline void scale_row(const T* x, int64_t dim, double scale, float* to, int64_t padded) {
  for (int64_t i = 0; i < dim; ++i) to[i] = float(double(widen(x[i])) * scale);
  for (int64_t i = dim; i < padded; ++i) to[i] = 0;
}

// panel[i][column .. column+3] = rows[0..3][i] for i < dim; width: columns of the panel. Rows are padded to a multiple
// of 4.
inline void interleave4(const float* const* rows, int64_t dim, float* panel, int64_t width) {
  using Four = Lanes<float, 4>;
  for (int64_t i = 0; i < dim; i += 4) {
    const Four a = load<Four>(rows[0] + i), b = load<Four>(rows[1] + i), c = load<Four>(rows[2] + i),
               d = load<Four>(rows[3] + i);
    const Four ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Four cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Four column[4] = {
        __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
        __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7)};
    const int64_t end = dim - i < 4 ? dim - i : 4;
    for (int64_t j = 0; j < end; ++j) store(panel + (i + j) * width, column[j]);
  }
}

}  // namespace
}  // namespace graceful_fast
