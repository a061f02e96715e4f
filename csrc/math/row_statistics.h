// What a row of (new logits, old logits) reduces to: few float64 numbers that merge associatively, so that one row per
// block, a row split over blocks, and classes sharded over devices give the same loss. Plain C++, also compiled for
// CUDA.
//
// Every exponential is taken in a frame (a float32 shift near the row's maximum), so that logits with a large common
// offset lose nothing. The divergence comes from the difference form: with u = (t - old_frame)/T, d = ((s - new_frame)
// - (t - old_frame))/T, w = exp(u):
//   K = sum w,  M = sum w*d,  X = sum w*(expm1(d) - d),  V = sum w*exp(d) = K + M + X
//   KL(softmax(t/T) || softmax(s/T)) = log(V/K) - M/K = X/K + log1p(Z) - Z with Z = V/K - 1 = (M + X)/K
// At large T all of d is small and KL is X/K to first order, while log(V) - log(K) alone has lost its digits.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define GF_HD __host__ __device__
#else
#define GF_HD
#endif

namespace graceful_fast {
namespace {

// sum exp(x - frame) over the classes, as the count of classes at the frame and the rest: log1p of the rest keeps the
// digits of a loss near 0.
struct Softmax {
  double frame = -INFINITY;  // the maximum seen
  double ones = 0;           // classes equal to it
  double rest = 0;           // sum of exp(x - frame) over all others

  GF_HD void move(double to) {  // to >= frame
    if (!(to > frame)) return;
    rest = (ones + rest) * std::exp(frame - to);
    ones = 0;
    frame = to;
  }
  GF_HD void merge(Softmax other) {
    const double to = other.frame > frame ? other.frame : frame;
    move(to);
    other.move(to);
    ones += other.ones;
    rest += other.rest;
  }
  GF_HD double excess() const { return (ones - 1) + rest; }  // sum - 1
};

// log1p(z) - z: at large T the difference itself has no digits left
GF_HD inline double log1p_minus(double z) {
  return std::fabs(z) < 1e-3 ? z * z * (-0.5 + z * (1.0 / 3 - z * (0.25 - z / 5))) : std::log1p(z) - z;
}

struct Divergence {
  double new_frame = 0, old_frame = 0;
  double k = 0, m = 0, x = 0, v = 0;

  GF_HD bool empty() const { return k == 0 && v == 0 && m == 0; }

  GF_HD void move(double new_to, double old_to, double temperature) {
    if (new_to == new_frame && old_to == old_frame) return;
    const double shrink_new = v == 0 && x == 0 ? 0 : std::exp((new_frame - new_to) / temperature);
    if (k == 0) {  // no mass under the old model yet: x is v
      x *= shrink_new;
    } else {
      const double a = (old_to - old_frame) / temperature;
      const double delta = (new_frame - new_to) / temperature + a;
      const double shrink_old = std::exp(-a);
      // exp(-a) * (exp(delta) - 1 - delta), without the overflow of exp(delta)
      const double bend = std::fabs(delta) < 0.5 ? shrink_old * (std::expm1(delta) - delta)
                                                 : std::exp(delta - a) - shrink_old * (1 + delta);
      const double tilt = bend + shrink_old * delta;  // exp(-a) * expm1(delta)
      x = std::exp(delta - a) * x + bend * k + tilt * m;
      m = shrink_old * (m + delta * k);
      k *= shrink_old;
    }
    v *= shrink_new;
    new_frame = new_to;
    old_frame = old_to;
  }
  GF_HD void merge(Divergence other, double temperature) {
    if (other.empty()) return;
    if (empty()) {
      *this = other;
      return;
    }
    const double new_to = other.new_frame > new_frame ? other.new_frame : new_frame;
    const double old_to = other.old_frame > old_frame ? other.old_frame : old_frame;
    move(new_to, old_to, temperature);
    other.move(new_to, old_to, temperature);
    k += other.k, m += other.m, x += other.x, v += other.v;
  }
  // V/K - 1, from whichever of the two forms keeps its digits
  GF_HD double ratio_minus_1() const {
    const double near = (m + x) / k;
    return std::fabs(near) < 0.5 ? near : v / k - 1;
  }
  GF_HD double kl() const {
    if (k == 0) return 0;  // every old logit is -inf
    const double near = (m + x) / k;
    return std::fabs(near) < 0.5 ? x / k + log1p_minus(near) : std::log(v / k) - m / k;
  }
};

// What the forward pass leaves for the backward pass, one row of the `statistics` tensor.
struct RowStatistics {
  double new_max;        // frame of the cross-entropy's softmax
  double new_excess;     // its sum minus 1
  double new_frame;      // frames of the divergence
  double old_frame;      //
  double old_sum;        // K; for the squared difference the number of finite old logits
  double new_sum;        // V
  double ratio_minus_1;  // V/K - 1
  double cross_entropy;  // factor of the cross-entropy's gradient, 0 for an ignored row
  double distillation;   // factor of the divergence's gradient, 0 where there is none
  double path;           // which of the kernel's formulas holds for every class of the row
};
constexpr int kRowStatistics = sizeof(RowStatistics) / sizeof(double);

}  // namespace
}  // namespace graceful_fast
