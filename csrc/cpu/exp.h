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

GF_INLINE double exponential(double x) { return std::exp(x); }

// Exponentials of small exponents x / T, given x: for float32 the polynomials' coefficients take the 1/T, and the
// scale, so that they cost nothing per number.

// scale * exp(x * inverse) for -0.275 <= x * inverse <= 0 (kCalmExponent), relative error of the polynomial 2.6e-8; S
// is float or double
template <class S>
class SmallExponential {
 public:
  SmallExponential(double scale, double inverse) {
    for (double power = scale; S& c : c_) c = S(c * power), power *= inverse;
  }
  GF_INLINE Floats operator()(Floats x) const {
    Floats q = fma(x, Floats{} + c_[4], c_[3]);
    q = fma(q, x, c_[2]);
    q = fma(q, x, c_[1]);
    return fma(q, x, c_[0]);
  }

 private:
  S c_[5] = {1, 0.99999553f, 0.49987295f, 0.16538411f, 0.036285333f};
};
template <>
class SmallExponential<double> {
 public:
  SmallExponential(double scale, double inverse) : scale_(scale), inverse_(inverse) {}
  double operator()(double x) const { return scale_ * std::exp(x * inverse_); }

 private:
  double scale_, inverse_;
};

// expm1(d) and expm1(d) - d for d = x * inverse, |d| <= 1/2, or 1/4 if calm; relative error of the polynomial 2.5e-8
template <class S, bool calm>
class SmallGrowth {
 public:
  explicit SmallGrowth(double inverse) : inverse_(S(inverse)) {
    for (double power = inverse * inverse; S& c : c_) c = S(c * power), power *= inverse;
  }
  // expm1(d) - z
  GF_INLINE Floats minus(Floats x, float z) const { return fma(fma(bend(x), x, inverse_), x, -z); }
  // w * (expm1(d) - d) + sum
  GF_INLINE Floats add_bent(Floats w, Floats x, Floats sum) const { return fma(w * x, x * bend(x), sum); }

 private:
  GF_INLINE Floats bend(Floats x) const {  // (expm1(d) - d) / x^2
    Floats q = calm ? Floats{} + c_[4] : fma(x, Floats{} + c_[5], c_[4]);
    q = fma(q, x, c_[3]);
    q = fma(q, x, c_[2]);
    q = fma(q, x, c_[1]);
    return fma(q, x, c_[0]);
  }
  S inverse_;
  S c_[6] = {0.5f,
             calm ? 0.166666418f : 0.166666655f,
             calm ? 4.16667163e-2f : 4.16657959e-2f,
             calm ? 8.34883936e-3f : 8.33345217e-3f,
             calm ? 1.38953433e-3f : 1.39819974e-3f,
             calm ? 0 : 1.98756284e-4f};
};
template <bool calm>
class SmallGrowth<double, calm> {
 public:
  explicit SmallGrowth(double inverse) : inverse_(inverse) {}
  double minus(double x, double z) const { return std::expm1(x * inverse_) - z; }
  double add_bent(double w, double x, double sum) const {
    const double d = x * inverse_;
    // below 1e-3 the difference would lose more digits than the series' fifth term is worth
    return sum +
           w * (std::fabs(d) < 1e-3 ? d * d * (0.5 + d * (1.0 / 6 + d * (1.0 / 24 + d / 120))) : std::expm1(d) - d);
  }

 private:
  double inverse_;
};

}  // namespace
}  // namespace graceful_fast
