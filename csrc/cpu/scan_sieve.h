// scan, the ending `between`: the pairs whose exact score may lie between two keys, settled, counted and kept; of all
// others only how many lie below and above.
#pragma once
#include "cpu/scan_definition.h"
#include "cpu/scan_pairs.h"

namespace graceful_fast {
namespace {

// float64 as integers in the same order; -0.0 and 0.0 are one. As in graceful_fast/_error_rates.py.
inline int64_t ordered(double key) {
  int64_t bits;
  std::memcpy(&bits, &key, sizeof bits);
  return bits < 0 ? INT64_MIN - bits : bits;
}
inline double unordered(int64_t value) {
  const int64_t bits = value >= 0 ? value : INT64_MIN - value;
  double key;
  std::memcpy(&key, &bits, sizeof key);
  return key;
}

template <class T>
class Sieve {
 public:
  Sieve(const BetweenParams& params, const Task& task, const Query* queries, ScanReport& report)
      : p_(params),
        queries_(queries),
        first_(task.query_begin),
        count_(task.query_end - task.query_begin),
        definition_(params),
        bins_(params),
        kept_(params),
        limits_(2 * count_),
        report_(report) {}

  void begin() {}
  static int64_t seeds(int64_t) { return 0; }
  void end_seed(bool) {}
  double floor(int64_t) const { return -__builtin_inf(); }
  bool skips(int64_t i, int64_t row) const { return p_.within && row <= first_ + i; }

  template <class Engine>
  void refresh(const Engine& engine) {
    bins_.expect(count_ * engine.chunk.count);
    const uint64_t values = uint64_t(p_.bins - 2) << p_.shift;
    const bool open = uint64_t(ordered(kLargest)) - uint64_t(p_.lowest) < values;
    const double low = unordered(p_.lowest), high = open ? kLargest : unordered(p_.lowest + int64_t(values - 1));
    for (int64_t i = 0; i < count_; ++i) {
      const KeyInScan from = key_in_scan(queries_[i], low, p_.metric);
      const KeyInScan to = key_in_scan(queries_[i], high, p_.metric);
      limits_[2 * i] = rounded_down(from.score - from.error - engine.largest_error(i));
      limits_[2 * i + 1] = rounded_up(to.score + to.error + engine.largest_error(i));
    }
  }

  template <class Engine>
  void take(Engine& engine, const Tile& tile) {
    const int64_t row = engine.row(tile.slot);
    uint32_t* const counts = bins_.counts();
    for (int64_t r = 0; r < tile.queries; ++r) {
      const int64_t i = tile.query + r;
      const Wanted pairs = wanted(p_, first_ + i, row, tile.columns);
      const Floats low = broadcast(limits_[2 * i]), high = broadcast(limits_[2 * i + 1]);
      uint32_t below = 0, above = 0;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Floats score = load<Floats>(tile.scores + r * kN + half * kFloats);
        below |= bits(score < low) << half * kFloats;
        above |= bits(score > high) << half * kFloats;
      }
      below &= pairs.valid, above &= pairs.valid;
      counts[0] += __builtin_popcount(below & ~pairs.genuine);
      counts[p_.bins] += __builtin_popcount(below & pairs.genuine);
      counts[p_.bins - 1] += __builtin_popcount(above & ~pairs.genuine);
      counts[2 * p_.bins - 1] += __builtin_popcount(above & pairs.genuine);
      for (uint32_t unsure = pairs.valid & ~below & ~above; unsure; unsure &= unsure - 1) {
        const int j = __builtin_ctz(unsure);
        settle(first_ + i, row + j, pairs.genuine >> j & 1);
      }
    }
  }

  void finish() {
    bins_.flush();
    kept_.flush(move());
  }

 private:
  static constexpr double kLargest = __DBL_MAX__;

  struct Item {
    double key;
    uint8_t genuine;
  };
  auto move() const {
    return [this](int64_t to, const Item& item) { p_.keys[to] = item.key, p_.kinds[to] = item.genuine; };
  }

  void settle(int64_t query, int64_t row, uint32_t genuine) {
    if (query != chosen_) definition_.choose(chosen_ = query);
    const double key = definition_.key(row);
    const int64_t value = ordered(key), last = p_.bins - 1;
    const uint64_t place = (uint64_t(value) - uint64_t(p_.lowest)) >> p_.shift;
    const int64_t bin = value < p_.lowest ? 0 : place >= uint64_t(last - 1) ? last : int64_t(place) + 1;
    ++bins_.counts()[genuine * p_.bins + bin];
    if (bin > 0 && bin < last) kept_.add({key, uint8_t(genuine)}, move());
    ++report_.settled;
  }

  const BetweenParams& p_;
  const Query* const queries_;
  const int64_t first_, count_;
  Definition<T> definition_;
  int64_t chosen_ = -1;  // the query of the definition
  Bins bins_;
  Kept<Item> kept_;
  Buffer<float> limits_;  // [count, 2] scores below the first are surely below the range, above the second above it
  ScanReport& report_;
};

}  // namespace
}  // namespace graceful_fast
