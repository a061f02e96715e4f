// scan, rows before their products: what is wrong with a row, how it is scaled to float32, how long it is.
#pragma once
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/rounding.h"
#include "cpu/scan.h"
#include "cpu/simd.h"
#include "math/scan_units.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

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

GF_INLINE CodedRow coded_row(const ScanParams& p, int64_t row) {
  return coded_row(p.codes.facts + row * kFacts, p.metric, p.gallery_scale);
}

inline Query measure_query(double squared, const ScanParams& p, double& scale) {
  return measure_query(squared, p.metric, p.query_scale, p.gallery_scale, scale);
}

}  // namespace
}  // namespace graceful_fast
