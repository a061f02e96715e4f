// scan, the float64 definition of scores (math/settle.h): what decides wherever a scan cannot. Eight threads a score, one
// for each lane of its sum; every difference, product and sum is rounded on its own.
#pragma once
#include "kernels/scan_lanes.cuh"

namespace graceful_fast {
namespace {

// Of eight threads of a warp that are together, all of which get it; the others of the warp call it as well.
template <class T>
__device__ __forceinline__ double key_of(const DefinitionParams& d, const double* q, double square, const T* x, bool there) {
  double sum = 0, norm = 0;
  for (int64_t i = threadIdx.x % kLanes; there && i < d.rows.columns; i += kLanes) {
    const double value = double(widen(x[i]));
    if (d.metric == Metric::l2) {
      const double difference = __dsub_rn(q[i], value);
      sum = __dadd_rn(sum, __dmul_rn(difference, difference));
    } else {
      sum = __dadd_rn(sum, __dmul_rn(q[i], value));
      if (d.metric == Metric::cosine) norm = __dadd_rn(norm, __dmul_rn(value, value));
    }
  }
  sum = fixed_total(sum);
  if (d.metric == Metric::l2) return -sum;
  if (d.metric == Metric::ip) return sum;
  return sum / __dmul_rn(sqrt(square), sqrt(fixed_total(norm)));
}

// Keys of pairs by eight threads each: use(j, pair, key) by the first of them.
template <class PairOf, class Use>
__device__ __forceinline__ void each_key(const DefinitionParams& d, int64_t count, PairOf pair_of, Use use) {
  const int64_t j = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / kLanes;
  const bool there = j < count;
  const Pair pair = there ? pair_of(j) : Pair{0, 0};
  with_row(d.rows, pair.row, [&](const auto* x) {
    const double key = key_of(d, d.wide + pair.query * d.wide_stride, d.square[pair.query], x, there);
    if (there && threadIdx.x % kLanes == 0) use(j, pair, key);
  });
}

// Lists a pair that a scan score cannot decide.
__device__ __forceinline__ void list(const Unsure& unsure, int64_t query, int64_t row) {
  const unsigned long long at = atomicAdd(unsure.count, 1ull);
  if (at < (unsigned long long)(unsure.capacity)) unsure.pairs[at] = {query, row};
}

}  // namespace
}  // namespace graceful_fast
