// scan, the definition of a pair's score (math/settle.h), and where it lies among scan scores.
#pragma once
#include "cpu/buffer.h"
#include "cpu/scan_measure.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

// Float64 scores, larger is better; many of one query in a row are the fastest.
template <class T>
class Definition {
 public:
  explicit Definition(const ScanParams& params) : p_(params), query_(params.dim + 8) {}

  double operator()(int64_t query, int64_t row) {
    if (query != held_) hold(query);
    const T* x = static_cast<const T*>(p_.gallery.data) + row * p_.gallery.row_stride;
    if (p_.metric == Metric::l2) return -squared_distance<T>(query_, x, p_.dim);
    const double product = inner_product<T>(query_, x, p_.dim);
    return p_.metric == Metric::ip ? product : product / (root_ * __builtin_sqrt(squared_norm(x, p_.dim)));
  }

 private:
  void hold(int64_t query) {
    with_elements(p_.queries, [&](const auto* data) {
      const auto* q = data + query * p_.queries.row_stride;
      for (int64_t j = 0; j < p_.dim; ++j) query_[j] = double(widen(q[j]));
      root_ = __builtin_sqrt(squared_norm(q, p_.dim));
    });
    for (int64_t j = p_.dim; j % 8; ++j) query_[j] = 0;
    held_ = query;
  }

  const ScanParams& p_;
  Buffer<double> query_;  // [dim], zeros up to a multiple of 8
  double root_ = 0;
  int64_t held_ = -1;
};

// A key in the scan units of one query: within `error` of `score`.
struct InScanUnits {
  double score, error;
};

inline InScanUnits in_scan_units(const Query& query, double key, Metric metric) {
  InScanUnits found{key * query.unit, 0x1p-100};
  if (metric == Metric::l2) {
    const double square = query.square * query.unit;
    found.error += 0x1p-52 * (square - found.score);
    found.score = (square + found.score) / 2;
  }
  if (!(__builtin_fabs(found.score) < 0x1p125) || !(query.norm <= kLargestNorm)) found = {0, __builtin_inf()};
  return found;
}

// Rounded to float32 outwards, with more than the rounding of the argument's own arithmetic to spare.
inline float at_most(double value) { return float(value - __builtin_fabs(value) * 0x1p-22 - 0x1p-100); }
inline float at_least(double value) { return float(value + __builtin_fabs(value) * 0x1p-22 + 0x1p-100); }

}  // namespace
}  // namespace graceful_fast
