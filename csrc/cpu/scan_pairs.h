// scan, what the endings over all pairs share: which pairs count, which are genuine, and where those to keep go.
#pragma once
#include "cpu/scan_engine.h"
#include "cpu/scan_histogram.h"

namespace graceful_fast {
namespace {

// Pairs on their way out: the shared count is touched once for many. `move(to, i)` stores the i-th of them.
template <class Item>
class Kept {
 public:
  explicit Kept(const PairParams& params) : p_(params), items_(kTogether) {}

  template <class Move>
  void add(const Item& item, Move move) {
    items_[count_] = item;
    if (++count_ == kTogether) flush(move);
  }

  template <class Move>
  void flush(Move move) {
    const int64_t from = __atomic_fetch_add(p_.kept, count_, __ATOMIC_RELAXED);
    const int64_t room = most(0, least(count_, p_.capacity - from));
    for (int64_t i = 0; i < room; ++i) move(from + i, items_[i]);
    count_ = 0;
  }

 private:
  static constexpr int64_t kTogether = 1024;
  const PairParams& p_;
  Buffer<Item> items_;
  int64_t count_ = 0;
};

// Counters of one task: 32 bits, half the cache of 64; added to the shared ones before they could overflow.
class Bins {
 public:
  explicit Bins(const PairParams& params) : p_(params), counts_(2 * params.bins + kVectorBytes) {
    for (int64_t i = 0; i < 2 * p_.bins + kVectorBytes; ++i) counts_[i] = 0;
  }

  uint32_t* counts() const { return counts_; }     // [2 * bins] impostors, genuine, and one more:
  int64_t nowhere() const { return 2 * p_.bins; }  // for pairs that do not count

  void expect(int64_t pairs) {
    if ((expected_ += pairs) >= int64_t(1) << 31) flush(), expected_ = pairs;
  }

  void flush() {
    for (int64_t i = 0; i < 2 * p_.bins; ++i) {
      if (counts_[i]) __atomic_fetch_add(p_.counts + i, int64_t(counts_[i]), __ATOMIC_RELAXED);
      counts_[i] = 0;
    }
  }

 private:
  const PairParams& p_;
  Buffer<uint32_t> counts_;
  int64_t expected_ = 0;
};

// Which pairs of one query with the rows of a tile count, and which are genuine: a bit for each column.
struct Wanted {
  uint32_t valid, genuine;
};

GF_INLINE uint32_t equal_bits(const int32_t* values, int32_t value) {
  const Ints same = Ints{} + value;
  return bits(load<Ints>(values) == same) | bits(load<Ints>(values + kFloats) == same) << kFloats;
}

GF_INLINE Wanted wanted(const PairParams& p, int64_t query, int64_t row, int64_t columns) {
  uint64_t valid = (uint64_t(1) << columns) - 1;
  if (p.within && row <= query)
    valid = query + 1 - row >= columns ? 0 : valid & ~((uint64_t(1) << (query + 1 - row)) - 1);
  Wanted found{uint32_t(valid), equal_bits(p.row_labels + row, p.query_labels[query])};
  if (p.query_ids) found.valid &= ~equal_bits(p.row_ids + row, p.query_ids[query]);
  return found;
}

}  // namespace
}  // namespace graceful_fast
