// Exponentials of vectors of floats (csrc/cpu/simd.h) and of one double, under the same names: one source for both.
#pragma once
#include <cmath>

#include "cpu/simd.h"

namespace graceful_fast {
namespace {

GF_INLINE double fma(double a, double b, double c) { return a * b + c; }
GF_INLINE Floats fma(Floats a, Floats b, float c) { return fma(a, b, Floats{} + c); }

// exp(x) for x <= 88, relative error below 1.5 * 2^-24; 0 below -87 (no subnormals), NaN for NaN.
GF_INLINE Floats exponential(Floats x) {
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, kept in the low mantissa bits
  const Floats shifted = fma(x, Floats{} + 1.44269504f, kRound);
  const Floats n = shifted - kRound;
  Floats r = fma(n, Floats{} - 0.693359375f, x);  // 9 bits of ln 2: n times it is exact without fma, too
  r = fma(n, Floats{} + 2.12194440e-4f, r);
  Floats q = fma(r, Floats{} + 0.00139015f, 0.00836374f);
  q = fma(q, r, 0.04166686f);
  q = fma(q, r, 0.16666574f);
  q = fma(q, r, 0.5f);
  const Floats e = fma(r * r, q, r) + 1.0f;
  const Floats scale = (Floats)(((Words)shifted << 23) + 0x3f800000u);  // Words: it wraps where x is below -87
  return x < -87.0f ? Floats{} : e * scale;
}

// (expm1(x) - x) / x^2 for |x| <= 1/2, relative error of the polynomial 2.5e-8
GF_INLINE Floats bend(Floats x) {
  Floats q = fma(x, Floats{} + 1.98756284e-4f, 1.39819974e-3f);
  q = fma(q, x, 8.33345217e-3f);
  q = fma(q, x, 4.16657959e-2f);
  q = fma(q, x, 0.166666655f);
  return fma(q, x, 0.5f);
}
GF_INLINE Floats exponential_minus_1_minus_x(Floats x) { return x * x * bend(x); }      // |x| <= 1/2
GF_INLINE Floats exponential_minus_1(Floats x) { return fma(x * x, bend(x), x); }       // |x| <= 1/2
GF_INLINE Floats small_exponential(Floats x) { return fma(x * x, bend(x), x) + 1.0f; }  // |x| <= 1/2

GF_INLINE double exponential(double x) { return std::exp(x); }
GF_INLINE double small_exponential(double x) { return std::exp(x); }
GF_INLINE double exponential_minus_1(double x) { return std::expm1(x); }
GF_INLINE double exponential_minus_1_minus_x(double x) {
  // below 1e-3 the difference would lose more digits than the series' fifth term is worth
  return std::fabs(x) < 1e-3 ? x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x / 120))) : std::expm1(x) - x;
}

}  // namespace
}  // namespace graceful_fast
