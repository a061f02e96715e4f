// scan, the ending `count`: how many rows rank before each positive of a query, without sorting anything.
//
// b = the positives that a score does not surely beat; if the last of them surely beats the score, so do all before it,
// and the row is counted at place b. Rows that surely beat no positive are not counted at all. What is left is listed
// and settled in float64.
//
// count    reads an edge a query and tile, log2(positives) of them for a row that may beat one; adds 8 bytes for each.
// unsure   settles the listed pairs: the row of each is read once.
// add      a thread a query: tallies -> counts.
#pragma once
#include "kernels/scan_definition.cuh"
#include "kernels/scan_tile.cuh"

namespace graceful_fast {
namespace {

struct Count : CountParams {
  __device__ bool skips(int64_t, int64_t) const { return false; }
  // The score that the worst positive is not surely above.
  __device__ float query(int64_t i) const {
    const int64_t begin = start[first_query + i], end = start[first_query + i + 1];
    return begin < end ? lower[end - 1] : float(kInfinity);
  }
  __device__ void take(float worst, int64_t i, int64_t slot, bool there, float score, float error) const {
    if (there && !(score + error < worst)) place(first_query + i, first + slot, score, error);
  }
  __device__ void finish() {}

 private:
  __device__ void place(int64_t query, int64_t row, float score, float error) const {
    const int64_t begin = start[query], count = start[query + 1] - begin;
    if (count == 0) return;
    const float least = score - error, most = score + error;
    int64_t low = 0, high = count;  // the first of the positives that the score surely beats
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const bool beaten = least > upper[begin + middle];
      low = beaten ? low : middle + 1;
      high = beaten ? middle : high;
    }
    if (low > 0 && !(most < lower[begin + low - 1])) {
      list(unsure, query, row);
    } else if (!unsure.only) {
      atomicAdd(between + begin + query + low, 1ull);
    }
  }
};

constexpr int kCountThreads = 128;

// A block a query: its positives' edges.
__global__ void __launch_bounds__(kCountThreads) scan_edges(CountAllParams p) {
  const CountParams& c = p.count;
  const Query query = p.facts[blockIdx.x];
  for (int64_t j = c.start[blockIdx.x] + threadIdx.x; j < c.start[blockIdx.x + 1]; j += kCountThreads) {
    const KeyInScan key = key_in_scan(query, c.keys[j], p.metric);
    c.upper[j] = rounded_up(key.score + key.error);
    c.lower[j] = rounded_down(key.score - key.error);
  }
}

// As Tally::add of cpu/scan_tally.h.
__device__ __forceinline__ void tally(const CountParams& c, int64_t query, double key, int64_t row) {
  const int64_t begin = c.start[query], end = c.start[query + 1];
  // The first place at which `ends(place)`; it never does again.
  const auto first = [](int64_t low, int64_t high, auto ends) {
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      ends(middle) ? high = middle : low = middle + 1;
    }
    return low;
  };
  const int64_t at = first(begin, end, [&](int64_t j) { return !(c.keys[j] > key); });
  if (at == end || c.keys[at] < key) {
    atomicAdd(c.between + at + query, 1ull);
    return;
  }
  atomicAdd(c.equal + at, 1ull);
  const int64_t behind = first(at, end, [&](int64_t j) { return key > c.keys[j]; });
  const int64_t next = first(at, behind, [&](int64_t j) { return row < c.rows[j]; });
  if (next < behind) atomicAdd(c.before + next, 1ull);
}

__global__ void __launch_bounds__(kRowThreads) scan_count_unsure(DefinitionParams d, CountParams c, int64_t pairs) {
  each_key(
      d, pairs, [&](int64_t j) { return c.unsure.pairs[j]; },
      [&](int64_t, Pair pair, double key) { tally(c, pair.query, key, c.first_row + pair.row); });
}

__global__ void __launch_bounds__(kCountThreads) scan_count_add(CountAllParams p) {
  const int64_t i = int64_t(blockIdx.x) * kCountThreads + threadIdx.x;
  if (i >= p.queries) return;
  const CountParams& c = p.count;
  int64_t greater = 0, equal = 0, before = 0;  // of the positives of one key
  for (int64_t j = c.start[i]; j < c.start[i + 1]; ++j) {
    if (j == c.start[i] || c.keys[j] != c.keys[j - 1]) {
      greater += equal + int64_t(c.between[j + i]);
      equal = int64_t(c.equal[j]);
      before = 0;
    }
    before += int64_t(c.before[j]);
    p.counts[j] += greater;
    p.counts[p.positives + j] += equal;
    p.counts[2 * p.positives + j] += before;
  }
}

}  // namespace
}  // namespace graceful_fast
