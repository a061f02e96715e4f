// scan, candidates settled: their float64 keys, and the ranking by them and by row.
//
// keys     candidates of each query -> their keys, in place. A block a query, 8 threads a candidate, one for each lane
//          of the sum. Reads each candidate's row once, and the query, in float64, from the caches.
// rank     keys of candidates and the k best so far -> the k best, sorted by (key, smaller row). A block a query: a
//          bitonic sort, in shared memory where the list fits, else where it lies; comparisons with what lies behind
//          the list are left out: those are the worst, and every comparison of this form puts the better one first.
#pragma once
#include "kernels/scan_collect.cuh"
#include "kernels/scan_definition.cuh"

namespace graceful_fast {
namespace {

__device__ __forceinline__ int32_t to_settle(const SettleParams& p, int64_t i) {
  const int32_t count = p.states.counts[i];
  return count > p.above || (p.pending && p.states.pending[i]) ? count : 0;
}

__global__ void __launch_bounds__(kListThreads) scan_keys(SettleParams p) {
  const int64_t i = blockIdx.x;
  const int32_t count = to_settle(p, i);
  Candidate* const list = p.lists.of(i);
  constexpr int kTogether = kListThreads / kLanes;
  for (int32_t begin = 0; begin < count; begin += kTogether) {
    const int32_t j = begin + int32_t(threadIdx.x) / kLanes;
    const bool there = j < count;
    const double key = key_of(p.definition, {i, there ? list[j].row : 0}, there);
    if (there && threadIdx.x % kLanes == 0) list[j].as.key = key;
  }
  if (threadIdx.x > 0 || count == 0) return;
  atomicAdd(p.settled, (unsigned long long)(count));
  atomicAdd(p.settled + 1, 1ull);
}

__device__ __forceinline__ bool better(const Candidate& a, const Candidate& b) {
  return a.as.key > b.as.key || (a.as.key == b.as.key && a.row < b.row);
}

__device__ __forceinline__ void compare(Candidate* list, int64_t a, int64_t b, int64_t count) {
  if (b >= count) return;
  const Candidate first = list[a], second = list[b];
  if (better(second, first)) list[a] = second, list[b] = first;
}

// Best first, by all threads of a block.
__device__ __forceinline__ void sort(Candidate* list, int64_t count) {
  for (int64_t size = 2; size / 2 < count; size *= 2) {
    for (int64_t step = size / 2; step > 0; step /= 2) {
      __syncthreads();  // each step compares what the one before has put there
      for (int64_t t = threadIdx.x; t / step * 2 * step < count; t += kListThreads) {
        const int64_t at = t / step * 2 * step + t % step;
        // The first step of a merge meets the other half in reverse, so that all comparisons point one way.
        const int64_t other = step == size / 2 ? t / step * 2 * step + 2 * step - 1 - t % step : at + step;
        compare(list, at, other, count);
      }
    }
  }
  __syncthreads();  // all of it is there
}

constexpr int64_t kSharedList = 2048;  // candidates: 32 KiB

__global__ void __launch_bounds__(kListThreads) scan_rank(SettleParams p) {
  simt::Smem smem;
  Candidate* const shared = smem.take<Candidate>(kSharedList);
  const int64_t i = blockIdx.x, k = p.lists.k;
  const int32_t count = to_settle(p, i);
  if (count == 0) return;
  Candidate* const list = p.lists.of(i);
  double* const keys = p.keys + i * k;
  int64_t* const rows = p.rows + i * k;

  // 1. candidates by their numbers, and the best so far
  int32_t best = 0;
  for (int64_t begin = 0; begin < k; begin += kListThreads) {
    const int64_t j = begin + threadIdx.x;
    best += __syncthreads_count(j < k && rows[j] >= 0);
  }
  const int64_t total = int64_t(count) + best;
  Candidate* const all = total <= kSharedList ? shared : list;
  for (int64_t j = threadIdx.x; j < total; j += kListThreads) {
    Candidate candidate;
    if (j < count) {
      candidate = list[j];
      candidate.row = p.numbers ? p.numbers[candidate.row] : candidate.row + p.first_row;
    } else {
      candidate.as.key = keys[j - count];
      candidate.row = rows[j - count];
    }
    all[j] = candidate;
  }
  sort(all, total);

  // 2. the k best of them
  for (int64_t j = threadIdx.x; j < k && j < total; j += kListThreads) keys[j] = all[j].as.key, rows[j] = all[j].row;
  if (threadIdx.x > 0) return;
  const ListStates& s = p.states;
  s.counts[i] = s.kept[i] = 0;
  if (total < k) return;
  const KeyInScan last = key_in_scan(p.facts[i], all[k - 1].as.key, p.definition.metric);
  if (last.score - last.error > s.floor[i]) s.floor[i] = last.score - last.error;
}

// --- lists from and to outside
// ----------------------------------------------------------------------------------------

// The state of each query before the first row.
__global__ void __launch_bounds__(kListThreads) scan_begin(SettleParams p) {
  const int64_t i = int64_t(blockIdx.x) * kListThreads + threadIdx.x;
  if (i >= p.queries) return;
  const int64_t last = (i + 1) * p.lists.k - 1;
  double floor = -kInfinity;
  if (p.rows[last] >= 0) {
    const KeyInScan known = key_in_scan(p.facts[i], p.keys[last], p.definition.metric);
    floor = known.score - known.error;
  }
  p.states.floor[i] = floor;
  p.states.counts[i] = p.states.kept[i] = 0;
  p.states.pending[i] = 0;
}

__global__ void __launch_bounds__(kListThreads) scan_place(PlaceParams p) {
  const int64_t i = blockIdx.x, begin = p.offsets[i], count = p.offsets[i + 1] - begin;
  Candidate* const list = p.lists.of(i);
  for (int64_t j = threadIdx.x; j < count; j += kListThreads) list[j].row = p.places[begin + j];
  if (threadIdx.x == 0) p.states.counts[i] = int32_t(count);
}

__global__ void __launch_bounds__(kListThreads) scan_list_rows(ListRowsParams p) {
  const int64_t i = blockIdx.x, begin = p.offsets[i], count = p.offsets[i + 1] - begin;
  const Candidate* const list = p.lists.of(i);
  for (int64_t j = threadIdx.x; j < count; j += kListThreads) p.rows[begin + j] = list[j].row;
}

}  // namespace
}  // namespace graceful_fast
