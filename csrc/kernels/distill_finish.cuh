// distill, between the passes: parts of rows -> parts of whole rows -> losses and statistics -> one loss. Numbers are
// few and float64; the order of every sum is fixed.
//
// A warp takes a row: each lane merges an equal run of shards, one after the other, then lanes merge in a tree. The
// last kernel is one block over the rows' losses.
//   bytes = parts in + per row: 8 (target), 8 (weight, if given), sizeof(RowStatistics) and 8 out, and 16 in and out
//   (the mean's divisor goes into the statistics)
#pragma once
#include "kernels/distill.h"
#include "kernels/reduce.cuh"

namespace graceful_fast {
namespace {

constexpr int kFinishThreads = 128;
constexpr int kFinishBlocks = 3;     // on a processor, at least: 168 registers a thread, of which two parts are 88
constexpr int kReduceThreads = 256;  // one block: 4,096 rows are 16 a thread

__device__ inline RowPart part_of_lane(const RowPart& part, int lane) {
  double fields[kRowPart];
  memcpy(fields, &part, sizeof part);
#pragma unroll
  for (double& field : fields) field = __shfl_sync(kAllLanes, field, lane);
  RowPart other;
  memcpy(&other, fields, sizeof other);
  return other;
}

// The row's part, on lane 0. All lanes take part.
__device__ inline RowPart merged_row(const DistillMerge& p, int64_t i) {
  const int64_t lane = threadIdx.x % kWarp, share = (p.shards + kWarp - 1) / kWarp;
  RowPart part;
  const auto* const parts = reinterpret_cast<const RowPart*>(p.parts);
  for (int64_t s = lane * share; s < (lane + 1) * share && s < p.shards; ++s) {
    const RowPart other = parts[s * p.rows + i];
    part.merge(other, p.temperature);
  }
  for (int step = 1; step < int(kWarp) && p.shards > 1; step *= 2) {
    const RowPart other = part_of_lane(part, int(lane) + step);
    if (lane % (2 * step) == 0) part.merge(other, p.temperature);
  }
  return part;
}

__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks) distill_merge(DistillMerge p, double* merged) {
  const int64_t i = int64_t(blockIdx.x) * (kFinishThreads / kWarp) + threadIdx.x / kWarp;
  if (i >= p.rows) return;
  const RowPart part = merged_row(p, i);
  if (threadIdx.x % kWarp != 0) return;
  RowPart whole;
  if (p.before) whole = reinterpret_cast<const RowPart*>(p.before)[i];
  whole.merge(part, p.temperature);
  reinterpret_cast<RowPart*>(merged)[i] = whole;
}

__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks) distill_finish(DistillFinish p) {
  const int64_t i = int64_t(blockIdx.x) * (kFinishThreads / kWarp) + threadIdx.x / kWarp;
  if (i >= p.merge.rows) return;
  const RowPart part = merged_row(p.merge, i);
  if (threadIdx.x % kWarp != 0) return;
  const int64_t y = p.target[i];
  RowStatistics statistics{};
  double loss = 0;
  if (y != p.ignore_index) {
    loss = finish_row(part, p.rule, p.weight ? p.weight[i] : 0, statistics);
    if (y < 0 || double(y) >= p.rule.classes) loss = statistics.cross_entropy = NAN;  // and so is the row's gradient
  }
  reinterpret_cast<RowStatistics*>(p.statistics)[i] = statistics;
  if (p.reduction != Reduction::none) {
    p.losses[i] = loss;
  } else if (p.wide) {
    static_cast<double*>(p.loss)[i] = loss;
  } else {
    static_cast<float*>(p.loss)[i] = float(loss);
  }
}

__global__ void __launch_bounds__(kReduceThreads) distill_reduce(DistillFinish p) {
  simt::Smem smem;
  double* shared = smem.take<double>(kReduceThreads / kWarp);
  double total = 0, counted = 0;
  for (int64_t i = threadIdx.x; i < p.merge.rows; i += kReduceThreads) {
    total += p.losses[i];
    counted += p.target[i] != p.ignore_index;
  }
  total = block_reduce<Add>(total, shared);
  counted = block_reduce<Add>(counted, shared);
  const double count = p.reduction == Reduction::mean && counted > 0 ? counted : 1;
  for (int64_t i = threadIdx.x; i < p.merge.rows && count != 1; i += kReduceThreads) {
    auto& row = reinterpret_cast<RowStatistics*>(p.statistics)[i];
    row.cross_entropy /= count, row.distillation /= count;
  }
  if (threadIdx.x != 0) return;
  if (p.wide) {
    *static_cast<double*>(p.loss) = total / count;
  } else {
    *static_cast<float*>(p.loss) = float(total / count);
  }
}

// A thread for each new column: it looks for itself among those that have an old one.
__global__ void __launch_bounds__(kFinishThreads) distill_columns(const int64_t* new_column, const int64_t* old_column,
                                                                  int64_t pairs, int64_t columns, int64_t* out) {
  const int64_t j = int64_t(blockIdx.x) * kFinishThreads + threadIdx.x;
  if (j >= columns) return;
  int64_t begin = 0, end = pairs;  // the first pair of this column or a later one is in begin..end
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (new_column[middle] < j) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  out[j] = begin < pairs && new_column[begin] == j ? old_column[begin] : -1;
}

}  // namespace
}  // namespace graceful_fast
