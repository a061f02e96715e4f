// scan, the endings over all pairs: `histogram` counts every pair by the bin of its scan score and keeps those of some
// bins; `between` settles the pairs whose exact score may lie between two keys, counts and keeps them, and of all
// others counts only how many lie below and above.
//
// histogram  an atomic addition of 8 bytes a pair, 13 bytes more for each that is kept.
// between    four additions a warp and tile; 16 bytes a pair that is to be settled, whose row is read once.
#pragma once
#include "kernels/scan_definition.cuh"
#include "kernels/scan_tile.cuh"

namespace graceful_fast {
namespace {

// Whether there is nothing to do for the tile of these queries and rows.
__device__ __forceinline__ bool skips_pairs(const PairParams& p, int64_t query0, int64_t slot0) {
  return p.within && p.first + slot0 + kTileRows - 1 <= p.first_query + query0;
}

struct OneOf {
  bool wanted;
  int genuine;
};

__device__ __forceinline__ OneOf kind_of(const PairParams& p, int64_t query, int64_t row, bool there) {
  if (!there || (p.within && row <= query) || (p.query_ids && p.query_ids[query] == p.row_ids[row])) return {false, 0};
  return {true, p.query_labels[query] == p.row_labels[row]};
}

// Where a kept pair goes; beyond the capacity it is only counted.
__device__ __forceinline__ unsigned long long keep(const PairParams& p, int genuine) {
  const unsigned long long at = atomicAdd(p.kept, 1ull);
  if (at < (unsigned long long)(p.capacity)) p.kinds[at] = uint8_t(genuine);
  return at;
}

struct Histogram : HistogramParams {
  float largest = 0;  // of the margins of this thread's pairs

  __device__ bool skips(int64_t query0, int64_t slot0) const { return skips_pairs(pairs, query0, slot0); }
  __device__ Line query(int64_t i) const { return lines[i]; }
  __device__ void take(Line line, int64_t i, int64_t slot, bool there, float score, float error) {
    const OneOf pair = kind_of(pairs, i, pairs.first + slot, there);
    if (!pair.wanted) return;
    const float place = fmaf(score, line.slope, line.offset);
    // Slope, offset, the sum and the bin's edge are rounded to float32.
    const float size = fabsf(score * line.slope) + fabsf(line.offset) + float(pairs.bins);
    largest = fmaxf(largest, fmaf(error, line.slope, 0x1p-22f * size));
    const int32_t bin = int32_t(fminf(fmaxf(place, 0), float(pairs.bins - 1)));
    atomicAdd(pairs.counts + pair.genuine * pairs.bins + bin, 1ull);
    for (int64_t r = 0; r < range_count; ++r) {
      if (bin >= ranges[2 * r] && bin <= ranges[2 * r + 1])
        keep_place(place, pair.genuine, i * rows + pairs.first + slot);
    }
  }
  __device__ void finish() {
    const uint32_t most = __reduce_max_sync(0xffffffffu, __float_as_uint(largest));  // none is below 0
    if (threadIdx.x % 32 == 0 && most > 0) atomicMax(margin, most);
  }

 private:
  __device__ void keep_place(float place, int genuine, int64_t number) const {
    const unsigned long long at = keep(pairs, genuine);
    if (at >= (unsigned long long)(pairs.capacity)) return;
    places[at] = place;
    numbers[at] = number;
  }
};

// bin = slope * score + offset; the key of a score s is s / unit, of l2 (2 s - square unit) / unit.
__global__ void __launch_bounds__(kRowThreads) scan_lines(HistogramParams p) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= p.pairs.queries) return;
  const Query query = p.facts[i];
  const bool l2 = p.metric == Metric::l2;
  const double slope = (l2 ? 2 : 1) / (query.unit * p.width);
  const double offset = -(p.origin + (l2 ? query.square : 0)) / p.width;
  const bool usable = slope < 0x1p100 && fabs(offset) < 0x1p100;
  p.lines[i] = usable ? Line{float(slope), float(offset)} : Line{0, 0};
  if (!usable) atomicMax(p.margin, __float_as_uint(float(kInfinity)));
}

// float64 as integers in the same order; -0.0 and 0.0 are one. As in graceful_fast/_error_rates.py.
__device__ __forceinline__ int64_t ordered(double key) {
  const int64_t bits = __double_as_longlong(key);
  return bits < 0 ? INT64_MIN - bits : bits;
}
__device__ __forceinline__ double unordered(int64_t value) {
  return __longlong_as_double(value >= 0 ? value : INT64_MIN - value);
}

struct Between : BetweenParams {
  uint32_t below[2] = {}, above[2] = {};  // of this thread's pairs, impostors and genuine

  __device__ bool skips(int64_t query0, int64_t slot0) const { return skips_pairs(pairs, query0, slot0); }
  __device__ Limits query(int64_t i) const { return limits[pairs.first_query + i]; }
  __device__ void take(Limits limit, int64_t i, int64_t slot, bool there, float score, float error) {
    const int64_t query = pairs.first_query + i, row = pairs.first + slot;
    const OneOf pair = kind_of(pairs, query, row, there);
    if (!pair.wanted) return;
    const bool low = score + error < limit.low;
    const bool high = score - error > limit.high;
    below[0] += low && !pair.genuine, below[1] += low && pair.genuine;
    above[0] += high && !pair.genuine, above[1] += high && pair.genuine;
    if (!low && !high) list(unsure, query, row);
  }
  __device__ void finish() {
    if (unsure.only) return;
#pragma unroll
    for (int genuine = 0; genuine < 2; ++genuine) {
      const uint32_t low = __reduce_add_sync(0xffffffffu, below[genuine]);
      const uint32_t high = __reduce_add_sync(0xffffffffu, above[genuine]);
      if (threadIdx.x % 32 > 0) continue;
      if (low) atomicAdd(pairs.counts + genuine * pairs.bins, (unsigned long long)(low));
      if (high) atomicAdd(pairs.counts + (genuine + 1) * pairs.bins - 1, (unsigned long long)(high));
    }
  }
};

__global__ void __launch_bounds__(kRowThreads) scan_between_limits(BetweenParams p) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i >= p.pairs.queries) return;
  constexpr double kLargest = 1.7976931348623157e308;
  const uint64_t values = uint64_t(p.pairs.bins - 2) << p.shift;
  const bool open = uint64_t(ordered(kLargest)) - uint64_t(p.lowest) < values;
  const double low = unordered(p.lowest), high = open ? kLargest : unordered(p.lowest + int64_t(values - 1));
  const KeyInScan from = key_in_scan(p.facts[i], low, p.metric), to = key_in_scan(p.facts[i], high, p.metric);
  p.limits[i] = {rounded_down(from.score - from.error), rounded_up(to.score + to.error)};
}

__global__ void __launch_bounds__(kRowThreads) scan_between_unsure(DefinitionParams d, BetweenParams p, int64_t pairs) {
  each_key(
      d, pairs, [&](int64_t j) { return p.unsure.pairs[j]; },
      [&](int64_t, Pair pair, double key) {
        const int genuine = kind_of(p.pairs, pair.query, pair.row, true).genuine;
        const int64_t value = ordered(key), last = p.pairs.bins - 1;
        const uint64_t place = (uint64_t(value) - uint64_t(p.lowest)) >> p.shift;
        const int64_t bin = value < p.lowest ? 0 : place >= uint64_t(last - 1) ? last : int64_t(place) + 1;
        atomicAdd(p.pairs.counts + genuine * p.pairs.bins + bin, 1ull);
        if (bin == 0 || bin == last) return;
        const unsigned long long at = keep(p.pairs, genuine);
        if (at < (unsigned long long)(p.pairs.capacity)) p.keys[at] = key;
      });
}

// --- given pairs
// ----------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kRowThreads) scan_pair_keys(PairKeysParams p) {
  each_key(
      p.definition, p.count,
      [&](int64_t j) {
        const Pair pair{p.rows[j], p.columns[j]};
        const bool right =
            pair.query >= 0 && pair.query < p.queries && pair.row >= 0 && pair.row < p.definition.rows.rows;
        if (right) return pair;
        if (threadIdx.x % kLanes == 0) atomicMin(p.fault, (unsigned long long)(j));
        return Pair{0, 0};
      },
      [&](int64_t j, Pair, double key) { p.keys[j] = key; });
}

}  // namespace
}  // namespace graceful_fast
