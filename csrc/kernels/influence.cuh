// influence: a block of classes of an online softmax, in place over the block's products.
//
// A block of threads takes a row: the products once for their maximum, then again for the exponentials, which it
// writes. A row of up to 4,096 numbers (2,048 of float64) waits in registers in between; a longer one is read twice,
// the second time from the L2 cache, where the product has left it. Sums are float32 within 16 classes, then float64,
// in a fixed order.
//   bytes = logits in and out (a row that does not fit: in twice) + per row: factor and bias (as often as the logits
//   are read), 8 (target), 16 in and out (statistics), shrink
#pragma once
#include "kernels/influence.h"
#include "kernels/reduce.cuh"
#include "kernels/rows.cuh"

namespace graceful_fast {
namespace {

constexpr int kInfluenceThreads = 256;
template <class S>
constexpr int kInfluenceGroups = 8 / int(sizeof(S));  // of 8 neighbours, that a thread holds
template <class S>
constexpr int64_t kInfluenceHeld = int64_t(kInfluenceThreads) * kGroup * kInfluenceGroups<S>;

__device__ inline float influence_exp(float x) { return expf(x); }
__device__ inline double influence_exp(double x) { return exp(x); }

// A row of the block, as this thread sees it.
template <class S>
struct InfluenceRow {
  Row<S, S> products, factor, bias;
  int64_t target;  // column

  __device__ static Row<S, S> of_each_class(const void* vector, const InfluenceParams& p) {
    return Row<S, S>({vector, 0, 1, p.classes, p.type}, 0, p.classes);
  }
  __device__ InfluenceRow(const InfluenceParams& p, int64_t i)
      : products({p.logits, p.classes, p.rows, p.classes, p.type}, i, p.classes),
        factor(of_each_class(p.factor, p)),
        bias(of_each_class(p.bias, p)),
        target(p.target[i] - p.first_class) {}

  // Logits of a group; -inf for the target's class and past the row.
  __device__ void load(int64_t first, S (&logit)[kGroup]) const {
    products.load(first, S(-INFINITY), logit);
    if (factor.data) {
      S f[kGroup];
      factor.load(first, S(1), f);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) logit[e] *= f[e];
    }
    if (bias.data) {
      S b[kGroup];
      bias.load(first, S(0), b);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) logit[e] += b[e];
    }
#pragma unroll
    for (int e = 0; e < kGroup; ++e) logit[e] = first + e == target ? S(-INFINITY) : logit[e];
  }
  // logit -> factor * exp(logit - top), written; returns the sum without the factors
  __device__ S finish(int64_t first, S top, S (&logit)[kGroup], S* out) const {
    S sum = 0;
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      logit[e] = influence_exp(logit[e] - top);
      sum += logit[e];
    }
    if (factor.data) {
      S f[kGroup];
      factor.load(first, S(1), f);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) logit[e] *= f[e];
    }
    store(out, first, products.count, logit);
    return sum;
  }
};

template <class S, bool held>
__global__ void __launch_bounds__(kInfluenceThreads) influence(InfluenceParams p) {
  simt::Smem smem;
  double* const shared = smem.take<double>(kInfluenceThreads / kWarp);
  const int64_t i = blockIdx.x;
  const InfluenceRow<S> row(p, i);
  S* const out = static_cast<S*>(p.logits) + i * p.classes;
  const int64_t start = int64_t(threadIdx.x) * kGroup - row.products.misplaced();
  constexpr int64_t kStep = int64_t(kInfluenceThreads) * kGroup;
  constexpr int kGroups = held ? kInfluenceGroups<S> + 1 : 1;  // one more: the row's misplacement
  S logit[kGroups][kGroup];

  // 1. raise the top
  S highest = -INFINITY;
  const auto see = [&](const S(&x)[kGroup]) {
#pragma unroll
    for (int e = 0; e < kGroup; ++e) highest = Larger()(highest, x[e]);
  };
  if constexpr (held) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) row.load(start + g * kStep, logit[g]), see(logit[g]);
  } else {
    for (int64_t first = start; first < p.classes; first += kStep) row.load(first, logit[0]), see(logit[0]);
  }
  const double before = p.statistics[2 * i], own = block_reduce<Larger>(double(highest), shared);
  const double top = own > before ? own : before;

  // 2. exponentials, in place of the products
  double sum = 0;
  if constexpr (held) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) sum += double(row.finish(start + g * kStep, S(top), logit[g], out));
  } else {
    for (int64_t first = start; first < p.classes; first += kStep) {
      row.load(first, logit[0]);
      sum += double(row.finish(first, S(top), logit[0], out));
    }
  }
  sum = block_reduce<Add>(sum, shared);
  if (threadIdx.x != 0) return;
  const double shrink = exp(before - top);
  p.statistics[2 * i] = top;
  p.statistics[2 * i + 1] = p.statistics[2 * i + 1] * shrink + sum;
  static_cast<S*>(p.shrink)[i] = S(shrink);
}

}  // namespace
}  // namespace graceful_fast
