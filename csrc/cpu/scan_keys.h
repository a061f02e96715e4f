// scan, exact scores among scan scores: where a key lies in the units of one query's scan.
#pragma once
#include "cpu/scan_measure.h"

namespace graceful_fast {
namespace {

// A key in the scan units of one query: within `error` of `score`.
struct KeyInScan {
  double score, error;
};

inline KeyInScan key_in_scan(const Query& query, double key, Metric metric) {
  KeyInScan found{key * query.unit, 0x1p-100};
  if (metric == Metric::l2) {
    const double square = query.square * query.unit;
    found.error += 0x1p-52 * (square - found.score);
    found.score = (square + found.score) / 2;
  }
  if (!(__builtin_fabs(found.score) < 0x1p125) || !(query.norm <= kLargestNorm)) found = {0, __builtin_inf()};
  return found;
}

// Rounded up to float32, as rounded_down.
inline float rounded_up(double value) { return float(value + __builtin_fabs(value) * 0x1p-22 + 0x1p-100); }

}  // namespace
}  // namespace graceful_fast
