// scan, rows before their products: what is wrong with a row, how it is scaled to float32, how long it is.
#pragma once
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/rounding.h"
#include "cpu/scan.h"
#include "cpu/simd.h"
#include "math/bound.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

inline double power_of_two(int exponent) { return __builtin_ldexp(1.0, exponent); }

// Rounded down to float32, with more than the rounding of a limit's own arithmetic to spare.
inline float rounded_down(double value) { return float(value - __builtin_fabs(value) * 0x1p-22 - 0x1p-100); }

// 2^e with norm * 2^e in [0.5, 1); 1 for a norm of 0 and for what is reported as bad anyway.
inline double scale_of(double squared) {
  if (!(squared > 0 && squared <= kLargestSquare)) return 1;
  int exponent;
  __builtin_frexp(__builtin_sqrt(squared), &exponent);
  return power_of_two(-exponent);
}

inline bool extreme(double scale) { return scale > 0x1p400 || scale < 0x1p-400; }
static_assert(kLargestExponent == 400);

inline double typical_scale(const Matrix& rows, int64_t dim) {
  const DefaultRounding rounding;
  return with_elements(rows, [&](const auto* data) {
    constexpr int64_t kSamples = 64;
    double largest = 0;
    for (int64_t s = 0; s < least(kSamples, rows.rows); ++s) {
      const int64_t row = rows.rows <= kSamples ? s : s * (rows.rows / kSamples);
      const double squared = squared_norm(data + row * rows.row_stride, dim);
      if (squared > largest && squared <= kLargestSquare) largest = squared;
    }
    return scale_of(largest);
  });
}

inline double typical_scale_of_codes(const Codes& codes, int64_t rows) {
  constexpr int64_t kSamples = 64;
  double largest = 0;
  for (int64_t s = 0; s < least(kSamples, rows); ++s) {
    const double norm = codes.facts[(rows <= kSamples ? s : s * (rows / kSamples)) * kFacts + 2];
    if (norm > largest && norm < __builtin_inf()) largest = norm;
  }
  return scale_of(largest * largest);
}

template <class T>
Fault fault_of(const T* x, int64_t dim, double squared, Metric metric) {
  if (squared == 0) return metric == Metric::cosine ? Fault::zero : Fault::none;
  if (squared <= kLargestSquare) return Fault::none;
  for (int64_t i = 0; i < dim; ++i) {
    const double value = widen(x[i]);
    if (!(value - value == 0)) return Fault::not_finite;
  }
  return Fault::too_large;
}

// What the scan needs to know of a row besides its values.
struct Measure {
  double scale, norm;  // norm: scaled, rounded up; infinity: the float32 scan cannot hold it
  float start;         // where its sums start: l2 -|x|^2/2, else 0
};

inline Measure measure_row(double squared, const ScanParams& p) {
  if (p.metric == Metric::cosine) {
    if (squared < 0x1p-800 || squared > 0x1p800) return {0, __builtin_inf(), 0};
    return {1 / __builtin_sqrt(squared), 1 + 0x1p-20, 0};
  }
  const double norm = norm_above(squared, p.gallery_scale);
  if (!(norm <= kLargestNorm) || extreme(p.gallery_scale)) return {0, __builtin_inf(), 0};
  const double half = squared * p.gallery_scale * p.gallery_scale / 2;
  return {p.gallery_scale, norm, p.metric == Metric::l2 ? float(-half) : 0};
}

// A row of codes in scan units, as given_codes and refine take it.
struct CodedRow {
  float scale, residual, start;
  double norm;  // infinity: codes say nothing
};

// As measure_row, from the norm that is known already: there is no root to take.
GF_INLINE CodedRow coded_row(const ScanParams& p, int64_t row) {
  const float* facts = p.codes.facts + row * kFacts;
  const double norm = facts[2];
  if (!(norm < __builtin_inf())) return {0, 0, 0, __builtin_inf()};
  if (p.metric == Metric::cosine) {
    const double scale = 1 / norm;
    return {float(facts[0] * scale), float(facts[1] * scale * (1 + 0x1p-20)), 0, 1 + 0x1p-20};
  }
  const double scale = p.gallery_scale, scaled = norm * scale;
  const double above = scaled * (1 + 0x1p-20) + 0x1p-100;
  if (!(above <= kLargestNorm) || extreme(scale)) return {0, 0, 0, __builtin_inf()};
  return {float(facts[0] * scale), float(facts[1] * scale * (1 + 0x1p-20)),
          p.metric == Metric::l2 ? float(-scaled * scaled / 2) : 0, above};
}

// 2^-18 of the norms' product: the few roundings of scores and limits to float32, and of 1/norm where a norm is.
constexpr double kCodedSlack = 0x1p-18;
// |start| is rounded, and known from a rounded norm: 2^-20 of X^2 is far above both.
inline double squares_slack(Metric metric) { return metric == Metric::l2 ? 0x1p-20 : 0; }

struct Query {
  double norm;    // in scan units, rounded up; infinity: settle everything
  double square;  // q.q by definition
  double unit;    // definition -> scan units: ip of the query's and the gallery's scale, l2 of the scale squared
  // As codes, in scan units: the scale t, |t b| and |f| rounded up (scan_codes.h).
  double step, coded, residual;
};

inline Query measure_query(double squared, const ScanParams& p, double& scale) {
  Query query{__builtin_inf(), squared, 1, 1, 0, 0};
  scale = 0;
  if (p.metric == Metric::cosine) {
    if (squared < 0x1p-800 || squared > 0x1p800) return query;
    scale = 1 / __builtin_sqrt(squared);
    query.norm = 1 + 0x1p-20;
    return query;
  }
  const double wanted = p.metric == Metric::l2 ? p.query_scale : scale_of(squared);
  const double norm = norm_above(squared, wanted);
  query.unit = wanted * p.gallery_scale;
  if (!(norm <= kLargestNorm) || extreme(wanted)) return query;
  query.norm = norm;
  scale = wanted;
  return query;
}

}  // namespace
}  // namespace graceful_fast
