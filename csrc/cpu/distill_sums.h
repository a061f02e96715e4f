// distill forward, one row's softmax and divergence block by block: maxima, frames that follow them, sums in those
// frames.
#pragma once
#include <algorithm>
#include <cmath>

#include "cpu/distill_row.h"

namespace graceful_fast {
namespace {

template <class S>
S finite_or_0(S x) {
  return x - x == 0 ? x : 0;
}

// The range of a block of both logits.
struct Extremes {
  double new_min, new_max, old_min, old_max;
};
template <class V, class In, class S>
Extremes extremes(const In* s, const In* t, int n, S* new_wide, S* old_wide) {
  V s_max = splat<V>(-kInfinity), s_min = -s_max, t_max = s_max, t_min = s_min;
  for_vectors<V>(n, [&](int j, auto whole) {
    const V sj = get<V, whole>(s, j, n, new_wide), tj = get<V, whole>(t, j, n, old_wide);
    s_max = larger(sj, s_max), s_min = smaller(sj, s_min);
    t_max = larger(tj, t_max), t_min = smaller(tj, t_min);
  });
  return {fold_min(s_min), fold_max(s_max), fold_min(t_min), fold_max(t_max)};
}

// The range of s - t. Bases near the logits keep its digits.
struct Differences {
  double min, max;
};
template <class V, class S>
Differences differences(const S* s, const S* t, int n) {
  const S new_base = finite_or_0(s[0]), old_base = finite_or_0(t[0]);
  V d_min = splat<V>(kInfinity), d_max = -d_min;
  for_vectors<V>(n, [&](int j, auto whole) {
    const V difference = (get<V, whole>(s, j, n) - new_base) - (get<V, whole>(t, j, n) - old_base);
    d_min = smaller(difference, d_min), d_max = larger(difference, d_max);
  });
  const double base = double(new_base) - old_base;
  return {fold_min(d_min) + base, fold_max(d_max) + base};
}

template <class V, class In, class S = In>
double block_max(const In* s, int n, S* wide = nullptr) {
  V s_max = splat<V>(-kInfinity);
  for_vectors<V>(n, [&](int j, auto whole) { s_max = larger(get<V, whole>(s, j, n, wide), s_max); });
  return fold_max(s_max);
}

// About the mean of s - t under the old model, and which rounding of d suits it: from the block's first classes, and
// from its greatest old logit where that has most of the mass. Infinite differences are left out.
struct Placement {
  double shift;
  Rounding rounding;
};
template <class V, class S>
Placement place(const S* s, const S* t, int n, double block_old_max, S inverse) {
  const int probe = std::min(n, kProbe);
  int64_t b = 0;  // a class that both models have, near the mass where the first is none
  if (!(s[0] - s[0] == 0 && t[0] - t[0] == 0)) {
    b = std::find(t, t + n, S(block_old_max)) - t;
    if (b == n || !(s[b] - s[b] == 0)) b = 0;
  }
  const S new_base = finite_or_0(s[b]), old_base = finite_or_0(t[b]), old_max = finite_or_0(S(block_old_max));
  V sum{}, squares{}, spread{}, mass{};
  for_vectors<V>(probe, [&](int j, auto whole) {
    const V tj = get<V, whole>(t, j, probe), below = tj - old_max;
    const V difference = (get<V, whole>(s, j, probe) - new_base) - (tj - old_base);
    const V w = kept<V, whole>(difference - difference == V{} ? exponential(below * inverse) : V{}, j, probe);
    const V weighted = w > V{} ? w * difference : V{};
    sum += weighted, squares += w > V{} ? weighted * difference : V{};
    spread += w > V{} ? -w * below : V{};
    mass += w;
  });
  const auto total_of = [](V lanes) {
    Sum<V> all;
    all.add(lanes);
    return all.value();
  };
  const double share = double(n) / probe, base = double(new_base) - old_base;
  double total = total_of(sum) * share, weight = total_of(mass) * share;
  double mean = weight > 0 ? total / weight : 0;
  const double deviation = weight > 0 ? std::sqrt(std::max(0.0, total_of(squares) * share / weight - mean * mean)) : 0;
  if (n > probe && weight < kFewClasses) {
    const int64_t at = std::find(t, t + n, S(block_old_max)) - t;
    const double difference = at < n ? (double(s[at]) - new_base) - (double(t[at]) - old_base) : kInfinity;
    if (std::isfinite(difference)) mean = (total + difference) / (weight + 1), weight += 1;
  }
  const double shift = base + mean;
  const bool moderate = inverse >= 1 / kPlain && inverse <= kPlain;
  if (moderate && std::fabs(shift) <= 2 * deviation) return {shift, Rounding::plain};
  return {shift, std::fabs(shift) * weight <= total_of(spread) * share ? Rounding::direct : Rounding::framed};
}

// Adds the exponentials of a block to a softmax whose frame is at least their maximum. Only classes at the frame need
// to be told from the others. next: what will be read after the block, to be fetched meanwhile.
template <class V, bool at_frame, class S, class In>
void add_exponentials(const S* s, int n, const In* next, Softmax& softmax) {
  Sum<V> rest, ones;
  V rest_part{}, ones_part{};
  const S frame = S(softmax.frame == -kInfinity ? 0 : softmax.frame);
  for_vectors<V>(
      n,
      [&](int j, auto whole) {
        __builtin_prefetch(next + j);
        const V shifted = get<V, whole>(s, j, n) - frame;
        const V e = exponential(shifted);
        if constexpr (at_frame) {
          const V one = shifted == V{} ? V{} + S(1) : V{};
          rest_part += kept<V, whole>(e - one, j, n);  // e is exactly 1 there
          ones_part += kept<V, whole>(one, j, n);
        } else {
          rest_part += kept<V, whole>(e, j, n);
        }
      },
      [&] {
        rest.add(rest_part);
        rest_part = V{};
      });
  softmax.rest += rest.value();
  if constexpr (at_frame) {
    ones.add(ones_part);
    softmax.ones += ones.value();
  }
}
template <class V, class S, class In>
void add_exponentials(const S* s, int n, const In* next, double block_max, Softmax& softmax) {
  softmax.move(block_max);
  if (block_max == softmax.frame || block_max == -kInfinity) return add_exponentials<V, true>(s, n, next, softmax);
  add_exponentials<V, false>(s, n, next, softmax);
}

// The divergence's sums of one block, in given frames.
template <class Formula, class V, class S, class In>
void add_divergence(const S* s, const S* t, int n, const In* next, S inverse, Divergence& divergence) {
  constexpr Path path = Formula::path;
  const Frames<S> frames(0, divergence.new_frame, divergence.old_frame, inverse);
  const S unit_of_d = unit<Formula>(inverse);
  const SmallExponential<S> small_exponential(1, unit_of_d);
  const SmallGrowth<S, path == Path::calm> small_growth(unit_of_d);
  Sum<V> k, m, x, v;
  V k_part{}, m_part{}, x_part{}, v_part{};
  for_vectors<V>(
      n,
      [&](int j, auto whole) {
        const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
        __builtin_prefetch(next + j);
        const auto [u, d] = exponents<Formula>(sj, tj, frames);
        const V w = kept<V, whole>(path == Path::calm ? small_exponential(u) : exponential(u), j, n);
        k_part += w;
        if constexpr (path != Path::far) {
          m_part += w * d;
          x_part = small_growth.add_bent(w, d, x_part);
        } else {
          const V infinity = splat<V>(kInfinity);
          const V v = kept<V, whole>(exponential((sj - frames.new_frame) * frames.inverse), j, n);
          // No old mass: no term, whatever d is. A new -inf under old mass, however small: an infinite divergence.
          const V wd = kept<V, whole>(u == -infinity ? V{} : d == -infinity ? -infinity : w * d, j, n);
          const V size = d < V{} ? -d : d;
          m_part += wd;
          x_part += size <= splat<V>(kSmall) ? small_growth.add_bent(w, d, V{}) : (v - w) - wd;
          v_part += v;
        }
      },
      [&] {
        k.add(k_part), m.add(m_part), x.add(x_part);
        k_part = m_part = x_part = V{};
        if constexpr (path == Path::far) {
          v.add(v_part);
          v_part = V{};
        }
      });
  const double block_k = k.value(), block_m = m.value() * unit_of_d, block_x = x.value();
  divergence.k += block_k, divergence.m += block_m, divergence.x += block_x;
  divergence.v += path == Path::far ? v.value() : block_k + block_m + block_x;
}

// The divergence of one row, block by block: its frames follow the maxima, its formulas the range of d.
template <class V>
struct KlRow {
  using S = ScalarOf<V>;
  const S inverse;
  const double temperature = 1 / double(inverse);  // what the vectors divide by
  Divergence sums{};
  Placement placement{0, Rounding::framed};
  double placed_at = -kInfinity;  // old maximum when the frames were placed
  double new_max = -kInfinity, old_max = -kInfinity, old_min = kInfinity;
  double difference_min = kInfinity, difference_max = -kInfinity;
  bool far = false;

  template <class In>
  void add(const S* s, const S* t, int n, const In* next, const Extremes& block) {
    new_max = std::max(new_max, block.new_max);
    old_max = std::max(old_max, block.old_max);
    old_min = std::min(old_min, block.old_min);
    const double old_to = old_max == -kInfinity ? 0 : old_max;
    if (!(old_to - placed_at <= temperature)) {  // never placed, or most of the mass is in this block
      placement = place<V>(s, t, n, block.old_max, inverse);
      placed_at = old_max;
    }
    move(old_to);
    // For all classes so far: the frames of the last block are the row's. Bounds of the differences come for free, and
    // do at large temperatures; the differences themselves are looked at where they can still change the formulas.
    Differences range{block.new_min - block.old_max, block.new_max - block.old_min};
    Path path = path_with(range);
    if (path != Path::calm && !far) {
      range = differences<V>(s, t, n);
      path = path_with(range);
    }
    difference_min = std::min(difference_min, range.min);
    difference_max = std::max(difference_max, range.max);
    far = path == Path::far;
    with_formula(path, placement.rounding,
                 [&](auto formula) { add_divergence<decltype(formula), V>(s, t, n, next, inverse, sums); });
  }

  Path path_with(const Differences& range) const {
    return choose_path(std::min(difference_min, range.min), std::max(difference_max, range.max), old_min,
                       sums.new_frame, sums.old_frame, temperature);
  }

  void move(double old_to) {
    const double top = new_max == -kInfinity ? old_to : new_max, reach = kMaxExponent * temperature;
    const double new_to = S(std::clamp(old_to + placement.shift, top - reach, top + reach));
    if (sums.empty()) {
      sums.new_frame = new_to, sums.old_frame = old_to;
    } else {
      sums.move(new_to, old_to, temperature);
    }
  }

  void to(RowPart& part) const {
    part.divergence = sums;
    part.rounding = int(placement.rounding);
    part.old_max = old_max, part.old_min = old_min;
    part.difference_min = difference_min, part.difference_max = difference_max;
  }
};

}  // namespace
}  // namespace graceful_fast
