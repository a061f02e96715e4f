// scan, the float64 definition of scores (math/settle.h): what decides wherever a scan cannot. Eight threads a score,
// one for each lane of its sum; every difference, product and sum is rounded on its own.
#pragma once
#include "kernels/scan_lanes.cuh"

namespace graceful_fast {
namespace {

// What one thread of a row adds up: the lane's sum, for cosine also of squares.
struct LaneSums {
  double score, norm;
};

template <class T>
__device__ __forceinline__ LaneSums lane_sums(const DefinitionParams& d, const double* q, const T* x) {
  LaneSums sums{0, 0};
  for (int64_t i = threadIdx.x % kLanes; i < d.rows.columns; i += kLanes) {
    const double value = double(widen(x[i]));
    if (d.metric == Metric::l2) {
      const double difference = __dsub_rn(q[i], value);
      sums.score = __dadd_rn(sums.score, __dmul_rn(difference, difference));
    } else {
      sums.score = __dadd_rn(sums.score, __dmul_rn(q[i], value));
      if (d.metric == Metric::cosine) sums.norm = __dadd_rn(sums.norm, __dmul_rn(value, value));
    }
  }
  return sums;
}

// The key of a pair by eight threads of a warp, all of which get it; the others of the warp call it as well, `there` or
// not.
__device__ __forceinline__ double key_of(const DefinitionParams& d, Pair pair, bool there) {
  LaneSums sums{0, 0};
  if (there) {
    const double* const q = d.wide + pair.query * d.wide_stride;
    with_row(d.rows, pair.row, [&](const auto* x) { sums = lane_sums(d, q, x); });
  }
  const double score = fixed_total(sums.score);
  if (d.metric == Metric::l2) return -score;
  if (d.metric == Metric::ip) return score;
  return score / __dmul_rn(sqrt(d.square[there ? pair.query : 0]), sqrt(fixed_total(sums.norm)));
}

// Keys of pairs by eight threads each: use(j, pair, key) by the first of them.
template <class PairOf, class Use>
__device__ __forceinline__ void each_key(const DefinitionParams& d, int64_t count, PairOf pair_of, Use use) {
  const int64_t j = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / kLanes;
  const bool there = j < count;
  const Pair pair = there ? pair_of(j) : Pair{0, 0};
  const double key = key_of(d, pair, there);
  if (there && threadIdx.x % kLanes == 0) use(j, pair, key);
}

// Lists a pair that a scan score cannot decide.
__device__ __forceinline__ void list(const Unsure& unsure, int64_t query, int64_t row) {
  const unsigned long long at = atomicAdd(unsure.count, 1ull);
  if (at < (unsigned long long)(unsure.capacity)) unsure.pairs[at] = {query, row};
}

}  // namespace
}  // namespace graceful_fast
