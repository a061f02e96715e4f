// distill, what both directions share: a row of logits in blocks, and which formulas hold for it
// (math/row_statistics.h).
#pragma once
#include <limits>
#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/matrix.h"
#include "math/row_statistics.h"

namespace graceful_fast {
namespace {

constexpr int kBlock = 1024;         // 2 x 4 KiB of float32, and as much again when half types are widened: fits any L1
constexpr int kProbe = 128;          // classes that place the divergence's frame: its error is 1/11 of d's deviation
constexpr double kSmall = 0.5;       // where the polynomials of cpu/exp.h hold
constexpr double kMaxExponent = 20;  // |new_frame - max|/T: exp(d) stays far from overflow and underflow
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Which formulas hold for every class of a block or row: all |d| and |u| small, all |d| small, or neither.
enum class Path { calm, near, far };

// How d is formed: from s - t where its mean is small beside the logits' spread, else from the logits' distances to
// their frames. Either way what the first subtractions lost is added back: equal logits of 1,000 differ in their last
// digits.
enum class Rounding { direct, framed };

template <Path p, Rounding r>
struct Formula {
  static constexpr Path path = p;
  static constexpr Rounding rounding = r;
};
double encode(Path path, Rounding rounding) { return int(path) * 2 + int(rounding); }

template <class F>
void with_formula(Path path, Rounding rounding, F&& f) {
  const auto with_path = [&](auto r) {
    constexpr Rounding rounded = decltype(r)::value;
    if (path == Path::calm) return f(Formula<Path::calm, rounded>{});
    if (path == Path::near) return f(Formula<Path::near, rounded>{});
    f(Formula<Path::far, rounded>{});
  };
  if (rounding == Rounding::direct) return with_path(std::integral_constant<Rounding, Rounding::direct>{});
  with_path(std::integral_constant<Rounding, Rounding::framed>{});
}

// One row of logits, read in blocks of the type that the kernel computes in.
template <class S>
struct Row {
  const void* data;
  Element type;

  Row(const Matrix& logits, int64_t i) : type(logits.type) {
    data = with_type(type, [&](auto t) -> const void* {
      return static_cast<const decltype(t)*>(logits.data) + i * logits.row_stride;
    });
  }
  const S* block(int64_t start, int n, S* buffer) const {
    return with_type(type, [&](auto t) -> const S* {
      const auto* from = static_cast<const decltype(t)*>(data) + start;
      if constexpr (std::is_same_v<decltype(t), S>) return from;
      for (int j = 0; j < n; ++j) buffer[j] = S(widen(from[j]));
      return buffer;
    });
  }
  double operator[](int64_t j) const {
    return with_type(type, [&](auto t) { return double(widen(static_cast<const decltype(t)*>(data)[j])); });
  }
};

template <class S>
struct Frames {
  S new_max, new_frame, old_frame, shift, inverse;  // shift: new_frame - old_frame; inverse: of the temperature

  Frames(double new_max, double new_frame, double old_frame, S inverse)
      : new_max(S(new_max == -kInfinity ? 0 : new_max)),
        new_frame(S(new_frame)),
        old_frame(S(old_frame)),
        shift(S(new_frame - old_frame)),
        inverse(inverse) {}
};

// u and d of the head comment of math/row_statistics.h
template <class V>
struct Exponents {
  V u, d;
};
// What rounded = a - b lost. Infinite operands lost nothing; only far rows have any.
template <class Formula, class V>
GF_INLINE V lost(V a, V b, V rounded) {
  const V subtracted = a - rounded;
  const V error = (a - (rounded + subtracted)) + (subtracted - b);
  return Formula::path != Path::far ? error : error == error ? error : V{};
}
template <class Formula, class V, class S>
GF_INLINE Exponents<V> exponents(V s, V t, const Frames<S>& frames) {
  const V from_old = t - frames.old_frame;
  V d, error;
  if constexpr (Formula::rounding == Rounding::direct) {
    const V difference = s - t;
    d = difference - frames.shift;
    error = lost<Formula>(s, t, difference);
  } else {
    const V from_new = s - frames.new_frame;
    d = from_new - from_old;
    error = lost<Formula>(from_new, from_old, d) +
            (lost<Formula>(s, V{} + frames.new_frame, from_new) - lost<Formula>(t, V{} + frames.old_frame, from_old));
  }
  return {from_old * frames.inverse, (d + error) * frames.inverse};
}

}  // namespace
}  // namespace graceful_fast
