// The units of a scan, as every device computes them: rows and queries scaled to norms near 1, codes in those units,
// and where an exact score lies among scan scores. bound.h has how far a scan score may be off.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/bound.h"

namespace graceful_fast {

enum class Metric { ip, l2, cosine };  // as numbered in graceful_fast/_ops.py
enum class Fault : int64_t { none, not_finite, zero, too_large };

constexpr int64_t kFacts = 3;  // of a row of codes: scale, residual, norm; see Codes of cpu/scan.h
constexpr int64_t kCodeAlignment = 16;
constexpr int64_t kLargestCodedDim = int64_t(1) << 17;  // 127 * 127 * dim stays in int32
constexpr int kRowLevels = 127;
GF_HD inline int64_t code_stride(int64_t dim) { return (dim + kCodeAlignment - 1) / kCodeAlignment * kCodeAlignment; }

// What a scan needs to know of a query besides its values.
struct Query {
  double norm;    // in scan units, rounded up; infinity: settle everything
  double square;  // q.q by definition
  double unit;    // definition -> scan units: ip of the query's and the gallery's scale, l2 of the scale squared
  // As codes, in scan units: the scale t, |t b| and |f| rounded up (cpu/scan_codes.h).
  double step, coded, residual;
};

namespace {

constexpr double kInfinity = __builtin_inf();

// 2^exponent, of normal numbers.
GF_HD inline double power_of_two(int exponent) {
  const uint64_t bits = uint64_t(1023 + exponent) << 52;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

GF_HD inline double inverse_power(double power) {  // of 2^-1022 to 2^1022
  uint64_t bits;
  std::memcpy(&bits, &power, sizeof bits);
  bits = (uint64_t(2046) << 52) - bits;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

// Rounded down to float32, with more than the rounding of a limit's own arithmetic to spare.
GF_HD inline float rounded_down(double value) { return float(value - std::fabs(value) * 0x1p-22 - 0x1p-100); }
// Rounded up, as rounded_down.
GF_HD inline float rounded_up(double value) { return float(value + std::fabs(value) * 0x1p-22 + 0x1p-100); }

// 2^e with norm * 2^e in [0.5, 1); 1 for a norm of 0 and for what is reported as bad anyway.
GF_HD inline double scale_of(double squared) {
  if (!(squared > 0 && squared <= kLargestSquare)) return 1;
  const double norm = std::sqrt(squared);  // a normal number, also of the smallest square
  uint64_t bits;
  std::memcpy(&bits, &norm, sizeof bits);
  return power_of_two(1022 - int(bits >> 52));
}

GF_HD inline bool extreme(double scale) { return scale > 0x1p400 || scale < 0x1p-400; }
static_assert(kLargestExponent == 400);

// A row of codes in scan units.
struct CodedRow {
  float scale, residual, start;  // start: where its sums start: l2 -|x|^2/2, else 0
  double norm;                   // infinity: codes say nothing
};

// From the norm that is known already: there is no root to take.
GF_HD inline CodedRow coded_row(const float* facts, Metric metric, double gallery_scale) {
  const double norm = facts[2];
  if (!(norm < kInfinity)) return {0, 0, 0, kInfinity};
  if (metric == Metric::cosine) {
    const double scale = 1 / norm;
    return {float(facts[0] * scale), float(facts[1] * scale * (1 + 0x1p-20)), 0, 1 + 0x1p-20};
  }
  const double scaled = norm * gallery_scale, above = scaled * (1 + 0x1p-20) + 0x1p-100;
  if (!(above <= kLargestNorm) || extreme(gallery_scale)) return {0, 0, 0, kInfinity};
  return {float(facts[0] * gallery_scale), float(facts[1] * gallery_scale * (1 + 0x1p-20)),
          metric == Metric::l2 ? float(-scaled * scaled / 2) : 0, above};
}

// 2^-18 of the norms' product: the few roundings of scores and limits to float32, and of 1/norm where a norm is.
constexpr double kCodedSlack = 0x1p-18;
// |start| is rounded, and known from a rounded norm: 2^-20 of X^2 is far above both.
GF_HD inline double squares_slack(Metric metric) { return metric == Metric::l2 ? 0x1p-20 : 0; }

// scale: what the query's values are multiplied with, 0 where its norm is infinity.
GF_HD inline Query measure_query(double squared, Metric metric, double query_scale, double gallery_scale,
                                 double& scale) {
  Query query{kInfinity, squared, 1, 1, 0, 0};
  scale = 0;
  if (metric == Metric::cosine) {
    if (squared < 0x1p-800 || squared > 0x1p800) return query;
    scale = 1 / std::sqrt(squared);
    query.norm = 1 + 0x1p-20;
    return query;
  }
  const double wanted = metric == Metric::l2 ? query_scale : scale_of(squared);
  const double norm = norm_above(squared, wanted);
  query.unit = wanted * gallery_scale;
  if (!(norm <= kLargestNorm) || extreme(wanted)) return query;
  query.norm = norm;
  scale = wanted;
  return query;
}

// A key in the scan units of one query: within `error` of `score`.
struct KeyInScan {
  double score, error;
};

GF_HD inline KeyInScan key_in_scan(const Query& query, double key, Metric metric) {
  KeyInScan found{key * query.unit, 0x1p-100};
  if (metric == Metric::l2) {
    const double square = query.square * query.unit;
    found.error += 0x1p-52 * (square - found.score);
    found.score = (square + found.score) / 2;
  }
  if (!(std::fabs(found.score) < 0x1p125) || !(query.norm <= kLargestNorm)) found = {0, kInfinity};
  return found;
}

}  // namespace
}  // namespace graceful_fast
