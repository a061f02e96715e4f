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

// Maxima of a block of both logits, and the range of (s - new_base) - (t - old_base): bases near the logits keep its
// digits.
struct Extremes {
  double new_max, old_max, old_min, difference_min, difference_max, difference_at_old_max;
};
template <class V, class S>
Extremes extremes(const S* s, const S* t, int n, S new_base, S old_base) {
  V s_max = splat<V>(-kInfinity), t_max = s_max, t_min = -s_max, d_min = -s_max, d_max = s_max, d_at{};
  for_vectors<V>(n, [&](int j, auto whole) {
    const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
    const V difference = (sj - new_base) - (tj - old_base);
    s_max = larger(sj, s_max), t_min = smaller(tj, t_min);
    d_at = tj > t_max ? difference : d_at, t_max = larger(tj, t_max);
    d_min = smaller(difference, d_min), d_max = larger(difference, d_max);
  });
  S maxima[kLanes<V>], differences[kLanes<V>];
  store(maxima, t_max), store(differences, d_at);
  const int lane = int(std::max_element(maxima, maxima + kLanes<V>) - maxima);
  return {fold_max(s_max), maxima[lane], fold_min(t_min), fold_min(d_min), fold_max(d_max), differences[lane]};
}

template <class V, class S>
double block_max(const S* s, int n) {
  V s_max = splat<V>(-kInfinity);
  for_vectors<V>(n, [&](int j, auto whole) { s_max = larger(get<V, whole>(s, j, n), s_max); });
  return fold_max(s_max);
}

// About the mean of s - t under the old model, and which rounding of d suits it: from the block's first classes and
// from its greatest old logit, which has most of the mass where the first classes have none. Infinite differences are
// left out.
struct Placement {
  double shift;
  Rounding rounding;
};
template <class V, class S>
Placement place(const S* s, const S* t, int n, const Extremes& block, S new_base, S old_base, S inverse) {
  const int probe = std::min(n, kProbe);
  const S old_max = finite_or_0(S(block.old_max));
  V sum{}, spread{}, mass{};
  for_vectors<V>(probe, [&](int j, auto whole) {
    const V tj = get<V, whole>(t, j, probe), below = tj - old_max;
    const V difference = (get<V, whole>(s, j, probe) - new_base) - (tj - old_base);
    const V w = kept<V, whole>(difference - difference == V{} ? exponential(below * inverse) : V{}, j, probe);
    sum += w > V{} ? w * difference : V{};
    spread += w > V{} ? -w * below : V{};
    mass += w;
  });
  const auto add = [](double a, double b) { return a + b; };
  const double share = double(n) / probe;
  double total = fold(sum, add) * share, weight = fold(mass, add) * share;
  if (n > probe && std::isfinite(block.difference_at_old_max)) total += block.difference_at_old_max, weight += 1;
  const double shift = double(new_base) - old_base + (weight > 0 ? total / weight : 0);
  const bool direct = std::fabs(shift) * weight <= fold(spread, add) * share;
  return {shift, direct ? Rounding::direct : Rounding::framed};
}

// Sums of one block in given frames: cross-entropy (e) and divergence.
template <class V, class Formula>
struct BlockSums {
  using S = ScalarOf<V>;
  static constexpr Path path = Formula::path;
  Sum<V> rest, ones, k, m, x, v;
  V rest_part{}, ones_part{}, k_part{}, m_part{}, x_part{}, v_part{};

  template <bool whole>
  GF_INLINE void add_cross_entropy(V sj, S new_max, int j, int n) {
    const V shifted = sj - new_max;
    const V e = exponential(shifted);
    rest_part += kept<V, whole>(shifted == V{} ? V{} : e, j, n);
    ones_part += kept<V, whole>(shifted == V{} ? V{} + S(1) : V{}, j, n);
  }

  template <bool whole>
  GF_INLINE void add_divergence(V sj, V tj, const Frames<S>& frames, int j, int n) {
    const auto [u, d] = exponents<Formula>(sj, tj, frames);
    if constexpr (path != Path::far) {
      const V w = kept<V, whole>(path == Path::calm ? small_exponential(u) : exponential(u), j, n);
      k_part += w;
      m_part += w * d;
      x_part += w * exponential_minus_1_minus_x(d);
    } else {
      const V infinity = splat<V>(kInfinity);
      const V w = kept<V, whole>(exponential(u), j, n);
      const V v = kept<V, whole>(exponential((sj - frames.new_frame) * frames.inverse), j, n);
      // No old mass: no term, whatever d is. A new -inf under old mass, however small: an infinite divergence.
      const V wd = kept<V, whole>(u == -infinity ? V{} : d == -infinity ? -infinity : w * d, j, n);
      const V size = d < V{} ? -d : d;
      k_part += w;
      m_part += wd;
      x_part += size <= splat<V>(kSmall) ? w * exponential_minus_1_minus_x(d) : (v - w) - wd;
      v_part += v;
    }
  }

  GF_INLINE void widen_cross_entropy() {
    rest.add(rest_part), ones.add(ones_part);
    rest_part = ones_part = V{};
  }
  GF_INLINE void widen_divergence() {
    k.add(k_part), m.add(m_part), x.add(x_part);
    k_part = m_part = x_part = V{};
    if constexpr (path == Path::far) {
      v.add(v_part);
      v_part = V{};
    }
  }

  void to(Softmax& softmax) const {
    softmax.ones += ones.value();
    softmax.rest += rest.value();
  }
  void to(Divergence& divergence) const {
    const double block_k = k.value(), block_m = m.value(), block_x = x.value();
    divergence.k += block_k, divergence.m += block_m, divergence.x += block_x;
    divergence.v += path == Path::far ? v.value() : block_k + block_m + block_x;
  }
};

template <class Formula, class V, class S>
void sum_block(const S* s, const S* t, int n, S inverse, Softmax& softmax, Divergence& divergence) {
  BlockSums<V, Formula> sums;
  const Frames<S> frames(softmax.frame, divergence.new_frame, divergence.old_frame, inverse);
  for_vectors<V>(
      n,
      [&](int j, auto whole) {
        const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
        sums.template add_cross_entropy<whole>(sj, frames.new_max, j, n);
        sums.template add_divergence<whole>(sj, tj, frames, j, n);
      },
      [&] {
        sums.widen_cross_entropy();
        sums.widen_divergence();
      });
  sums.to(softmax);
  sums.to(divergence);
}

template <class V, class S>
void sum_block(const S* s, int n, Softmax& softmax) {
  BlockSums<V, Formula<Path::calm, Rounding::direct>> sums;
  const S new_max = Frames<S>(softmax.frame, 0, 0, 1).new_max;
  for_vectors<V>(
      n, [&](int j, auto whole) { sums.template add_cross_entropy<whole>(get<V, whole>(s, j, n), new_max, j, n); },
      [&] { sums.widen_cross_entropy(); });
  sums.to(softmax);
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

  // Adds the exponentials of the new logits to `softmax`, too.
  void add(const S* s, const S* t, int n, const Extremes& block, S new_base, S old_base, Softmax& softmax) {
    const double base = double(new_base) - old_base;
    difference_min = std::min(difference_min, block.difference_min + base);
    difference_max = std::max(difference_max, block.difference_max + base);
    new_max = std::max(new_max, block.new_max);
    old_max = std::max(old_max, block.old_max);
    old_min = std::min(old_min, block.old_min);
    const double old_to = old_max == -kInfinity ? 0 : old_max;
    if (!(old_to - placed_at <= temperature)) {  // never placed, or most of the mass is in this block
      placement = place<V>(s, t, n, block, new_base, old_base, inverse);
      placed_at = old_max;
    }
    move(old_to);
    // for all classes so far: the frames of the last block are the row's
    const Path path = choose_path(difference_min, difference_max, old_min, sums.new_frame, sums.old_frame, temperature);
    with_formula(path, placement.rounding,
                 [&](auto formula) { sum_block<decltype(formula), V>(s, t, n, inverse, softmax, sums); });
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
    part.direct = placement.rounding == Rounding::direct;
    part.old_max = old_max, part.old_min = old_min;
    part.difference_min = difference_min, part.difference_max = difference_max;
  }
};

}  // namespace
}  // namespace graceful_fast
