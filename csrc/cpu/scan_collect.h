// scan, the ending `collect`: of each query the rows that may still be among its k best, in bounded memory.
//
// A candidate's definition lies within `error` of its scan score. floor = the k-th largest lower bound seen so far, of
// this task or another: a row whose upper bound is below it is out for good. A full buffer is cut by the floor; if that
// does not help (ties, near-duplicates) it is settled in float64 and cut to the k best, so it never holds more than
// `capacity`.
#pragma once
#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/scan_engine.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

struct Candidate {
  float score, error;  // scaled units
  int64_t row;
};

struct Settled {
  double key;  // the definition; for l2 negated: larger is better
  int64_t row;
};

inline bool better(const Settled& a, const Settled& b) { return a.key > b.key || (a.key == b.key && a.row < b.row); }

template <class T>
class Collector {
 public:
  Collector(const CollectParams& params, const Task& task, const Query* queries, ScanReport& report)
      : p_(params),
        queries_(queries),
        first_(task.query_begin),
        count_(task.query_end - task.query_begin),
        // Twice k: a staler floor lets more rows in, a fresher one costs more cuts. 32 keeps cuts rare for small k.
        capacity_(least(2 * params.k, params.gallery.rows) + (params.coded ? kCodedRoom : kRoom)),
        kept_((capacity_ + params.k) / 2),
        states_(count_),
        candidates_(count_ * capacity_),
        settled_(capacity_),
        bounds_(capacity_),
        query_(params.dim + 8),
        report_(report) {}

  // What earlier blocks of the gallery have found.
  void begin() {
    for (int64_t i = 0; i < count_; ++i) {
      states_[i] = {-__builtin_inf(), 0};
      const int64_t last = (first_ + i + 1) * p_.k - 1;
      if (p_.best_rows[last] >= 0) {
        states_[i].floor = lowest(in_scan_units(queries_[i], {p_.best_keys[last], p_.best_rows[last]}));
      }
      share_floor(i);
    }
  }

  double floor(int64_t i) const { return states_[i].floor; }
  static bool skips(int64_t, int64_t) { return false; }

  template <class Engine>
  void refresh(const Engine&) {
    for (int64_t i = 0; p_.gallery_parts > 1 && i < count_; ++i) share_floor(i);
  }

  // The candidates so far will come again: only what they say about the floor stays.
  void end_seed() {
    for (int64_t i = 0; i < count_; ++i) {
      raise_floor(i);
      states_[i].count = 0;
    }
  }

  // One loop over all set bits of the tile: a loop for each query would mispredict its end each time.
  template <class Engine>
  void take(Engine& engine, const Tile& tile) {
    constexpr int kTogether = 64 / kN;  // queries in a word
    const uint64_t valid = (uint64_t(1) << tile.columns) - 1;
    for (int64_t r0 = 0; r0 < tile.queries; r0 += kTogether) {
      uint64_t word = 0;
      for (int64_t r = r0; r < least(r0 + kTogether, tile.queries); ++r) {
        word |= (tile.reached[r] & valid) << (r - r0) * kN;
      }
      for (; word; word &= word - 1) {
        const int bit = __builtin_ctzll(word), j = bit % kN;
        const int64_t r = r0 + bit / kN, query = tile.query + r, slot = tile.slot + j;
        if (add(query, engine.row(slot), tile.scores[r * kN + j], engine.error(query, slot))) engine.raised(query);
      }
    }
  }

  // Sorted, k of each query, -1 where there is none.
  void finish(int64_t part) {
    for (int64_t i = 0; i < count_; ++i) raise_floor(i);
    if (p_.cold) bring_in();
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t n = settle(i);
      std::sort(+settled_, settled_ + n, [](const Settled& a, const Settled& b) { return better(a, b); });
      const int64_t at = ((first_ + i) * p_.gallery_parts + part) * p_.k;
      for (int64_t j = 0; j < p_.k; ++j) {
        p_.keys[at + j] = j < n ? settled_[j].key : -__builtin_inf();
        p_.rows[at + j] = j < n ? settled_[j].row + p_.first_row : -1;
      }
    }
  }

 private:
  struct State {
    double floor;
    int64_t count;  // candidates
  };

  // Takes the floor from the tasks that scan other rows for this query, and gives its own: any valid floor is right.
  void share_floor(int64_t i) {
    double* const shared = p_.floor + first_ + i;
    double seen;
    __atomic_load(shared, &seen, __ATOMIC_RELAXED);
    while (seen < states_[i].floor &&
           !__atomic_compare_exchange(shared, &seen, &states_[i].floor, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    if (seen > states_[i].floor) states_[i].floor = seen;
  }

  // True if the floor may have risen.
  bool add(int64_t i, int64_t row, float score, double error) {
    State& state = states_[i];
    if (score + error < state.floor || excluded(i, row)) return false;
    candidates_[i * capacity_ + state.count++] = {score, above(error), row};
    if (state.count < capacity_) return false;
    cut(i);
    return true;
  }

  static float above(double error) { return float(error * (1 + 0x1p-22)); }

  bool excluded(int64_t i, int64_t row) const {
    return (p_.query_ids && p_.query_ids[first_ + i] == p_.gallery_ids[row]) ||
           (p_.query_groups && p_.query_groups[first_ + i] == p_.gallery_groups[row]);
  }

  static double lowest(const Candidate& candidate) { return double(candidate.score) - candidate.error; }

  // The k-th largest lower bound becomes the floor; candidates that end below it leave.
  void raise_floor(int64_t i) {
    State& query = states_[i];
    Candidate* const mine = candidates_ + i * capacity_;
    if (query.count >= p_.k) {
      for (int64_t j = 0; j < query.count; ++j) bounds_[j] = lowest(mine[j]);
      std::nth_element(+bounds_, bounds_ + (p_.k - 1), bounds_ + query.count, [](double a, double b) { return a > b; });
      if (bounds_[p_.k - 1] > query.floor) query.floor = bounds_[p_.k - 1];
    }
    share_floor(i);
    int64_t kept = 0;
    for (int64_t j = 0; j < query.count; ++j) {
      const Candidate candidate = mine[j];
      if (double(candidate.score) + candidate.error >= query.floor) mine[kept++] = candidate;
    }
    query.count = kept;
  }

  void cut(int64_t i) {
    raise_floor(i);
    State& query = states_[i];
    if (query.count <= kept_) return;
    ++report_.cuts;
    const int64_t n = settle(i);
    double floor = __builtin_inf();
    for (int64_t j = 0; j < n; ++j) {
      const Candidate candidate = in_scan_units(queries_[i], settled_[j]);
      candidates_[i * capacity_ + j] = candidate;
      if (lowest(candidate) < floor) floor = lowest(candidate);
    }
    query.count = n;
    if (n == p_.k && floor > query.floor) query.floor = floor;
  }

  // The definition of every candidate; the k best first, in no order. How many there are.
  int64_t settle(int64_t i) {
    const int64_t count = states_[i].count;
    const Candidate* const mine = candidates_ + i * capacity_;
    widen_query(i);
    const double root = __builtin_sqrt(queries_[i].square);
    for (int64_t j = 0; j < count; ++j) {
      if (j + kAhead < count) prefetch(gallery_row(mine[j + kAhead].row));
      const int64_t row = mine[j].row;
      const T* x = gallery_row(row);
      double key;
      if (p_.metric == Metric::l2) {
        key = -squared_distance<T>(query_, x, p_.dim);
      } else {
        key = inner_product<T>(query_, x, p_.dim);
        if (p_.metric == Metric::cosine) key /= root * __builtin_sqrt(squared_norm(x, p_.dim));
      }
      settled_[j] = {key, row};
    }
    report_.settled += count;
    if (count <= p_.k) return count;
    std::nth_element(+settled_, settled_ + (p_.k - 1), settled_ + count,
                     [](const Settled& a, const Settled& b) { return better(a, b); });
    return p_.k;
  }

  Candidate in_scan_units(const Query& query, const Settled& settled) const {
    double score = settled.key * query.unit, error = 0x1p-100;
    if (p_.metric == Metric::l2) {
      const double square = query.square * query.unit;
      error += 0x1p-52 * (square - score);
      score = (square + score) / 2;
    }
    error += 0x1p-23 * __builtin_fabs(score);  // it is kept as float32
    if (!(__builtin_fabs(score) < 0x1p125) || query.norm > kLargestNorm) return {0, __builtin_inff(), settled.row};
    return {float(score), above(error), settled.row};
  }

  void widen_query(int64_t i);

  static constexpr int64_t kAhead = 4;  // rows: about the latency of memory over the time of one row

  const T* gallery_row(int64_t row) const {
    return static_cast<const T*>(p_.gallery.data) + row * p_.gallery.row_stride;
  }

  void prefetch(
      const T* row) const {  // candidates lie anywhere; the hardware follows a row by itself after a few lines
    const int64_t bytes = least(p_.dim * int64_t(sizeof(T)), 512);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(row) + at);
  }

  // Touches the candidates' rows in ascending order: a disk likes that better than the order of the queries.
  void bring_in() {
    int64_t total = 0;
    for (int64_t i = 0; i < count_; ++i) total += states_[i].count;
    Buffer<int64_t> rows(total);
    total = 0;
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t j = 0; j < states_[i].count; ++j) rows[total++] = candidates_[i * capacity_ + j].row;
    }
    std::sort(+rows, rows + total, [](int64_t a, int64_t b) { return a < b; });
    constexpr int64_t kPage = 4096;
    for (int64_t j = 0; j < total; ++j) {
      const volatile char* const row = reinterpret_cast<const volatile char*>(gallery_row(rows[j]));
      const int64_t bytes = p_.dim * int64_t(sizeof(T));
      for (int64_t at = 0; at < bytes; at += kPage) (void)row[at];
      (void)row[bytes - 1];
    }
  }

  static constexpr int64_t kRoom = 32, kCodedRoom = 128;

  const CollectParams& p_;
  const Query* const queries_;
  const int64_t first_, count_, capacity_, kept_;
  Buffer<State> states_;
  Buffer<Candidate> candidates_;  // [queries, capacity]
  Buffer<Settled> settled_;       // [capacity] of the query being settled
  Buffer<double> bounds_;         // [capacity] of the query being cut
  Buffer<double> query_;          // [dim] of the query being settled, zeros up to a multiple of 8
  ScanReport& report_;
};

template <class T>
void Collector<T>::widen_query(int64_t i) {
  with_elements(p_.queries, [&](const auto* data) {
    const auto* q = data + (first_ + i) * p_.queries.row_stride;
    for (int64_t j = 0; j < p_.dim; ++j) query_[j] = double(widen(q[j]));
  });
  for (int64_t j = p_.dim; j % 8; ++j) query_[j] = 0;
}

}  // namespace
}  // namespace graceful_fast
