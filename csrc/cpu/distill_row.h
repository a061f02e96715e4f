// distill, what both directions share: a row of logits in blocks, and which formulas hold for it
// (math/row_statistics.h).
#pragma once
#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/convert.h"
#include "cpu/distill.h"
#include "cpu/lanes.h"
#include "math/matrix.h"
#include "math/row_statistics.h"

namespace graceful_fast {
namespace {

constexpr int kBlock = 1024;         // 2 x 4 KiB of float32, and as much again when half types are widened: fits any L1
constexpr int kProbe = 128;          // classes that place the divergence's frame: its error is 1/11 of d's deviation
constexpr double kFewClasses = 8;    // less mass than these at the old maximum: it is somewhere else
constexpr double kPlain = 1024;      // 1/kPlain <= T <= kPlain for plain rounding: T^-7 stays a normal float32
constexpr double kMaxExponent = 20;  // |new_frame - max|/T: exp(d) stays far from overflow and underflow
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// How d is formed: from s - t where its mean is small beside the logits' spread, else from the logits' distances to
// their frames. What the first subtractions lost is added back (equal logits of 1,000 differ in their last digits)
// unless the mean is small beside d's own deviation: then s - t has the digits.
enum class Rounding { plain, direct, framed };
static_assert(int(Rounding::framed) == int(kFramed));

template <Path p, Rounding r>
struct Formula {
  static constexpr Path path = p;
  static constexpr Rounding rounding = r;
  static constexpr bool times_t = p == Path::calm && r == Rounding::plain;  // u and d come as T u and T d
};

template <class F>
void with_formula(Path path, Rounding rounding, F&& f) {
  const auto with_path = [&](auto r) {
    constexpr Rounding rounded = decltype(r)::value;
    if (path == Path::calm) return f(Formula<Path::calm, rounded>{});
    if (path == Path::near) return f(Formula<Path::near, rounded>{});
    f(Formula<Path::far, rounded>{});
  };
  if (rounding == Rounding::plain) return with_path(std::integral_constant<Rounding, Rounding::plain>{});
  if (rounding == Rounding::direct) return with_path(std::integral_constant<Rounding, Rounding::direct>{});
  with_path(std::integral_constant<Rounding, Rounding::framed>{});
}

// One row of logits, read in blocks of the type that the kernel computes in, or of a half type if the row is of that.
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
      if constexpr (std::is_floating_point_v<S>) widen_block(from, n, buffer);
      constexpr int kLine = 64 / sizeof *from;
      for (int j = n; j < 2 * n; j += kLine) __builtin_prefetch(from + j);  // the next block, or the next row
      return buffer;
    });
  }
  double operator[](int64_t j) const {
    return with_type(type, [&](auto t) { return double(widen(static_cast<const decltype(t)*>(data)[j])); });
  }
};

// The columns of both logits that are one class, as far as a block of new columns start..start+n-1 has them.
class Pairs {
 public:
  explicit Pairs(const DistillRows& rows) : rows_(rows) {}

  // Blocks in ascending order. Without a map a block is of shared classes only or has none (see `block`).
  struct Range {
    int64_t begin;
    int n;
  };
  Range in(int64_t start, int n) {
    if (!rows_.new_column) return {start, start < rows_.pairs ? n : 0};
    const int64_t begin = next_;
    while (next_ < rows_.pairs && rows_.new_column[next_] < start + n) ++next_;
    return {begin, int(next_ - begin)};
  }
  // The length of the block at `start`: it does not cross the end of the shared classes.
  int block(int64_t start) const {
    const bool prefix = !rows_.new_column && start < rows_.pairs;
    return int(std::min<int64_t>(kBlock, (prefix ? rows_.pairs : rows_.new_logits.columns) - start));
  }
  // Pairs before a new column.
  int64_t before(int64_t column) const {
    if (!rows_.new_column) return std::clamp<int64_t>(column, 0, rows_.pairs);
    return std::lower_bound(rows_.new_column, rows_.new_column + rows_.pairs, column) - rows_.new_column;
  }
  // The old column of a new one, -1 if there is none.
  int64_t old_column(int64_t column) const {
    const int64_t pair = before(column);
    if (pair == rows_.pairs || (rows_.new_column && rows_.new_column[pair] != column)) return -1;
    return rows_.new_column ? rows_.old_column[pair] : pair;
  }
  template <class S>
  void gather(const Row<S>& row, const int64_t* columns, Range range, S* to) const {
    with_type(row.type, [&](auto t) {
      const auto* from = static_cast<const decltype(t)*>(row.data);
      for (int j = 0; j < range.n; ++j) {
        const auto& element = from[columns[range.begin + j]];
        if constexpr (std::is_same_v<decltype(t), S>) {
          to[j] = element;
        } else if constexpr (std::is_floating_point_v<S>) {
          to[j] = S(widen(element));
        }
      }
    });
  }

 private:
  const DistillRows& rows_;
  int64_t next_ = 0;
};

// The greatest of logits that are all -inf has no distance to any of them.
template <class S>
S finite_frame(double greatest) {
  return S(greatest == -kInfinity ? 0 : greatest);
}

template <class S>
struct Frames {
  S new_max, new_frame, old_frame, shift, inverse;  // shift: new_frame - old_frame; inverse: of the temperature

  Frames(double new_max, double new_frame, double old_frame, S inverse)
      : new_max(finite_frame<S>(new_max)),
        new_frame(S(new_frame)),
        old_frame(S(old_frame)),
        shift(S(new_frame - old_frame)),
        inverse(inverse) {}
};

// u and d of the head comment of math/row_statistics.h, T times themselves where the formula says so: there nothing but
// polynomials takes them, whose coefficients have the 1/T.
template <class V>
struct Exponents {
  V u, d;
};
template <class Formula, class S>
S unit(S inverse) {
  return Formula::times_t ? inverse : S(1);
}
// x moved towards 0 by `margin`, 0 within it
template <class V, class S>
GF_INLINE V beyond_margin(V x, S margin) {
  const V above = x - margin, below = x + margin;
  return x > V{} + margin ? above : x < V{} - margin ? below : x - x;
}

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
  if constexpr (Formula::times_t) return {from_old, (s - t) - frames.shift};
  if constexpr (Formula::rounding == Rounding::plain) {
    return {from_old * frames.inverse, ((s - t) - frames.shift) * frames.inverse};
  }
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
