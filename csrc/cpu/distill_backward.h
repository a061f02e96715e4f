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

template <class Formula, class V, class S>
void gradient_block(const S* s, const S* t, int n, const RowStatistics& row, const Factors& f, S inverse, S* out) {
  const Frames<S> frames(row.new_max, row.new_frame, row.old_frame, inverse);
  const S e = S(f.e), smooth = S(f.smooth), k = S(f.k), v = S(f.v), near = S(f.near), z1 = S(row.ratio_minus_1);
  for_vectors<V>(n, [&](int j, auto whole) {
    const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
    const auto [u, d] = exponents<Formula>(sj, tj, frames);
    const V w = Formula::path == Path::calm ? small_exponential(u) : exponential(u);
    V part = w * near * (exponential_minus_1(d) - z1);
    if constexpr (Formula::path == Path::far) {
      const V size = d < V{} ? -d : d;
      part = size <= splat<V>(kSmall) ? part : exponential((sj - frames.new_frame) * inverse) * v - w * k;
    }
    put<V, whole>(out, fma(exponential(sj - frames.new_max), splat<V>(e), part - smooth), j, n);
  });
}

template <class V, class S>
void gradient_block(const S* s, int n, const RowStatistics& row, const Factors& f, S* out) {
  const S new_max = S(row.new_max), e = S(f.e), smooth = S(f.smooth);
  for_vectors<V>(n, [&](int j, auto whole) {
    put<V, whole>(out, exponential(get<V, whole>(s, j, n) - new_max) * e - smooth, j, n);
  });
}

// Adds factor * (s - t), 0 where either is -inf.
template <class V, class S>
void add_difference(const S* s, const S* t, int n, double factor, S* out) {
  const V infinity = splat<V>(kInfinity), scale = splat<V>(factor);
  for_vectors<V>(n, [&](int j, auto whole) {
    const V sj = get<V, whole>(s, j, n), tj = get<V, whole>(t, j, n);
    const V difference = tj == -infinity ? V{} : sj == -infinity ? V{} : sj - tj;
    put<V, whole>(out, get<V, whole>(out, j, n) + difference * scale, j, n);
  });
}

// The target's element in float64: there the softmax minus 1 cancels.
double target_gradient(const DistillBackward& params, const RowStatistics& row, double s, double t, double factor_e,
                       double factor_d, double inverse) {
  const double sum = 1 + row.new_excess, smoothing = params.label_smoothing;
  // At the maximum the softmax minus 1 is minus the mass of all other classes.
  const double p_minus_1 = s == row.new_max ? -row.new_excess / sum : std::exp(s - row.new_max) / sum - 1;
  const double cross_entropy = p_minus_1 + smoothing - smoothing / double(params.new_logits.columns);
  double gradient = factor_e == 0 ? 0 : factor_e * cross_entropy;
  if (factor_d == 0) return gradient;
  if (params.kind == DivergenceKind::logits) {
    const bool finite = s != -kInfinity && t != -kInfinity;
    return gradient + (finite ? factor_d * (s - t) / row.old_sum : 0);
  }
  const double u = (t - row.old_frame) * inverse, d = (s - row.new_frame) * inverse - u;
  const double difference =
      std::fabs(d) <= kSmall ? std::exp(u) / row.old_sum * (std::expm1(d) - row.ratio_minus_1) / (1 + row.ratio_minus_1)
                             : std::exp((s - row.new_frame) * inverse) / row.new_sum - std::exp(u) / row.old_sum;
  return gradient + factor_d / inverse * difference;
}

template <class V, class Out>
void backward_row(const DistillBackward& params, int64_t i) {
  using S = ScalarOf<V>;
  using Widened = decltype(widen(Out{}));
  const auto& row = reinterpret_cast<const RowStatistics*>(params.statistics)[i];
  const int64_t classes = params.new_logits.columns, at = i * params.grad_output_stride;
  Out* gradient = static_cast<Out*>(params.gradient) + i * classes;
  const double incoming = std::is_same_v<Out, double> ? static_cast<const double*>(params.grad_output)[at]
                                                      : static_cast<const float*>(params.grad_output)[at];
  const double factor_e = row.cross_entropy == 0 ? 0 : incoming * row.cross_entropy;
  const double factor_d = row.distillation == 0 ? 0 : incoming * row.distillation;
  if (factor_e == 0 && factor_d == 0) {
    std::fill(gradient, gradient + classes, Out{});
    return;
  }
  const bool kl = params.kind == DivergenceKind::kl;
  const int64_t shared = factor_d == 0 ? 0 : params.old_logits.columns;
  const Row<S> new_row(params.new_logits, i), old_row(params.old_logits, i);
  const S inverse = S(1 / params.temperature);
  const double scale = factor_d / double(inverse);  // T^2 of the definition times the 1/T of the chain rule
  const Factors f{factor_e / (1 + row.new_excess), factor_e * params.label_smoothing / double(classes),
                  scale / row.old_sum, scale / row.new_sum, scale / row.old_sum / (1 + row.ratio_minus_1)};
  const Path path = Path(int(row.path) / 2);
  const Rounding rounding = Rounding(int(row.path) % 2);

  S new_buffer[kBlock], old_buffer[kBlock], out_buffer[kBlock];
  for (int64_t start = 0; start < classes;) {
    const bool both = start < shared;
    const int n = int(std::min<int64_t>(kBlock, (both ? shared : classes) - start));
    const S* s = new_row.block(start, n, new_buffer);
    const S* t = both ? old_row.block(start, n, old_buffer) : nullptr;
    S* out;
    if constexpr (std::is_same_v<S, Out>) {
      out = gradient + start;
    } else {
      out = out_buffer;
    }
    if (both && kl) {
      with_formula(path, rounding,
                   [&](auto formula) { gradient_block<decltype(formula), V>(s, t, n, row, f, inverse, out); });
    } else {
      gradient_block<V>(s, n, row, f, out);
      if (both) add_difference<V>(s, t, n, factor_d / row.old_sum, out);
    }
    if constexpr (!std::is_same_v<S, Out>) {
      for (int j = 0; j < n; ++j) narrow(Widened(out_buffer[j]), gradient[start + j]);
    }
    start += n;
  }
  const int64_t target = params.target[i];
  const double old_logit = shared > 0 ? old_row[target] : 0;
  narrow(Widened(target_gradient(params, row, new_row[target], old_logit, factor_e, factor_d, inverse)),
         gradient[target]);
}

}  // namespace
}  // namespace graceful_fast
