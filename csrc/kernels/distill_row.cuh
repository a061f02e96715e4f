// distill, what both directions share: which classes a row's logits are compared in, and the exponents of the
// divergence (math/row_statistics.h) of one class.
#pragma once
#include "kernels/distill.h"
#include "kernels/rows.cuh"

namespace graceful_fast {
namespace {

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }

// x moved towards 0 by `margin`, 0 within it
template <class S>
__device__ S beyond_margin(S x, S margin) {
  return x > margin ? x - margin : x < -margin ? x + margin : x - x;
}

// expm1(d) and expm1(d) - d for |d| <= kSmall
__device__ inline float grown_bent(float d) {  // relative error of the polynomial 2.5e-8
  float q = fmaf(d, 1.98756284e-4f, 1.39819974e-3f);
  q = fmaf(q, d, 8.33345217e-3f);
  q = fmaf(q, d, 4.16657959e-2f);
  q = fmaf(q, d, 0.166666655f);
  q = fmaf(q, d, 0.5f);
  return d * d * q;
}
__device__ inline float grown(float d) { return d + grown_bent(d); }
__device__ inline double grown(double d) { return expm1(d); }
__device__ inline double grown_bent(double d) { return expm1_minus(d); }

// Frames of a row as its elements' type has them; `shift_lost`: what rounding new_frame - old_frame to it lost.
template <class S>
struct Frames {
  S new_max, new_frame, old_frame, shift, shift_lost, inverse;

  __device__ Frames(double max, double new_frame, double old_frame, double temperature)
      : new_max(S(max == -INFINITY ? 0 : max)),
        new_frame(S(new_frame)),
        old_frame(S(old_frame)),
        shift(S(new_frame - old_frame)),
        shift_lost(S((new_frame - old_frame) - double(shift))),
        inverse(S(1 / temperature)) {}
};

// u and d of one class. s - t is exact in two numbers, so d keeps its digits wherever the frames are; `far` rows may
// have infinite logits, whose difference lost nothing.
template <class S>
struct Exponents {
  S u, d;
};
template <bool far, class S>
__device__ Exponents<S> exponents(S s, S t, const Frames<S>& frames) {
  const S difference = s - t, subtracted = s - difference;
  S error = (s - (difference + subtracted)) + (subtracted - t);
  if (far && !(error == error)) error = 0;
  return {(t - frames.old_frame) * frames.inverse,
          ((difference - frames.shift) + (error - frames.shift_lost)) * frames.inverse};
}

// A row of both logits.
template <class New, class Old, class S>
struct Pair {
  const DistillLogits& logits;
  Row<New, S> s;
  Row<Old, S> t;

  __device__ Pair(const DistillLogits& logits, int64_t i)
      : logits(logits), s(logits.new_logits, i, logits.new_logits.columns), t(logits.old_logits, i, logits.shared) {}

  // The old column of a new one, -1 if there is none.
  __device__ int64_t old_column(int64_t column) const {
    return logits.old_column ? logits.old_column[column] : column < logits.shared ? column : -1;
  }
  // The old logit of a column; NaN for one that does not exist.
  __device__ S old_logit(int64_t column) const {
    return column >= 0 && column < logits.old_logits.columns ? t[column] : S(NAN);
  }
  // Old logits of the classes of new columns first, first + 1, ...; -inf where the row has none. Returns a bit for each
  // column that has one.
  __device__ unsigned load_old(int64_t first, S (&to)[kGroup]) const {
    unsigned bits = 0;
    if (!logits.old_column) {
      t.load(first, S(-INFINITY), to);
#pragma unroll
      for (int e = 0; e < kGroup; ++e) bits |= unsigned(first + e >= 0 && first + e < t.count) << e;
      return bits;
    }
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      const int64_t column = first + e >= 0 && first + e < s.count ? logits.old_column[first + e] : -1;
      to[e] = column == -1 ? S(-INFINITY) : old_logit(column);
      bits |= unsigned(column != -1) << e;
    }
    return bits;
  }
};

}  // namespace
}  // namespace graceful_fast
