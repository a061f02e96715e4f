// How far a float32 scan score may be from the float64 definition.
//
// u = 2^-24, w = 2^-53, gamma_n(u) = n u / (1 - n u). A row x is scanned as p = fl32(m x), a query q as r = fl32(m' q);
// m and m' are powers of two (ip, l2) or 1/norm (cosine). All below is in scaled units: R >= |m' q|, X >= |m x|.
//
//   packing     |p.r - (m x).(m' q)|                     <= (2u + u^2) R X                             (Cauchy-Schwarz)
//   the sum     D products, their sums in any order, at most 4 more roundings (the factor 1/norm, the start value):
//                                                           gamma_{D+4}(u) (1+u)^2 R X, for l2 also of the start value
//                                                           X^2/2
//   together, generously                                    gamma_{D+8}(u) (R X + [l2] X^2/2)
//   definition  ip: gamma_D(w) R X; cosine: gamma_{D+8}(w), norms included; l2: the score is q.x - |x|^2/2, the
//   definition stands for
//               (QQ - |q-x|^2)/2 with QQ the rounded q.q, one constant of the query: gamma_D(w) R^2/2 + gamma_{D+2}(w)
//               (R+X)^2/2
//   together, generously                                    8 gamma_{D+8}(w) (R + X)^2
//   underflow   each of 3D roundings may lose 2^-126 (flushed), each factor p_i or r_i 2^-126 of its own, and rows
//   scanned in
//               place carry m <= 2^30 outside the sum:      D 2^-90 (1 + R + X)
//
//   rows scanned in place are measured in float32: |x|^2 is off by gamma_{D+4}(u), so are the factor 1/norm, the start
//               value and X itself:                         gamma_{D+8}(u) (R X + [l2] X^2/2) once more, X times 1 +
//               gamma
//
// Overflow: scaled norms stay below 2^60, so no float32 result exceeds 2^121. A row or query beyond, one whose scale
// would make float64 underflow, and D > 2^21 get the bound infinity: float64 settles them.
#pragma once
#include <cmath>
#include <cstdint>

#include "math/hd.h"

namespace graceful_fast {
namespace {

constexpr double kLargestNorm = 0x1p60;
constexpr int kLargestExponent = 400;  // scales beyond 2^+-400: products could leave the range of float64
constexpr int64_t kLargestDim = int64_t(1) << 21;
constexpr double kLargestSquare = 0x1p1020;  // of a norm: beyond, the definitions themselves would overflow

struct Bound {
  double product, square, exact, tiny;
  double norm_slack;  // what a norm from a float32 sum of squares must be multiplied with

  GF_HD Bound(int64_t dim, bool l2, bool in_place) {
    const double n = double(dim) + 8;
    const double u = dim > kLargestDim ? __builtin_inf() : n * 0x1p-24 / (1 - n * 0x1p-24);
    norm_slack = in_place ? 1 + u : 1;
    product = (in_place ? 2 : 1) * u * (1 + 0x1p-20);  // the arithmetic of this very bound rounds, too
    square = l2 ? product / 2 : 0;
    exact = 8 * n * 0x1p-53 * (1 + 0x1p-20);
    tiny = double(dim) * 0x1p-90;
  }

  // Grows with X: the largest X of a block of rows gives a bound for each of them. query, row > 0.
  GF_HD double error(double query, double row) const {
    const double sum = query + row;
    if (sum == __builtin_inf()) return sum;  // 0 * infinity below would be NaN
    return product * query * row + square * row * row + exact * sum * sum + tiny * (1 + sum);
  }
};

// A norm rounded up, never 0. `squared`: a float64 sum of squares in any order, D <= kLargestDim.
GF_HD inline double norm_above(double squared, double scale) {
  return std::sqrt(squared) * scale * (1 + 0x1p-20) + 0x1p-100;
}

}  // namespace
}  // namespace graceful_fast
