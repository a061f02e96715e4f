// scan, counts of rows among a query's sorted positives.
#pragma once
#include <algorithm>

#include "cpu/scan_count.h"

namespace graceful_fast {
namespace {

// Of one query with `count` positives, by place in the sorted order.
struct Tally {
  int64_t* between;  // [count + 1] rows worse than the positive before this place, better than the one at it
  int64_t* equal;    // [count] rows as good as the positive at this place, the first of its key
  int64_t* before;   // [count] of those: the next row among the positives of this key is the one at this place

  Tally(const CountParams& p, int64_t query, int64_t part) {
    const int64_t positives = p.start[p.queries.rows];
    int64_t* const mine = p.tallies + part * (3 * positives + p.queries.rows);
    between = mine + p.start[query] + query;
    equal = mine + positives + p.queries.rows + p.start[query];
    before = equal + positives;
  }

  struct Place {
    int64_t between, equal, before;
    void operator+=(const Place& other) {
      between += other.between;
      equal += other.equal;
      before += other.before;
    }
  };
  Place at(int64_t place) const { return {between[place], equal[place], before[place]}; }

  // Counts a row of known key.
  void add(const double* keys, const int64_t* rows, int64_t count, double key, int64_t row) {
    const auto descending = [](double a, double b) { return a > b; };
    const int64_t at = std::lower_bound(keys, keys + count, key, descending) - keys;
    if (at == count || keys[at] < key) {
      ++between[at];
      return;
    }
    ++equal[at];
    const int64_t end = std::upper_bound(keys + at, keys + count, key, descending) - keys;
    const int64_t next =
        std::upper_bound(rows + at, rows + end, row, [](int64_t a, int64_t b) { return a < b; }) - rows;
    if (next < end) ++before[next];
  }
};

}  // namespace
}  // namespace graceful_fast
