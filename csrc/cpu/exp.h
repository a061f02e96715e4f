// Exponentials of vectors of floats (csrc/cpu/simd.h) and of one double, under the same names: one source for both.
#pragma once
#include <bit>
#include <cmath>

#include "cpu/simd.h"

namespace graceful_fast {
namespace {

GF_INLINE double fma(double a, double b, double c) { return a * b + c; }
GF_INLINE Floats fma(Floats a, Floats b, float c) { return fma(a, b, Floats{} + c); }

#if defined(GF_POWERS)
// 2^(k/kTable) rounded to float32, and what the rounding lost, relative to it. The bits are lowered by what adding k,
// shifted as below, raises them.
struct Powers {
  uint32_t bits[kTable], lost[kTable];
};
constexpr Powers powers() {
  constexpr float kPowers[] = {0x1p+0f,        0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
                               0x1.306fep+0f,  0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
                               0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
                               0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
  constexpr float kLost[] = {0,           4.6285e-8f,  -1.1992e-8f, 4.7298e-8f,  3.1934e-8f, 3.6211e-8f,
                             -3.0991e-8f, -7.4752e-9f, 1.7114e-8f,  -3.0477e-8f, 5.2333e-9f, 6.1076e-9f,
                             -1.4720e-8f, -5.2588e-9f, -6.1283e-9f, 5.1406e-9f};
  constexpr float kConstant = kTable == 16 ? 0 : -1.83e-8f;  // the cubic's own; 1 + it is 1 in float32
  Powers table{};
  for (uint32_t k = 0; k < kTable; ++k) {
    table.bits[k] = std::bit_cast<uint32_t>(kPowers[k * 16 / kTable]) - k * (0x800000 / kTable);
    table.lost[k] = std::bit_cast<uint32_t>(kLost[k * 16 / kTable] + kConstant);
  }
  return table;
}
alignas(64) constexpr Powers kPowersOf2 = powers();
#endif

// exp(x) for x <= 88, relative error below 1.5 * 2^-24; 0 below -87 (no subnormals), NaN for NaN, 1 for 0.
GF_INLINE Floats exponential(Floats x) {
#if defined(GF_POWERS)
  // exp(x) = 2^n * exp(r), n a multiple of 1 / kTable: a cubic is enough for so small an r.
  constexpr float kRound = 0x1.8p23f / kTable;  // adding it rounds to such a multiple, kept in the low mantissa bits
  const Floats shifted = fma(x, Floats{} + 1.44269504f, kRound);
  const Floats n = shifted - kRound;
  const Floats r = fma(n, Floats{} - 0x1.62e43p-1f, x);
  const Words index = (Words)shifted;
  const Floats power = (Floats)(pick(kPowersOf2.bits, index) + index * (0x800000 / kTable));  // 2^n
  // 0x1.62e43p-1 is above ln 2 by the constant here
  const Floats lost = fma(n, Floats{} + 1.90465430e-9f, (Floats)pick(kPowersOf2.lost, index));
  Floats q =
      kTable == 16 ? fma(r, Floats{} + 0.166660741f, 0.500016212f) : fma(r, Floats{} + 0.166651011f, 0.500078261f);
  q = fma(q, r, 1.0f);
  q = fma(q, r, lost);
  return fma_from(-87.0f, x, power, q, power);
#else
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
#endif
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
