// scan, the ending `collect`: of each query the rows that may still be among its k best, in bounded memory.
//
// A candidate's definition lies within `error` of its scan score. floor = the k-th largest lower bound seen so far, of
// this task or another: a row whose upper bound is below it is out for good. A full buffer is cut by the floor; if that
// does not help (ties, near-duplicates) it is settled in float64 and cut to the k best, so it never holds more than
// `capacity`.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <new>

#include "cpu/scan.h"
#include "cpu/scan_tile.h"
#include "math/bound.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }

// Uninitialised memory on a cache line. Not std::vector: its code would be shared between instruction sets (isa.h).
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size_t(count) * sizeof(T) + 127) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  operator T*() const { return data_; }

 private:
  T* data_;
};

struct Candidate {
  float score, error;  // scaled units
  int64_t row;
};

struct Settled {
  double key;  // the definition; for l2 negated: larger is better
  int64_t row;
};

inline bool better(const Settled& a, const Settled& b) { return a.key > b.key || (a.key == b.key && a.row < b.row); }

struct Query {
  double norm;    // scaled, rounded up; infinity: settle everything
  double square;  // q.q by definition
  double unit;    // definition -> scaled units: ip of the query's and the gallery's scale, l2 of the scale squared
  double floor;
  int64_t count;  // candidates
};

template <class T>
class Collector {
 public:
  Collector(const CollectParams& params, int64_t first, int64_t count, bool in_place, CollectReport& report)
      : queries(count),
        bound(params.dim, params.metric == Metric::l2, in_place),
        p_(params),
        first_(first),
        // Twice k: a staler floor lets more rows in, a fresher one costs more cuts. 32 keeps cuts rare for small k.
        capacity_(least(2 * params.k, params.gallery.rows) + 32),
        kept_((capacity_ + params.k) / 2),
        candidates_(count * capacity_),
        settled_(capacity_),
        bounds_(capacity_),
        query_(params.dim + 8),
        report_(report) {}

  // The scan score from which a row of norm at most `row_norm` may matter to query i, rounded down to float32.
  float threshold(int64_t i, double row_norm) const {
    const double limit = queries[i].floor - bound.error(queries[i].norm, row_norm);
    return float(limit - (limit < 0 ? -limit : limit) * 0x1p-22 - 0x1p-100);
  }

  void share_floor(int64_t i) {  // with the tasks that scan other rows for this query: any valid floor is right
    double* shared = p_.floor + first_ + i;
    double seen;
    __atomic_load(shared, &seen, __ATOMIC_RELAXED);
    while (seen < queries[i].floor &&
           !__atomic_compare_exchange(shared, &seen, &queries[i].floor, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    if (seen > queries[i].floor) queries[i].floor = seen;
  }

  // Offers a row to query i; true if the floor may have risen.
  bool add(int64_t i, int64_t row, float score, double row_norm) {
    Query& query = queries[i];
    const double error = bound.error(query.norm, row_norm) * (1 + 0x1p-22);
    if (score + error < query.floor || excluded(i, row)) return false;
    candidates_[i * capacity_ + query.count++] = {score, float(error), row};
    if (query.count < capacity_) return false;
    cut(i);
    return true;
  }

  void finish(int64_t i, double* keys, int64_t* rows) {
    raise_floor(i);
    const int64_t n = settle(i);
    std::sort(+settled_, settled_ + n, [](const Settled& a, const Settled& b) { return better(a, b); });
    for (int64_t j = 0; j < p_.k; ++j) {
      keys[j] = j < n ? settled_[j].key : -__builtin_inf();
      rows[j] = j < n ? settled_[j].row : -1;
    }
  }

  Buffer<Query> queries;
  const Bound bound;

 private:
  bool excluded(int64_t i, int64_t row) const {
    return (p_.query_ids && p_.query_ids[first_ + i] == p_.gallery_ids[row]) ||
           (p_.query_groups && p_.query_groups[first_ + i] == p_.gallery_groups[row]);
  }

  static double lowest(const Candidate& candidate) { return double(candidate.score) - candidate.error; }

  // The k-th largest lower bound becomes the floor; candidates that end below it leave.
  void raise_floor(int64_t i) {
    Query& query = queries[i];
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
    Query& query = queries[i];
    if (query.count <= kept_) return;
    const int64_t n = settle(i);
    double floor = __builtin_inf();
    for (int64_t j = 0; j < n; ++j) {
      const Candidate candidate = in_scan_units(query, settled_[j]);
      candidates_[i * capacity_ + j] = candidate;
      if (lowest(candidate) < floor) floor = lowest(candidate);
    }
    query.count = n;
    if (n == p_.k && floor > query.floor) query.floor = floor;
  }

  // The definition of every candidate; the k best first, in no order. How many there are.
  int64_t settle(int64_t i) {
    const Query& query = queries[i];
    const Candidate* const mine = candidates_ + i * capacity_;
    widen_query(i);
    const double root = __builtin_sqrt(query.square);
    for (int64_t j = 0; j < query.count; ++j) {
      if (j + kAhead < query.count) prefetch(gallery_row(mine[j + kAhead].row));
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
    report_.settled += query.count;
    if (query.count <= p_.k) return query.count;
    std::nth_element(+settled_, settled_ + (p_.k - 1), settled_ + query.count,
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
    return {float(score), float(error * (1 + 0x1p-22)), settled.row};
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

  const CollectParams& p_;
  const int64_t first_, capacity_, kept_;
  Buffer<Candidate> candidates_;  // [queries, capacity]
  Buffer<Settled> settled_;       // [capacity] of the query being settled
  Buffer<double> bounds_;         // [capacity] of the query being cut
  Buffer<double> query_;          // [dim] of the query being settled, zeros up to a multiple of 8
  CollectReport& report_;
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
