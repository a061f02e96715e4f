// influence, the CPU kernel: a row of the block at a time, short enough for the nearest cache, in three or four passes:
// factor and bias, the maximum, the exponentials with their sum. Sums are float32 within a group of vectors, then
// float64. A NaN among the logits makes the row's sum NaN.
#include <cmath>
#include <limits>

#include "cpu/influence.h"
#include "cpu/lanes.h"
#include "cpu/rounding.h"

namespace graceful_fast {
namespace {

// logit = factor * product + bias
template <class V, bool has_factor, bool has_bias, class S>
void make_logits(S* row, int n, const S* factor, const S* bias) {
  for_vectors<V>(n, [&](int j, auto whole) {
    V logit = get<V, whole()>(row, j, n);
    if constexpr (has_factor) logit = logit * get<V, whole()>(factor, j, n);
    if constexpr (has_bias) logit = logit + get<V, whole()>(bias, j, n);
    put<V, whole()>(row, logit, j, n);
  });
}

template <class V, class S>
double maximum(const S* row, int n) {
  V best = splat<V>(std::numeric_limits<S>::lowest());
  for_vectors<V>(n, [&](int j, auto whole) { best = larger(best, get<V, whole()>(row, j, n)); });
  return fold_max(best);
}

// logits -> factor * exp(logit - top); the sum without the factors
template <class V, bool has_factor, class S>
double exponentials(S* row, int n, double top, const S* factor) {
  Sum<V> sum;
  V part{};
  for_vectors<V>(
      n,
      [&](int j, auto whole) {
        V e = exponential(get<V, whole()>(row, j, n) - S(top));
        part += kept<V, whole()>(e, j, n);
        if constexpr (has_factor) e = e * get<V, whole()>(factor, j, n);
        put<V, whole()>(row, e, j, n);
      },
      [&] {
        sum.add(part);
        part = V{};
      });
  return sum.value();
}

template <class V>
void run_rows(const InfluenceParams& params, int64_t begin, int64_t end) {
  using S = ScalarOf<V>;
  const int n = int(params.classes);
  const auto *factor = static_cast<const S*>(params.factor), *bias = static_cast<const S*>(params.bias);
  for (int64_t i = begin; i < end; ++i) {
    S* row = static_cast<S*>(params.logits) + i * params.classes;
    InfluenceRow& statistics = params.rows[i];
    // 1. the logits, without the target's
    if (factor && bias) {
      make_logits<V, true, true>(row, n, factor, bias);
    } else if (factor) {
      make_logits<V, true, false>(row, n, factor, bias);
    } else if (bias) {
      make_logits<V, false, true>(row, n, factor, bias);
    }
    const int64_t target = params.target[i] - params.first_class;
    if (target >= 0 && target < n) row[target] = -std::numeric_limits<S>::infinity();
    // 2. raise the top
    const double before = statistics.top, highest = maximum<V>(row, n);
    const double top = highest > before ? highest : before;
    const double shrink = std::exp(before - top);
    // 3. exponentials
    const double sum =
        factor ? exponentials<V, true>(row, n, top, factor) : exponentials<V, false>(row, n, top, factor);
    statistics.top = top;
    statistics.others = statistics.others * shrink + sum;
    static_cast<S*>(params.shrink)[i] = S(shrink);
  }
}

void run(const InfluenceParams& params, int64_t begin, int64_t end) {
  const DefaultRounding rounding;
  if (params.type == Element::float64) return run_rows<double>(params, begin, end);
  run_rows<Floats>(params, begin, end);
}

}  // namespace

extern const InfluenceKernels GF_TABLE(influence) = {run};

}  // namespace graceful_fast
