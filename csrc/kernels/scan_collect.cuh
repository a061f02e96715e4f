// scan, the ending `collect`: of each query the rows that may still be among its k best, in bounded memory.
//
// floor = a lower bound of the k-th best score of all rows seen so far: a row whose upper bound is below it is out for
// good. A tile appends what reaches the floor to the query's list, which has room for `capacity`; what does not fit is
// only counted. After each launch `trim`, a block a query, raises the floor to the k-th largest lower bound of the list
// and drops what ends below it; a list that had no room for all goes back to what it was before the launch, its query
// pending: the same rows are scanned once more for it, by the floor that those candidates have given (scan.cpp).
//
// collect  writes 16 bytes a candidate; reads a limit a query and tile.
// trim     reads a list kFloorBits + 2 times, mostly from the caches, and writes what stays of it.
#pragma once
#include "kernels/scan_tile.cuh"

namespace graceful_fast {
namespace {

struct Collect : CollectParams {
  __device__ bool skips(int64_t query0, int64_t) const {
    const int64_t i = query0 + threadIdx.x % kTileRows;
    return !__syncthreads_or(i < queries && limit[i] < float(kInfinity));
  }
  __device__ float query(int64_t i) const { return limit[i]; }
  __device__ void take(float of_query, int64_t i, int64_t slot, bool there, float score, float error) const {
    if (there && !(score + error < of_query)) add(of_query, i, first + slot * step, score, error);
  }

  __device__ void finish() {}

 private:
  __device__ void add(float of_query, int64_t i, int64_t row, float score, float error) const {
    if (of_query == float(kInfinity) || (query_ids && query_ids[i] == gallery_ids[row]) ||
        (query_groups && query_groups[i] == gallery_groups[row]))
      return;
    const int32_t at = atomicAdd(counts + i, 1);
    if (at >= lists.capacity) return;
    Candidate& to = lists.of(i)[at];
    to.as.scan = {score, rounded_up(error)};
    to.row = row;
  }
};

constexpr int kListThreads = 256;
constexpr int kFloorBits = 24;  // sign, exponent and 15 bits more: a floor 2^-15 lower lets hardly a row more in

// float32 as integers in the same order.
__device__ __forceinline__ uint32_t ordered_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered_bits(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

__device__ __forceinline__ float lowest(const Candidate& candidate) {
  return rounded_down(double(candidate.as.scan.score) - double(candidate.as.scan.error));
}

// The sum over the block's threads; slots: one a warp.
__device__ __forceinline__ int32_t block_sum(int32_t value, int32_t* slots) {
  constexpr int kWarps = kListThreads / 32;
  value = __reduce_add_sync(0xffffffffu, value);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
  __syncthreads();
  int32_t total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += slots[warp];
  __syncthreads();  // slots are written again
  return total;
}

// A value that at least k lower bounds of the list reach, and hardly more: bit after bit.
__device__ __forceinline__ double kth_bound(const Candidate* list, int32_t count, int64_t k, int32_t* slots) {
  if (count < k) return -kInfinity;
  uint32_t found = 0;
  for (int bit = 31; bit > 31 - kFloorBits; --bit) {
    const uint32_t trial = found | uint32_t(1) << bit;
    int32_t reaching = 0;
    for (int32_t j = threadIdx.x; j < count; j += kListThreads) reaching += ordered_bits(lowest(list[j])) >= trial;
    if (block_sum(reaching, slots) >= k) found = trial;
  }
  return found <= ordered_bits(-float(kInfinity)) ? -kInfinity : from_ordered_bits(found);
}

// Drops what ends below the floor, in place; how many stay.
__device__ __forceinline__ int32_t drop_below(double floor, Candidate* list, int32_t count, int32_t* slots) {
  int32_t kept = 0;
  for (int32_t begin = 0; begin < count; begin += kListThreads) {
    const int32_t j = begin + threadIdx.x;
    Candidate candidate{};
    bool stays = false;
    if (j < count) {
      candidate = list[j];
      stays = !(double(candidate.as.scan.score) + double(candidate.as.scan.error) < floor);
    }
    const uint32_t mine = __ballot_sync(0xffffffffu, stays);
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = __popc(mine);
    __syncthreads();  // these candidates are read: others may lie here now
    int32_t before = kept + __popc(mine & ((1u << threadIdx.x % 32) - 1));
    for (int warp = 0; warp < kListThreads / 32; ++warp) {
      before += warp < int(threadIdx.x / 32) ? slots[warp] : 0;
      kept += slots[warp];
    }
    if (stays) list[before] = candidate;
    __syncthreads();  // slots are written again
  }
  return kept;
}

__global__ void __launch_bounds__(kListThreads) scan_trim(TrimParams p) {
  simt::Smem smem;
  int32_t* const slots = smem.take<int32_t>(kListThreads / 32);
  const int64_t i = blockIdx.x;
  const ListStates& s = p.states;
  Candidate* const list = p.lists.of(i);
  const int32_t count = s.counts[i];
  const bool fits = count <= p.lists.capacity;
  if ((p.pass == Pass::again || p.pass == Pass::piece) && !s.pending[i]) return;

  // 1. the floor
  const double old = s.floor[i];
  const double bound = kth_bound(list, fits ? count : int32_t(p.lists.capacity), p.lists.k, slots);
  const double floor = bound > old ? bound : old;

  // 2. what stays
  const int32_t kept = drop_below(floor, list, fits && p.pass != Pass::seeds ? count : s.kept[i], slots);
  __syncthreads();  // all have read the state that changes now
  if (threadIdx.x > 0) return;
  s.floor[i] = floor;
  s.counts[i] = s.kept[i] = kept;
  if (p.pass == Pass::first || p.pass == Pass::again) s.pending[i] = !fits;
  if (!fits && p.pass != Pass::seeds) atomicAdd(p.totals, 1);
  if (kept > p.most) atomicAdd(p.totals + 1, 1);
}

__global__ void __launch_bounds__(kListThreads) scan_limits(LimitParams p) {
  const int64_t i = int64_t(blockIdx.x) * kListThreads + threadIdx.x;
  if (i >= p.queries) return;
  const ListStates& s = p.states;
  s.limit[i] = p.pending && !s.pending[i] ? float(kInfinity) : rounded_down(s.floor[i]);
  if (!p.pending) s.pending[i] = 0;
}

}  // namespace
}  // namespace graceful_fast
