// distill backward: the gradient of a row from its logits and its statistics, the incoming gradient folded in.
#pragma once
#include <algorithm>
#include <cmath>

#include "cpu/distill.h"
#include "cpu/distill_row.h"

namespace graceful_fast {
namespace {

// Factors of one row: gradient_j = e * exp(s_j - new_max) - smooth + [target] + divergence's part.
struct Factors {
  double e, smooth, k, v, near;
};

template <class Formula, class V, class In, class Out>
void gradient_block(const In* s, const In* t, int n, const RowStatistics& row, const Factors& f, ScalarOf<V> inverse,
                    Out* out, bool streamed) {
  using S = ScalarOf<V>;
  const Frames<S> frames(row.new_max, row.new_frame, row.old_frame, inverse);
  const S e = S(f.e), smooth = S(f.smooth), k = S(f.k), v = S(f.v), near = S(f.near), z1 = S(row.ratio_minus_1);
  const S unit_of_d = unit<Formula>(inverse);
  const SmallExponential<S> near_times_w(f.near, unit_of_d);
  const SmallGrowth<S, Formula::path == Path::calm> small_growth(unit_of_d);
  for_vectors<V>(n, [&](int j, auto whole) {
    const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
    const auto [u, d] = exponents<Formula>(sj, tj, frames);
    if constexpr (Formula::path == Path::calm) {
      const V part = fma(near_times_w(u), small_growth.minus(d, z1), -smooth);
      return put<V, whole>(out, fma(exponential(sj - frames.new_max), splat<V>(e), part), j, n, streamed);
    }
    const V w = exponential(u);
    V part = w * near * small_growth.minus(d, z1);
    if constexpr (Formula::path == Path::far) {
      const V size = d < V{} ? -d : d;
      part = size <= splat<V>(kSmall) ? part : exponential((sj - frames.new_frame) * inverse) * v - w * k;
    }
    put<V, whole>(out, fma(exponential(sj - frames.new_max), splat<V>(e), part - smooth), j, n, streamed);
  });
}

template <class V, class In, class Out>
void gradient_block(const In* s, int n, const RowStatistics& row, const Factors& f, Out* out, bool streamed) {
  using S = ScalarOf<V>;
  const S new_max = S(row.new_max), e = S(f.e), smooth = S(f.smooth);
  for_vectors<V>(n, [&](int j, auto whole) {
    put<V, whole>(out, exponential(get<V, whole>(s, j, n) - new_max) * e - smooth, j, n, streamed);
  });
}

// The same and factor * (s - t), moved towards 0 by the margin, 0 where either is -inf.
template <class V, class In, class Out>
void gradient_block(const In* s, const In* t, int n, const RowStatistics& row, const Factors& f, ScalarOf<V> margin,
                    double factor, Out* out) {
  using S = ScalarOf<V>;
  const S new_max = S(row.new_max), e = S(f.e), smooth = S(f.smooth);
  const V infinity = splat<V>(kInfinity), scale = splat<V>(factor);
  for_vectors<V>(n, [&](int j, auto whole) {
    const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
    const V difference = tj == -infinity ? V{} : sj == -infinity ? V{} : beyond_margin(sj - tj, margin);
    put<V, whole>(out, exponential(sj - new_max) * e - smooth + difference * scale, j, n);
  });
}

// What the gradient of one row is made of.
template <class V>
struct BackwardRow {
  using S = ScalarOf<V>;
  const DistillBackward& params;
  const RowStatistics& row;
  const double factor_e, factor_d;  // of the two terms, the incoming gradient folded in
  const S inverse = S(1 / params.rows.temperature);
  const double scale = factor_d / double(inverse);  // T^2 of the definition times the 1/T of the chain rule
  // A row without new mass (all its logits are -inf) has no softmax: its part is 0, not 0 / 0.
  const Factors f{factor_e == 0 ? 0 : factor_e / (1 + row.new_excess),
                  factor_e * params.label_smoothing / params.classes, scale / row.old_sum,
                  row.new_sum == 0 ? 0 : scale / row.new_sum, scale / row.old_sum / (1 + row.ratio_minus_1)};
  const Path path = Path(int(row.path));
  const Rounding rounding = Rounding(int(row.rounding));
  const bool kl = params.rows.kind == DivergenceKind::kl;
  // of the squared differences: their mean is halved for `logits` and not for `ldi`
  const double slope = factor_d / row.old_sum * (params.rows.kind == DivergenceKind::logits ? 1 : 2);

  template <class In, class Out>
  void new_only(const In* s, int n, Out* out, bool streamed) const {
    gradient_block<V>(s, n, row, f, out, streamed);
  }
  template <class In, class Out>
  void shared(const In* s, const In* t, int n, Out* out, bool streamed) const {
    if (kl) {
      with_formula(path, rounding, [&](auto formula) {
        gradient_block<decltype(formula), V>(s, t, n, row, f, inverse, out, streamed);
      });
    } else {
      gradient_block<V>(s, t, n, row, f, S(params.rows.margin), slope, out);
    }
  }

  // The target's element in float64: there the softmax minus 1 cancels. old_logit: null where it has none.
  double at_target(double s, const double* old_logit) const {
    const double sum = 1 + row.new_excess, smoothing = params.label_smoothing;
    // At the maximum the softmax minus 1 is minus the mass of all other classes.
    const double p_minus_1 = s == row.new_max ? -row.new_excess / sum : std::exp(s - row.new_max) / sum - 1;
    const double gradient = factor_e == 0 ? 0 : factor_e * (p_minus_1 + smoothing - smoothing / params.classes);
    if (factor_d == 0 || !old_logit) return gradient;
    const double t = *old_logit;
    if (!kl) {
      if (params.rows.exclude_target || s == -kInfinity || t == -kInfinity) return gradient;
      return gradient + slope * beyond_margin(s - t, params.rows.margin);
    }
    const double to_exponent = inverse;
    const double u = (t - row.old_frame) * to_exponent, d = (s - row.new_frame) * to_exponent - u;
    const double z = row.ratio_minus_1;
    const double p = std::exp(u) / row.old_sum;
    if (std::fabs(d) <= kSmall) return gradient + scale * (p * (std::expm1(d) - z) / (1 + z));
    const double q = row.new_sum == 0 ? 0 : std::exp((s - row.new_frame) * to_exponent) / row.new_sum;
    return gradient + scale * (q - p);
  }
};

// In: what the loops read, V's number or, if both logits are of it, the half type Out.
template <class V, class Out, class In>
void backward_row(const DistillBackward& params, int64_t i) {
  using Widened = decltype(widen(Out{}));
  const DistillRows& rows = params.rows;
  const auto& statistics = reinterpret_cast<const RowStatistics*>(params.statistics)[i];
  const int64_t columns = rows.new_logits.columns, at = i * params.grad_output_stride;
  Out* gradient = static_cast<Out*>(params.gradient) + i * params.gradient_stride;
  const double incoming = std::is_same_v<Out, double> ? static_cast<const double*>(params.grad_output)[at]
                                                      : static_cast<const float*>(params.grad_output)[at];
  const double factor_e = statistics.cross_entropy == 0 ? 0 : incoming * statistics.cross_entropy;
  const double factor_d = statistics.distillation == 0 ? 0 : incoming * statistics.distillation;
  if (factor_e == 0 && factor_d == 0) {
    std::fill(gradient, gradient + columns, Out{});
    return;
  }
  const BackwardRow<V> row{params, statistics, factor_e, factor_d};
  const Row<In> new_row(rows.new_logits, i), old_row(rows.old_logits, i);
  Pairs pairs(rows);

  // The target's logits first: the gradient may overwrite them.
  const int64_t column = rows.target[i] - rows.first_class;
  const bool here = column >= 0 && column < columns;
  const int64_t old_column = here ? pairs.old_column(column) : -1;
  const double old_logit = old_column >= 0 ? old_row[old_column] : 0;
  const double target_gradient = here ? row.at_target(new_row[column], old_column >= 0 ? &old_logit : nullptr) : 0;

  In new_buffer[kBlock], old_buffer[kBlock], gathered[kBlock];
  for (int64_t start = 0; start < columns;) {
    const int n = pairs.block(start);
    const In* s = new_row.block(start, n, new_buffer);
    const auto shared = factor_d != 0 ? pairs.in(start, n) : Pairs::Range{0, 0};
    Out* out = gradient + start;
    const bool streamed =
        params.past_caches && kLanes<V> > 1 && reinterpret_cast<uintptr_t>(out) % (kLanes<V> * sizeof(Out)) == 0;
    if (shared.n > 0 && !rows.new_column) {
      row.shared(s, old_row.block(start, n, old_buffer), n, out, streamed);
    } else if (shared.n > 0) {
      // first what the gradient overwrites where it may
      pairs.gather(new_row, rows.new_column, shared, gathered);
      pairs.gather(old_row, rows.old_column, shared, old_buffer);
      row.new_only(s, n, out, false);
      Out with_distance[kBlock];
      row.shared(gathered, old_buffer, shared.n, with_distance, false);
      for (int j = 0; j < shared.n; ++j) out[rows.new_column[shared.begin + j] - start] = with_distance[j];
    } else {
      row.new_only(s, n, out, streamed);
    }
    start += n;
  }
  if (here) narrow(Widened(target_gradient), gradient[column]);
}

}  // namespace
}  // namespace graceful_fast
