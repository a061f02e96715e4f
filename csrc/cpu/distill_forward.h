// distill forward: a row's part of the statistics, in blocks of classes that stay in L1. The block's maxima first, and
// its numbers widened, then its sums in a frame at the running maxima, then the sums merge: memory is read once.
#pragma once
#include <algorithm>
#include <cmath>

#include "cpu/distill.h"
#include "cpu/distill_row.h"
#include "cpu/distill_sums.h"

namespace graceful_fast {
namespace {

// (|s - t| - margin, at least 0)^2 over the classes with a finite old logit, and their number.
template <class V, class S>
void add_squares(const S* s, const S* t, int n, S margin, RowPart& part) {
  Sum<V> sum, count;
  V sum_part{}, count_part{};
  const V infinity = splat<V>(kInfinity);
  for_vectors<V>(
      n,
      [&](int j, auto whole) {
        const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
        const V size = beyond_margin(sj - tj, margin);
        sum_part += kept<V, whole>(tj == -infinity ? V{} : size * size, j, n);
        count_part += kept<V, whole>(tj == -infinity ? V{} : V{} + S(1), j, n);
      },
      [&] {
        sum.add(sum_part), count.add(count_part);
        sum_part = count_part = V{};
      });
  part.squares += sum.value();
  part.compared += count.value();
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

// Raises the greatest logit before the target, n being the classes of the block before it. A target below the block's
// maximum is no argmax whatever stands before it.
template <class V, class S>
void see_before(const S* block, int n, int64_t target_at, double max, double& before) {
  if (target_at < 0) return;  // the target is in an earlier block, or not among these classes
  if (target_at >= n) return RowPart::raise(before, max);
  if (target_at > 0 && !(double(block[target_at]) < max)) {
    RowPart::raise(before, block_max<V>(block, int(target_at)));
  }
}

// ldi without the target: there the new logit is the old one's, too. One that is -inf is counted here.
template <class S>
const S* without_target(const S* s, const S* t, int n, int64_t target_at, RowPart& part, S* copy) {
  if (t[target_at] == -kInfinity) return t;  // it is not compared anyway
  std::copy(t, t + n, copy);
  copy[target_at] = s[target_at];
  part.compared += s[target_at] == -kInfinity;
  return copy;
}

// One row while its classes are walked over. In: what is read, V's number or, if both logits are of it, a half type.
template <class V, class In>
struct ForwardRow {
  using S = ScalarOf<V>;
  const DistillRows& rows;
  RowPart part{};
  KlRow<V> divergence{S(1 / rows.temperature)};
  In new_buffer[kBlock], old_buffer[kBlock];
  S new_wide[kBlock], old_wide[kBlock], without[kBlock];

  explicit ForwardRow(const DistillRows& rows) : rows(rows) {}  // leaves the buffers as they are

  // What the first pass over a block, which leaves its numbers in `wide`, has it read by the others.
  static const S* widened(const In* block, const S* wide) {
    if constexpr (std::is_same_v<In, S>) {
      return block;
    } else {
      return wide;
    }
  }

  // The distance of classes that both models know. target_at: the target's place among them, or where it would be.
  void compare(const S* s, const S* t, int n, const In* next, const Extremes& block, int64_t target_at) {
    see_before<V>(t, n, target_at, block.old_max, part.old_before);
    if (rows.kind == DivergenceKind::kl) return divergence.add(s, t, n, next, block);
    part.old_max = std::max(part.old_max, block.old_max);
    if (rows.exclude_target && part.known != 0 && target_at >= 0 && target_at < n) {
      t = without_target(s, t, n, target_at, part, without);
    }
    add_squares<V>(s, t, n, S(rows.margin), part);
  }

  // The cross-entropy's part of a block.
  void add(const S* s, int n, const In* next, double max, int64_t target_at, bool with_total) {
    add_exponentials<V>(s, n, next, max, part.softmax);
    see_before<V>(s, n, target_at, max, part.new_before);
    if (!with_total) return;
    const S shift = S(part.softmax.frame == -kInfinity ? 0 : part.softmax.frame);
    part.total += shifted_sum<V>(s, n, shift) + double(n) * shift;
  }
};

template <class V, class In>
void accumulate_row(const DistillAccumulate& params, int64_t i) {
  using S = ScalarOf<V>;
  const DistillRows& rows = params.rows;
  if (rows.target[i] == rows.ignore_index) return;
  const int64_t columns = rows.new_logits.columns, column = rows.target[i] - rows.first_class;
  const bool here = column >= 0 && column < columns;
  const Row<In> new_row(rows.new_logits, i), old_row(rows.old_logits, i);
  Pairs pairs(rows);
  const int64_t old_column = here ? pairs.old_column(column) : -1;
  const bool compared = !here || old_column >= 0;  // a target that the old model never knew: no distillation
  ForwardRow<V, In> row(rows);
  RowPart& part = row.part;
  if (here) part.new_target = new_row[column];
  if (old_column >= 0) part.known = 1, part.old_target = old_row[old_column];

  for (int64_t start = 0; start < columns;) {
    const int n = pairs.block(start);
    const In* new_block = new_row.block(start, n, row.new_buffer);
    const S* s = row.widened(new_block, row.new_wide);
    const auto shared = compared ? pairs.in(start, n) : Pairs::Range{0, 0};
    const auto compare = [&](const In* with_new, const In* with_old, const Extremes& block, int64_t target_at) {
      row.compare(row.widened(with_new, row.new_wide), row.widened(with_old, row.old_wide), shared.n,
                  with_old + shared.n, block, target_at);
    };
    if (shared.n == 0 || rows.new_column) {
      const double max = block_max<V>(new_block, n, row.new_wide);
      row.add(s, n, new_block + n, max, column - start, params.with_total);
    } else {
      const In* old_block = old_row.block(start, n, row.old_buffer);
      const Extremes block = extremes<V>(new_block, old_block, n, row.new_wide, row.old_wide);
      row.add(s, n, new_block + n, block.new_max, column - start, params.with_total);
      compare(new_block, old_block, block, column - start);
    }
    if (shared.n > 0 && rows.new_column) {
      pairs.gather(new_row, rows.new_column, shared, row.new_buffer);
      pairs.gather(old_row, rows.old_column, shared, row.old_buffer);
      const Extremes block = extremes<V>(row.new_buffer, row.old_buffer, shared.n, row.new_wide, row.old_wide);
      compare(row.new_buffer, row.old_buffer, block, pairs.before(column) - shared.begin);
    }
    start += n;
  }
  if (rows.kind == DivergenceKind::kl) row.divergence.to(part);
  reinterpret_cast<RowPart*>(params.parts)[i].merge(part, row.divergence.temperature);
}

}  // namespace
}  // namespace graceful_fast
