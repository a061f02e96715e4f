// flips: which samples a model gets right. A row is right at k when fewer than k scores are better than the target's,
// where "better" is greater, or equal at a smaller class; bit 0 of its byte then, bit 2 if it has a NaN (bits 1 and 3
// for the new model).
//
// A warp counts a row's better scores (the whole block where rows are long). Each model's scores are read once, the
// byte is written by the launch for the old model and read and written by that for the new one:
//   bytes = scores of both models + per row: 3 (the byte) + 2 * 8 (target) + 2 elements (the targets' scores)
#pragma once
#include "kernels/flips.h"
#include "kernels/reduce.cuh"
#include "kernels/rows.cuh"

namespace graceful_fast {

namespace {

constexpr int kFlipsThreads = 128;  // 4 warps: a row each, or a block's share of a long one

template <class T>
__global__ void __launch_bounds__(kFlipsThreads) flips(FlipsParams p, bool whole_block) {
  using S = decltype(widen(T{}));
  simt::Smem smem;
  int64_t* shared = smem.take<int64_t>(kFlipsThreads / kWarp);
  const int threads = whole_block ? kFlipsThreads : kWarp, member = threadIdx.x % threads;
  const int64_t i = int64_t(blockIdx.x) * (kFlipsThreads / threads) + threadIdx.x / threads;
  const int64_t n = p.scores.columns, y = i < p.scores.rows ? p.target[i] : 0;
  const bool a_class = y >= 0 && y < p.classes, known = a_class && y < n;
  int64_t better = 0, nan = 0;
  if (i < p.scores.rows) {
    const Row<T, S> row(p.scores, i, n);
    const S own = row[known ? y : 0];
    for (int64_t first = int64_t(member) * kGroup - row.misplaced(); first < n; first += threads * kGroup) {
      S score[kGroup];
      row.load(first, -INFINITY, score);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) {
        const bool there = first + e >= 0 && first + e < n;
        better += there && (score[e] > own || (score[e] == own && first + e < y));
        nan += score[e] != score[e];
      }
    }
  }
  better = whole_block ? block_reduce<Add>(better, shared) : warp_reduce<Add>(better);
  nan = whole_block ? block_reduce<Add>(nan, shared) : warp_reduce<Add>(nan);
  if (member != 0 || i >= p.scores.rows) return;
  const unsigned bits = unsigned(known && better < p.topk) | unsigned(nan != 0) << 2;
  p.outcome[i] = uint8_t(p.bit == 0 ? bits : p.outcome[i] | bits << 1);
  if (p.bit == 0 && !a_class) atomicMin(p.status, static_cast<unsigned long long>(i));
}

}  // namespace
}  // namespace graceful_fast
