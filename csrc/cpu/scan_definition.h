// scan, the float64 definition of one query's scores (math/settle.h): what decides wherever scan scores cannot.
#pragma once
#include "cpu/buffer.h"
#include "cpu/scan.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

struct Settled {
  double key;  // the definition; for l2 negated: larger is better
  int64_t row;
};

inline bool better(const Settled& a, const Settled& b) { return a.key > b.key || (a.key == b.key && a.row < b.row); }

template <class T>
class Definition {
 public:
  explicit Definition(const ScanParams& params) : p_(params), query_(params.dim + 8) {}

  void choose(int64_t query) {  // of params.queries
    choose(query, with_elements(p_.queries, [&](const auto* data) {
             return p_.metric == Metric::cosine ? squared_norm(data + query * p_.queries.row_stride, p_.dim) : 0.0;
           }));
  }

  void choose(int64_t query, double square) {  // square: its q.q by definition
    with_elements(p_.queries, [&](const auto* data) {
      const auto* q = data + query * p_.queries.row_stride;
      for (int64_t j = 0; j < p_.dim; ++j) query_[j] = double(widen(q[j]));
    });
    for (int64_t j = p_.dim; j % 8; ++j) query_[j] = 0;
    root_ = __builtin_sqrt(square);
  }

  void prefetch_pair(int64_t query, int64_t row) const {
    with_elements(p_.queries, [&](const auto* data) { prefetch(data + query * p_.queries.row_stride); });
    prefetch(gallery_row(row));
  }

  double key(int64_t row) const {
    const T* x = gallery_row(row);
    if (p_.metric == Metric::l2) return -squared_distance<T>(query_, x, p_.dim);
    const double product = inner_product<T>(query_, x, p_.dim);
    return p_.metric == Metric::ip ? product : product / (root_ * __builtin_sqrt(squared_norm(x, p_.dim)));
  }

  // `keys` of many rows: they lie anywhere, and the hardware follows a row by itself only after a few lines.
  template <class RowOf, class Use>
  void each(int64_t count, RowOf row_of, Use use) const {
    constexpr int64_t kAhead = 4;  // rows: about the latency of memory over the time of one row
    for (int64_t j = 0; j < count; ++j) {
      if (j + kAhead < count) prefetch(gallery_row(row_of(j + kAhead)));
      use(j, Settled{key(row_of(j)), row_of(j)});
    }
  }

 private:
  const T* gallery_row(int64_t row) const {
    return static_cast<const T*>(p_.gallery.data) + row * p_.gallery.row_stride;
  }

  template <class Value>
  void prefetch(const Value* row) const {
    const int64_t bytes = least(p_.dim * int64_t(sizeof(Value)), 4096);
    for (int64_t at = 0; at < bytes; at += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(row) + at, 0,
                         2);  // to L2, which can wait for more lines than L1
    }
  }

  const ScanParams& p_;
  Buffer<double> query_;  // [dim], zeros up to a multiple of 8
  double root_ = 0;       // |q|, for cosine
};

}  // namespace
}  // namespace graceful_fast
