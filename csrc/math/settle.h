// The float64 definitions of the scores: what an answer is, whatever found it.
//
//   ip = sum q_i x_i      l2 = sum (q_i - x_i)^2      cosine = ip / (sqrt(q.q) sqrt(x.x))
//
// Eight lanes i mod 8, each from +0.0 in ascending i, then ((0+1)+(2+3))+((4+5)+(6+7)); every difference, product and sum is
// rounded on its own (the build has -ffp-contract=off). A lane never holds -0.0, so padding with zeros changes no bit.
#pragma once
#include <cstdint>

#include "math/half.h"

namespace graceful_fast {
namespace {

typedef double Double8 __attribute__((vector_size(64)));

template <class T>
inline __attribute__((always_inline)) Double8 load8(const T* x) {
  typedef decltype(widen(T{})) Wide8 __attribute__((vector_size(8 * sizeof(widen(T{})))));
  Wide8 wide;
  if constexpr (sizeof(T) >= 4) {
    std::memcpy(&wide, x, sizeof wide);
  } else {
    for (int i = 0; i < 8; ++i) wide[i] = widen(x[i]);
  }
  return __builtin_convertvector(wide, Double8);
}

template <class T>
inline __attribute__((always_inline)) Double8 load8(const T* x, int64_t count) {  // the last count < 8, then zeros
  T padded[8] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = x[i];
  return load8(padded);
}

// term(x_i, i) summed in the fixed order; i is the first of eight.
template <class T, class Term>
inline __attribute__((always_inline)) double fixed_sum(const T* x, int64_t dim, Term term) {
  Double8 lanes = {};
  int64_t i = 0;
  for (; i + 8 <= dim; i += 8) lanes += term(load8(x + i), i);
  if (i < dim) lanes += term(load8(x + i, dim - i), i);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// q: the query widened to float64 and padded with zeros to a multiple of 8.
template <class T>
inline double inner_product(const double* q, const T* x, int64_t dim) {
  return fixed_sum(x, dim, [q](Double8 v, int64_t i) __attribute__((always_inline)) { return load8(q + i) * v; });
}

template <class T>
inline double squared_distance(const double* q, const T* x, int64_t dim) {
  return fixed_sum(x, dim, [q](Double8 v, int64_t i) __attribute__((always_inline)) {
    const Double8 difference = load8(q + i) - v;
    return difference * difference;
  });
}

template <class T>
inline double squared_norm(const T* x, int64_t dim) {
  return fixed_sum(x, dim, [](Double8 v, int64_t) __attribute__((always_inline)) { return v * v; });
}

}  // namespace
}  // namespace graceful_fast
