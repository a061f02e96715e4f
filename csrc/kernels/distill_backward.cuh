// distill backward: the gradient of rows from their logits and their statistics, the incoming gradient folded in.
//
// A block takes 4,096 classes of a row, 8 neighbours a thread at a time; its first thread makes the row's factors. The
// target's element is float64: there the softmax minus 1 cancels. Each element is read and written by one thread, so
// the gradient may take the place of the new logits.
//   bytes = both logits + gradient (the gradient alone for a row without one) + per block: 8 (target),
//   sizeof(RowStatistics), the incoming gradient, the target's two logits
#pragma once
#include "kernels/distill_row.cuh"

namespace graceful_fast {
namespace {

constexpr int kBackwardThreads = 128;
template <class S>
constexpr int kBackwardBlocks = sizeof(S) == 4 ? 5 : 3;  // on a processor, at least: 96 or 168 registers a thread
constexpr int kChunk = 4 * kBackwardThreads * kGroup;    // classes a block: they pay for the factors

// What the gradient of one row is made of: e * exp(s - new_max) - smooth + [target] + the divergence's part.
struct Factors {
  double factor_e, factor_d;  // of the two terms, the incoming gradient folded in
  double e, smooth, k, v, near, scale, slope;

  __device__ Factors(const DistillBackward& p, const RowStatistics& row, double incoming)
      : factor_e(row.cross_entropy == 0 ? 0 : incoming * row.cross_entropy),
        factor_d(row.distillation == 0 ? 0 : incoming * row.distillation) {
    // A row without new mass (all its logits are -inf) has no softmax: its part is 0, not 0 / 0.
    e = factor_e == 0 ? 0 : factor_e / (1 + row.new_excess);
    smooth = factor_e * p.label_smoothing / p.classes;
    scale = factor_d * p.logits.temperature;  // T^2 of the definition times the 1/T of the chain rule
    k = scale / row.old_sum;
    v = row.new_sum == 0 ? 0 : scale / row.new_sum;
    near = scale / row.old_sum / (1 + row.ratio_minus_1);
    // of the squared differences: their mean is halved for `logits` and not for `ldi`
    slope = factor_d / row.old_sum * (p.logits.kind == DivergenceKind::logits ? 1 : 2);
  }
  __device__ bool zero() const { return factor_e == 0 && factor_d == 0; }
};

__device__ inline double at_target(const DistillBackward& p, const RowStatistics& row, const Factors& f, double s,
                                   double t, bool has_old) {
  const double sum = 1 + row.new_excess, smoothing = p.label_smoothing;
  // At the maximum the softmax minus 1 is minus the mass of all other classes.
  const double p_minus_1 = s == row.new_max ? -row.new_excess / sum : exp(s - row.new_max) / sum - 1;
  const double gradient = f.factor_e == 0 ? 0 : f.factor_e * (p_minus_1 + smoothing - smoothing / p.classes);
  if (f.factor_d == 0 || !has_old) return gradient;
  if (p.logits.kind != DivergenceKind::kl) {
    if (p.logits.exclude_target || s == -INFINITY || t == -INFINITY) return gradient;
    return gradient + f.slope * beyond_margin(s - t, p.logits.margin);
  }
  const double inverse = 1 / p.logits.temperature;
  const double u = (t - row.old_frame) * inverse, d = (s - row.new_frame) * inverse - u, z = row.ratio_minus_1;
  const double of_old = exp(u) / row.old_sum;
  if (fabs(d) <= kSmall) return gradient + f.scale * (of_old * (expm1(d) - z) / (1 + z));
  const double of_new = row.new_sum == 0 ? 0 : exp((s - row.new_frame) * inverse) / row.new_sum;
  return gradient + f.scale * (of_new - of_old);
}

// The divergence's part of one class.
template <bool far, class S>
__device__ S kl_part(S s, S t, const Frames<S>& frames, S near, S v, S k, S z) {
  const auto [u, d] = exponents<far>(s, t, frames);
  const S w = exponential(u), part = w * near * (grown(d) - z);
  if (!far || (d < 0 ? -d : d) <= S(kSmall)) return part;
  return exponential((s - frames.new_frame) * frames.inverse) * v - w * k;
}

template <class New, class Old, class S, bool kl>
__global__ void __launch_bounds__(kBackwardThreads, kBackwardBlocks<S>)
    distill_backward(DistillBackward p, int64_t chunks) {
  using In = decltype(widen(New{}));
  simt::Smem smem;
  Factors* const shared = smem.take<Factors>(1);
  const int64_t i = blockIdx.x / chunks, columns = p.logits.new_logits.columns;
  const auto& row = reinterpret_cast<const RowStatistics*>(p.statistics)[i];
  if (threadIdx.x == 0) {
    const int64_t at = i * p.grad_output_stride;
    const double incoming = sizeof(In) == 8 ? static_cast<const double*>(p.grad_output)[at]
                                            : double(static_cast<const float*>(p.grad_output)[at]);
    *shared = Factors(p, row, incoming);
  }
  __syncthreads();  // the factors are there
  const Factors f = *shared;
  const Pair<New, Old, S> pair(p.logits, i);
  New* const gradient = static_cast<New*>(p.gradient) + i * p.gradient_stride;
  const int64_t shift = pair.s.misplaced(), column = p.logits.target[i] - p.logits.first_class;
  const Frames<S> frames(row.new_max, row.new_frame, row.old_frame, p.logits.temperature);
  const bool far = kl && Path(int(row.path)) == Path::far;
  const S e_factor = S(f.e), smooth = S(f.smooth), near = S(f.near), v = S(f.v), k = S(f.k), z = S(row.ratio_minus_1);
  const S slope = S(f.slope), margin = S(p.logits.margin);

  const int64_t chunk = blockIdx.x % chunks * kChunk - shift;
  for (int64_t first = chunk + threadIdx.x * kGroup; first < chunk + kChunk && first < columns;
       first += kBackwardThreads * kGroup) {
    S out[kGroup] = {};
    if (!f.zero()) {
      S s[kGroup], t[kGroup];
      pair.s.load(first, S(-INFINITY), s);
      const unsigned has_old = f.factor_d == 0 ? 0 : pair.load_old(first, t);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) {
        out[e] = exponential(s[e] - frames.new_max) * e_factor - smooth;
        if (!(has_old >> e & 1)) continue;
        if constexpr (kl) {
          out[e] += far ? kl_part<true>(s[e], t[e], frames, near, v, k, z)
                        : kl_part<false>(s[e], t[e], frames, near, v, k, z);
        } else if (t[e] != S(-INFINITY) && s[e] != S(-INFINITY)) {
          out[e] += beyond_margin(s[e] - t[e], margin) * slope;
        }
      }
      if (column >= first && column < first + kGroup && column >= 0 && column < columns) {
        const int64_t old_column = pair.old_column(column);
        const double old_logit = old_column == -1 ? 0 : double(pair.old_logit(old_column));
        const S own = S(at_target(p, row, f, double(pair.s[column]), old_logit, old_column != -1));
#pragma unroll
        for (int e = 0; e < kGroup; ++e) {
          if (first + e == column) out[e] = own;
        }
      }
    }
    store(gradient, first, columns, out);
  }
}

}  // namespace
}  // namespace graceful_fast
