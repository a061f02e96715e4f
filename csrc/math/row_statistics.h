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

#include "math/hd.h"

namespace graceful_fast {

enum class DivergenceKind : int64_t { kl, logits, ldi };
enum class Focus : int64_t { old_correct, negative_flip, new_incorrect, all, weight };

// What the rows of one loss have in common.
struct LossRule {
  DivergenceKind kind;
  Focus focus;
  double alpha, beta, temperature, label_smoothing;
  double classes;                      // of the whole row
  double cross_entropy, distillation;  // factors of the two terms; one that is 0 takes its term out
};

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

// expm1(z) - z, likewise
GF_HD inline double expm1_minus(double z) {
  return std::fabs(z) < 1e-3 ? z * z * (0.5 + z * (1.0 / 6 + z * (1.0 / 24 + z / 120))) : std::expm1(z) - z;
}

struct Divergence {
  double new_frame = 0, old_frame = 0;
  double k = 0, m = 0, x = 0, v = 0;

  GF_HD bool empty() const { return k == 0 && v == 0 && m == 0; }
  GF_HD double mass_at(const Divergence& other, double temperature) const {  // k in the old frame of `other`
    return k == 0 ? 0 : k * std::exp((old_frame - other.old_frame) / temperature);
  }

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
      const double bend =
          std::fabs(delta) < 0.5 ? shrink_old * expm1_minus(delta) : std::exp(delta - a) - shrink_old * (1 + delta);
      const double tilt = bend + shrink_old * delta;  // exp(-a) * expm1(delta)
      x = std::exp(delta - a) * x + bend * k + tilt * m;
      m = m == -INFINITY ? m : shrink_old * (m + delta * k);
      k *= shrink_old;
    }
    if (v != 0) v *= shrink_new;
    new_frame = new_to;
    old_frame = old_to;
  }
  GF_HD void merge(Divergence other, double temperature) {
    if (other.empty()) return;
    if (empty()) {
      *this = other;
      return;
    }
    // A part without a model's mass does not say where its frame should be.
    const double new_to = v == 0                        ? other.new_frame
                          : other.v == 0                ? new_frame
                          : other.new_frame > new_frame ? other.new_frame
                                                        : new_frame;
    const double old_to = k == 0                        ? other.old_frame
                          : other.k == 0                ? old_frame
                          : other.old_frame > old_frame ? other.old_frame
                                                        : old_frame;
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
    if (m == -INFINITY) return INFINITY;
    if (k == 0) return 0;  // every old logit is -inf
    const double near = (m + x) / k;
    return std::fabs(near) < 0.5 ? x / k + log1p_minus(near) : std::log(v / k) - m / k;
  }
};

constexpr double kFramed = 2;  // RowPart::rounding that holds for any frames

// What some classes of a row reduce to. Parts of a row merge in any order and grouping: blocks of classes of one
// device, and the shards of a group. A part is a row of the `parts` tensor, so all its fields are float64.
struct RowPart {
  Softmax softmax;             // of the new logits at temperature 1; its frame is their maximum
  Divergence divergence;       // kl only; over the classes that have an old logit, as are the next five
  double rounding = 0;         // how the kernel formed d where most of the old mass is
  double squares = 0;          // sum of (|new - old| - margin, at least 0)^2, not for kl
  double compared = 0;         // number of their finite old logits
  double old_max = -INFINITY;  // of the old logits
  double old_min = INFINITY;
  double difference_min = INFINITY;  // bounds of new - old
  double difference_max = -INFINITY;
  double total = 0;               // sum of the new logits, where labels are smoothed
  double new_target = -INFINITY;  // the target's logits, where it is among these classes
  double old_target = -INFINITY;
  double known = 0;               // 1 if the target is among these classes and has an old logit
  double new_before = -INFINITY;  // greatest logits of the classes before the target: the first of equals is the argmax
  double old_before = -INFINITY;

  GF_HD void merge(const RowPart& other, double temperature) {
    softmax.merge(other.softmax);
    const double own = divergence.mass_at(other.divergence, temperature);
    if (other.divergence.k > own) rounding = other.rounding;
    const Divergence& heavier = other.divergence.k > own ? other.divergence : divergence;
    const double new_frame = heavier.new_frame, old_frame = heavier.old_frame;
    divergence.merge(other.divergence, temperature);
    if (divergence.new_frame != new_frame || divergence.old_frame != old_frame) rounding = kFramed;
    squares += other.squares, compared += other.compared, total += other.total;
    raise(old_max, other.old_max), raise(difference_max, other.difference_max);
    lower(old_min, other.old_min), lower(difference_min, other.difference_min);
    raise(new_target, other.new_target), raise(old_target, other.old_target), raise(known, other.known);
    raise(new_before, other.new_before), raise(old_before, other.old_before);
  }
  GF_HD bool new_correct() const { return new_target == softmax.frame && !(new_before >= new_target); }
  GF_HD bool old_correct() const { return known != 0 && old_target == old_max && !(old_before >= old_target); }

  GF_HD static void raise(double& to, double value) {
    if (value > to) to = value;
  }
  GF_HD static void lower(double& to, double value) {
    if (value < to) to = value;
  }
};
constexpr int kRowPart = sizeof(RowPart) / sizeof(double);

// Which formulas hold for every class of a row: all -u at most kCalmExponent and all |d| at most kCalm, all |d| at most
// kSmall, or neither. No u is above 0: the old frame is the greatest of the old logits.
enum class Path { calm, near, far };
constexpr double kSmall = 0.5;  // where the polynomials of cpu/exp.h hold; the calm ones are one degree lower
constexpr double kCalm = 0.25;
constexpr double kCalmExponent = 0.275;  // at T = 100 normal logits of deviation 3 and 100,000 classes are within

GF_HD inline Path choose_path(double difference_min, double difference_max, double old_min, double new_frame,
                              double old_frame, double temperature) {
  const double shift = new_frame - old_frame;
  const auto within = [=](double reach) {
    return difference_min - shift >= -reach * temperature && difference_max - shift <= reach * temperature;
  };
  if (within(kCalm) && old_min - old_frame >= -kCalmExponent * temperature) return Path::calm;
  // A class that is -inf in both has no difference, but is seen in old_min.
  return within(kSmall) && old_min > -INFINITY ? Path::near : Path::far;
}

GF_HD inline double focal_weight(const LossRule& rule, const RowPart& row, double given) {
  switch (rule.focus) {
    case Focus::old_correct:
      return rule.alpha + rule.beta * row.old_correct();
    case Focus::negative_flip:
      return rule.alpha + rule.beta * (row.old_correct() && !row.new_correct());
    case Focus::new_incorrect:
      return rule.alpha + rule.beta * !row.new_correct();
    case Focus::weight:
      return given;
    default:
      return 1;
  }
}

// What the forward pass leaves for the backward pass, one row of the `statistics` tensor.
struct RowStatistics {
  double new_max;        // frame of the cross-entropy's softmax
  double new_excess;     // its sum minus 1
  double new_frame;      // frames of the divergence
  double old_frame;      //
  double old_sum;        // K; for squared differences the number of finite old logits
  double new_sum;        // V
  double ratio_minus_1;  // V/K - 1
  double cross_entropy;  // factor of the cross-entropy's gradient, 0 for an ignored row
  double distillation;   // factor of the divergence's gradient, 0 where there is none
  double path;           // Path
  double rounding;       // RowPart::rounding
};
constexpr int kRowStatistics = sizeof(RowStatistics) / sizeof(double);

// The loss of a row that is not ignored, from the merge of all its parts; `out` arrives zeroed.
GF_HD inline double finish_row(const RowPart& row, const LossRule& rule, double given_weight, RowStatistics& out) {
  const double frame = row.softmax.frame, log_sum = std::log1p(row.softmax.excess());
  out.new_max = frame;
  out.new_excess = row.softmax.excess();
  out.cross_entropy = rule.cross_entropy;
  double cross_entropy = log_sum - (row.new_target - frame);
  if (rule.label_smoothing != 0 && cross_entropy != INFINITY) {  // the uniform part is as infinite as the target's
    const double uniform = log_sum - (row.total / rule.classes - frame);
    cross_entropy += rule.label_smoothing * (uniform - cross_entropy);
  }
  double loss = rule.cross_entropy == 0 ? 0 : rule.cross_entropy * cross_entropy;

  const bool kl = rule.kind == DivergenceKind::kl;
  const double mass = kl ? row.divergence.k : row.compared;
  const double factor = row.known == 0 ? 0 : rule.distillation * focal_weight(rule, row, given_weight);
  if (factor == 0 || mass == 0) return loss;
  out.distillation = factor;
  out.old_sum = mass;
  if (!kl) {
    const double mean = row.squares / mass;
    return loss + factor * (rule.kind == DivergenceKind::logits ? mean / 2 : mean);
  }
  out.new_frame = row.divergence.new_frame;
  out.old_frame = row.divergence.old_frame;
  out.new_sum = row.divergence.v;
  out.ratio_minus_1 = row.divergence.ratio_minus_1();
  const Path path =
      choose_path(row.difference_min, row.difference_max, row.old_min, out.new_frame, out.old_frame, rule.temperature);
  out.path = int(path);
  out.rounding = row.rounding;
  return loss + factor * (rule.temperature * rule.temperature * row.divergence.kl());
}

}  // namespace
}  // namespace graceful_fast
