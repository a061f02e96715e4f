// The float64 definitions of the scores: what an answer is, whatever found it.
//
//   ip = sum q_i x_i      l2 = sum (q_i - x_i)^2      cosine = ip / (sqrt(q.q) sqrt(x.x))
//
// Eight lanes i mod 8, each from +0.0 in ascending i, then ((0+1)+(2+3))+((4+5)+(6+7)); every difference, product and
// sum is rounded on its own (the build has -ffp-contract=off). A lane never holds -0.0, so padding with zeros changes
// no bit.
#pragma once
#include <cstdint>

#include "math/half.h"

namespace graceful_fast {
namespace {

// As many lanes as a register holds: wider vectors would live on the stack.
#if defined(__AVX512F__)
constexpr int kDoubles = 8;
#elif defined(__AVX__)
constexpr int kDoubles = 4;
#else
constexpr int kDoubles = 2;
#endif
typedef double Doubles __attribute__((vector_size(8 * kDoubles)));

template <class T>
inline __attribute__((always_inline)) Doubles load_doubles(const T* x) {
  using Wide = decltype(widen(T{}));
  typedef Wide Wides __attribute__((vector_size(kDoubles * sizeof(Wide))));
  Wides wide;
  if constexpr (sizeof(T) >= 4) {
    std::memcpy(&wide, x, sizeof wide);
  } else {
    for (int i = 0; i < kDoubles; ++i) wide[i] = widen(x[i]);
  }
  return __builtin_convertvector(wide, Doubles);
}

// term(x_i, i) summed in the fixed order; i is the first of kDoubles.
template <class T, class Term>
inline __attribute__((always_inline)) double fixed_sum(const T* x, int64_t dim, Term term) {
  constexpr int kParts = 8 / kDoubles;
  Doubles sums[kParts];
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) sums[part] = Doubles{};
  const int64_t whole = dim / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = i + part * kDoubles;
      sums[part] += term(load_doubles(x + at), at);
    }
  }
  if (whole < dim) {
    T padded[8] = {};
    for (int64_t i = whole; i < dim; ++i) padded[i - whole] = x[i];
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      sums[part] += term(load_doubles(padded + part * kDoubles), whole + part * kDoubles);
    }
  }
  double lanes[8];
  std::memcpy(lanes, sums, sizeof lanes);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// q: the query widened to float64 and padded with zeros to a multiple of 8.
template <class T>
inline double inner_product(const double* q, const T* x, int64_t dim) {
  return fixed_sum(x, dim,
                   [q](Doubles v, int64_t i) __attribute__((always_inline)) { return load_doubles(q + i) * v; });
}

template <class T>
inline double squared_distance(const double* q, const T* x, int64_t dim) {
  return fixed_sum(x, dim, [q](Doubles v, int64_t i) __attribute__((always_inline)) {
    const Doubles difference = load_doubles(q + i) - v;
    return difference * difference;
  });
}

template <class T>
inline double squared_norm(const T* x, int64_t dim) {
  return fixed_sum(x, dim, [](Doubles v, int64_t) __attribute__((always_inline)) { return v * v; });
}

}  // namespace
}  // namespace graceful_fast
