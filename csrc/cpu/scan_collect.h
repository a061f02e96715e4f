// scan, the ending `collect`: of each query the rows that may still be among its k best, in bounded memory.
//
// A candidate's definition lies within `error` of its scan score. floor = the k-th largest lower bound seen so far, of this
// task or another: a row whose upper bound is below it is out for good. A full buffer is cut by the floor; if that does
// not help (ties, near-duplicates) it is settled in float64 and cut to the k best, so it never holds more than `capacity`.
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
  explicit Buffer(int64_t count) : data_(static_cast<T*>(std::aligned_alloc(64, (size_t(count) * sizeof(T) + 127) / 64 * 64))) {
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
  double score;  // scaled units
  int64_t row;
  float error;
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
  Collector(const CollectParams& params, int64_t first, int64_t count, CollectReport& report)
      : queries(count),
        p_(params),
        first_(first),
        // A third of the buffer at most outlives a cut by the floor in ordinary data; 64 keeps cuts rare for small k.
        capacity_(most(least(3 * params.k, params.gallery.count) + 64, params.k + 2 * kN)),
        kept_((capacity_ + params.k) / 2),
        bound_(params.dim, params.metric == Metric::l2),
        candidates_(count * capacity_),
        settled_(capacity_),
        bounds_(capacity_),
        query_(params.dim + 8),
        report_(report) {}

  // The scan score from which a row of norm at most `row_norm` may matter to query i, rounded down to float32.
  float threshold(int64_t i, double row_norm) const {
    const double limit = queries[i].floor - bound_.error(queries[i].norm, row_norm);
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

  // Offers the rows row0 + j of the set bits j; true if the floor may have risen.
  bool add(int64_t i, int64_t row0, uint32_t reached, const float* scores, const double* norms) {
    Query& query = queries[i];
    Candidate* const mine = candidates_ + i * capacity_;
    for (; reached; reached &= reached - 1) {
      const int j = __builtin_ctz(reached);
      const int64_t row = row0 + j;
      const double score = scores[j], error = bound_.error(query.norm, norms[j]) * (1 + 0x1p-22);
      if (score + error < query.floor || excluded(i, row)) continue;
      mine[query.count++] = {score, row, float(error)};
    }
    if (query.count + kN <= capacity_) return false;
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

 private:
  bool excluded(int64_t i, int64_t row) const {
    return (p_.query_ids && p_.query_ids[first_ + i] == p_.gallery_ids[row]) ||
           (p_.query_groups && p_.query_groups[first_ + i] == p_.gallery_groups[row]);
  }

  // The k-th largest lower bound becomes the floor; candidates that end below it leave.
  void raise_floor(int64_t i) {
    Query& query = queries[i];
    Candidate* const mine = candidates_ + i * capacity_;
    if (query.count >= p_.k) {
      for (int64_t j = 0; j < query.count; ++j) bounds_[j] = mine[j].score - mine[j].error;
      std::nth_element(+bounds_, bounds_ + (p_.k - 1), bounds_ + query.count, [](double a, double b) { return a > b; });
      if (bounds_[p_.k - 1] > query.floor) query.floor = bounds_[p_.k - 1];
    }
    share_floor(i);
    int64_t kept = 0;
    for (int64_t j = 0; j < query.count; ++j) {
      const Candidate candidate = mine[j];
      if (candidate.score + candidate.error >= query.floor) mine[kept++] = candidate;
    }
    query.count = kept;
  }

  void cut(int64_t i) {
    raise_floor(i);
    Query& query = queries[i];
    if (query.count <= kept_) return;
    const int64_t n = settle(i);
    for (int64_t j = 0; j < n; ++j) {
      candidates_[i * capacity_ + j] = in_scan_units(query, settled_[j]);
      const Candidate& candidate = candidates_[i * capacity_ + j];
      bounds_[j] = candidate.score - candidate.error;
    }
    query.count = n;
    if (n == p_.k) {
      double lowest = bounds_[0];
      for (int64_t j = 1; j < n; ++j) lowest = bounds_[j] < lowest ? bounds_[j] : lowest;
      if (lowest > query.floor) query.floor = lowest;
    }
  }

  // The definition of every candidate; the k best first, in no order. How many there are.
  int64_t settle(int64_t i) {
    const Query& query = queries[i];
    widen_query(i);
    const double root = __builtin_sqrt(query.square);
    for (int64_t j = 0; j < query.count; ++j) {
      const int64_t row = candidates_[i * capacity_ + j].row;
      const T* x = static_cast<const T*>(p_.gallery.data) + row * p_.gallery.row_stride;
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
    if (!(__builtin_fabs(score) < 0x1p1000) || query.norm > kLargestNorm) return {0, settled.row, __builtin_inff()};
    return {score, settled.row, float(error * (1 + 0x1p-22))};
  }

  void widen_query(int64_t i);

  const CollectParams& p_;
  const int64_t first_, capacity_, kept_;
  const Bound bound_;
  Buffer<Candidate> candidates_;  // [queries, capacity]
  Buffer<Settled> settled_;       // [capacity] of the query being settled
  Buffer<double> bounds_;         // [capacity] of the query being cut
  Buffer<double> query_;          // [dim] of the query being settled, zeros up to a multiple of 8
  CollectReport& report_;
};

// Calls use(pointer to the element type) with the first row.
template <class Use>
inline auto with_type(const Rows& rows, Use use) {
  switch (rows.type) {
    case Element::float64:
      return use(static_cast<const double*>(rows.data));
    case Element::float16:
      return use(static_cast<const Half*>(rows.data));
    case Element::bfloat16:
      return use(static_cast<const BFloat16*>(rows.data));
    default:
      return use(static_cast<const float*>(rows.data));
  }
}

template <class T>
void Collector<T>::widen_query(int64_t i) {
  with_type(p_.queries, [&](const auto* data) {
    const auto* q = data + (first_ + i) * p_.queries.row_stride;
    for (int64_t j = 0; j < p_.dim; ++j) query_[j] = double(widen(q[j]));
  });
  for (int64_t j = p_.dim; j % 8; ++j) query_[j] = 0;
}

}  // namespace
}  // namespace graceful_fast
