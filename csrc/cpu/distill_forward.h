// distill forward: the statistics of a row, in blocks that stay in L1. The block's maxima first, then its sums in a
// frame at the running maxima, then the sums merge: memory is read once.
#pragma once
#include <algorithm>
#include <cmath>

#include "cpu/distill.h"
#include "cpu/distill_row.h"
#include "cpu/distill_sums.h"

namespace graceful_fast {
namespace {

// The greatest logit and the first block that has it; the first of equal classes wins.
struct Winner {
  double max = -kInfinity;
  int64_t block = 0;

  void see(double block_max, int64_t start) {
    if (block_max > max) max = block_max, block = start;
  }
  template <class S>
  bool is(const Row<S>& row, int64_t target) const {
    if (max == -kInfinity) return target == 0;
    if (row[target] != max || target - block >= kBlock) return false;  // a later block: this one has the first
    S buffer[kBlock];
    const int n = int(target - block);
    const S* before = row.block(block, n, buffer);
    int ties = 0;
    for (int j = 0; j < n; ++j) ties += before[j] == S(max);
    return ties == 0;
  }
};

// Half the sum of squared differences over the classes with a finite old logit, and their number.
struct Squares {
  double sum = 0, count = 0;
};
template <class V, class S>
void add_squares(const S* s, const S* t, int n, Squares& squares) {
  Sum<V> sum, count;
  V sum_part{}, count_part{};
  const V infinity = splat<V>(kInfinity);
  for_vectors<V>(
      n,
      [&](int j, auto whole) {
        const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n), difference = sj - tj;
        sum_part += kept<V, whole>(tj == -infinity ? V{} : difference * difference * S(0.5), j, n);
        count_part += kept<V, whole>(tj == -infinity ? V{} : V{} + S(1), j, n);
      },
      [&] {
        sum.add(sum_part), count.add(count_part);
        sum_part = count_part = V{};
      });
  squares.sum += sum.value();
  squares.count += count.value();
}

// Sum of s - shift of one block, for label smoothing.
template <class V, class S>
double shifted_sum(const S* s, int n, S shift) {
  Sum<V> sum;
  V part{};
  for_vectors<V>(
      n, [&](int j, auto whole) { part += kept<V, whole>(get<V, whole>(s, j, n) - shift, j, n); },
      [&] {
        sum.add(part);
        part = V{};
      });
  return sum.value();
}

double focal_weight(const DistillForward& params, int64_t i, bool old_correct, bool new_correct) {
  switch (params.focus) {
    case Focus::old_correct:
      return params.alpha + params.beta * old_correct;
    case Focus::negative_flip:
      return params.alpha + params.beta * (old_correct && !new_correct);
    case Focus::new_incorrect:
      return params.alpha + params.beta * !new_correct;
    case Focus::weight:
      return params.weight[i];
    default:
      return 1;
  }
}

template <class V>
void forward_row(const DistillForward& params, int64_t i) {
  using S = ScalarOf<V>;
  auto& out = reinterpret_cast<RowStatistics*>(params.statistics)[i];
  out = {};
  params.cross_entropy[i] = params.divergence[i] = 0;
  const int64_t target = params.target[i];
  if (target == params.ignore_index) return;

  const int64_t classes = params.new_logits.columns;
  const int64_t shared = target < params.old_logits.columns ? params.old_logits.columns : 0;
  const Row<S> new_row(params.new_logits, i), old_row(params.old_logits, i);
  const bool kl = params.kind == DivergenceKind::kl;
  Softmax softmax;
  KlRow<V> divergence{S(1 / params.temperature)};
  Squares squares;
  Winner new_winner, old_winner;
  double total = 0;
  S new_buffer[kBlock], old_buffer[kBlock];

  for (int64_t start = 0; start < classes;) {
    const bool both = start < shared;
    const int n = int(std::min<int64_t>(kBlock, (both ? shared : classes) - start));
    const S* s = new_row.block(start, n, new_buffer);
    if (both) {
      const S* t = old_row.block(start, n, old_buffer);
      const S new_base = finite_or_0(s[0]), old_base = finite_or_0(t[0]);
      const Extremes block = extremes<V>(s, t, n, new_base, old_base);
      new_winner.see(block.new_max, start);
      old_winner.see(block.old_max, start);
      softmax.move(block.new_max);
      if (kl) {
        divergence.add(s, t, n, block, new_base, old_base, softmax);
      } else {
        sum_block<V>(s, n, softmax);
        add_squares<V>(s, t, n, squares);
      }
    } else {
      const double max = block_max<V>(s, n);
      new_winner.see(max, start);
      softmax.move(max);
      sum_block<V>(s, n, softmax);
    }
    if (params.label_smoothing != 0) {
      const S shift = S(softmax.frame == -kInfinity ? 0 : softmax.frame);
      total += shifted_sum<V>(s, n, shift) + double(n) * shift;
    }
    start += n;
  }

  const double frame = softmax.frame;
  double cross_entropy = std::log1p(softmax.excess()) - (new_row[target] - frame);
  if (params.label_smoothing != 0 && cross_entropy != kInfinity) {  // the uniform part is as infinite as the target's
    const double uniform = std::log1p(softmax.excess()) - (total / double(classes) - frame);
    cross_entropy += params.label_smoothing * (uniform - cross_entropy);
  }
  double weight = 0, value = 0;
  if (shared > 0) {
    const bool by_old = params.focus == Focus::old_correct || params.focus == Focus::negative_flip;
    const bool by_new = params.focus == Focus::negative_flip || params.focus == Focus::new_incorrect;
    const bool old_correct = by_old && old_winner.is(old_row, target);
    weight = focal_weight(params, i, old_correct, by_new && new_winner.is(new_row, target));
    value = kl                  ? divergence.temperature * divergence.temperature * divergence.sums.kl()
            : squares.count > 0 ? squares.sum / squares.count
                                : 0;
  }
  params.cross_entropy[i] = cross_entropy;
  params.divergence[i] = weight == 0 ? 0 : weight * value;
  out.new_max = frame;
  out.new_excess = softmax.excess();
  out.cross_entropy = 1;
  out.old_sum = kl ? divergence.sums.k : squares.count;
  if (out.old_sum == 0) return;
  out.distillation = weight;
  if (!kl) return;
  out.new_frame = divergence.sums.new_frame;
  out.old_frame = divergence.sums.old_frame;
  out.new_sum = divergence.sums.v;
  out.ratio_minus_1 = divergence.sums.ratio_minus_1();
  out.path = encode(divergence.path, divergence.placement.rounding);
}

}  // namespace
}  // namespace graceful_fast
