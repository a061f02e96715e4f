// scan, the CPU kernel. A task owns a block of queries, packed once and resident, and a range of the gallery, read
// once:
//   1. a chunk of rows (it fits in L2 beside a block of queries) is checked, measured and packed into panels of kN
//   columns;
//   2. each panel (in L1) meets every panel of kM queries (from L2) in a register tile of float32 sums;
//   3. a tile none of whose scores reaches its query's threshold is forgotten; the others offer theirs to the
//   collector.
// Up to kDirect queries the rows are not packed but read where they lie: memory is the limit there.
#include <type_traits>

#include "cpu/scan.h"
#include "cpu/scan_collect.h"
#include "cpu/scan_measure.h"
#include "cpu/scan_tile.h"
#include "math/bound.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

constexpr int64_t kDirect = 4;                   // packing costs about as much as the products of 8 queries
constexpr int64_t kChunkBytes = 128 << 10;       // of packed rows: a quarter of the smallest L2 (512 KiB)
constexpr int64_t kQueryBlockBytes = 192 << 10;  // of packed queries: they share that L2 with the chunk
constexpr int64_t kMaxChunk = 1024;              // rows, for small D: thresholds are refreshed once a chunk

struct Task {
  int64_t query_begin, query_end, row_begin, row_end;

  Task(const CollectParams& p, int64_t index) {
    const auto cut = [](int64_t count, int64_t parts, int64_t part, int64_t unit) {
      const int64_t units = (count + unit - 1) / unit;
      return least(count, units * part / parts * unit);
    };
    const int64_t q = index / p.gallery_parts, g = index % p.gallery_parts;
    query_begin = cut(p.queries.rows, p.query_parts, q, kM);
    query_end = cut(p.queries.rows, p.query_parts, q + 1, kM);
    row_begin = cut(p.gallery.rows, p.gallery_parts, g, kN);
    row_end = cut(p.gallery.rows, p.gallery_parts, g + 1, kN);
  }
};

template <class T>
class Scan {
 public:
  Scan(const CollectParams& params, const Task& task, CollectReport& report)
      : p_(params),
        task_(task),
        count_(task.query_end - task.query_begin),
        panels_((count_ + kM - 1) / kM),
        chunk_(most(1, least(kMaxChunk, kChunkBytes / (4 * params.dim)) / kN) * kN),
        padded_((params.dim + 3) / 4 * 4),
        report_(report),
        collector_(params, task.query_begin, count_, count_ <= kDirect, report),
        queries_(panels_ * kM * params.dim),
        rows_(chunk_ * params.dim),
        scaled_(kN * padded_),
        thresholds_(panels_ * kM),
        starts_(chunk_),
        norms_(chunk_) {}

  void run() {
    if (!pack_queries()) return;
    for (int64_t row = task_.row_begin; row < task_.row_end; row += chunk_) {
      const int64_t count = least(chunk_, task_.row_end - row);
      if (!(count_ <= kDirect ? scan_in_place(row, count) : pack_rows(row, count))) return;
      if (count_ > kDirect) scan_packed(row, count);
    }
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t part = (task_.query_begin + i) * p_.gallery_parts + part_;
      collector_.finish(i, p_.keys + part * p_.k, p_.rows + part * p_.k);
    }
  }

  int64_t part_ = 0;  // which range of the gallery

 private:
  // Queries as panels [dim][kM]; in place: as rows, padded with nothing. False on a bad query.
  bool pack_queries() {
    for (int64_t i = 0; i < panels_ * kM; ++i)
      thresholds_[i] = __builtin_inff();  // the queries that fill the last panel
    for (int64_t i = 0; i < panels_ * kM * p_.dim; ++i) queries_[i] = 0;
    return with_elements(p_.queries, [&](const auto* data) {
      for (int64_t i = 0; i < count_; ++i) {
        const auto* q = data + (task_.query_begin + i) * p_.queries.row_stride;
        const double squared = squared_norm(q, p_.dim);
        const Fault fault = fault_of(q, p_.dim, squared, p_.metric);
        if (fault != Fault::none) {
          report_.query = task_.query_begin + i;
          report_.query_fault = fault;
          return false;
        }
        double scale;
        collector_.queries[i] = measure_query(squared, p_, scale);
        const int64_t step = count_ <= kDirect ? 1 : kM;
        float* to = count_ <= kDirect ? queries_ + i * p_.dim : queries_ + i / kM * kM * p_.dim + i % kM;
        for (int64_t j = 0; j < p_.dim; ++j) to[j * step] = float(double(widen(q[j])) * scale);
      }
      return true;
    });
  }

  const T* gallery_row(int64_t row) const {
    return static_cast<const T*>(p_.gallery.data) + row * p_.gallery.row_stride;
  }

  // False on a bad row.
  bool measure(int64_t row, int64_t slot, double& scale) {
    const T* x = gallery_row(row);
    const double squared = squared_norm(x, p_.dim);
    const Fault fault = fault_of(x, p_.dim, squared, p_.metric);
    if (fault != Fault::none) {
      report_.row = row;
      report_.row_fault = fault;
      return false;
    }
    const Measure measure = measure_row(squared, p_);
    scale = measure.scale;
    norms_[slot] = measure.norm;
    starts_[slot] = measure.start;
    return true;
  }

  // Chunk of rows -> panels [dim][kN] of scaled float32, with zero columns at the end.
  bool pack_rows(int64_t first, int64_t count) {
    const float* lines[4];
    for (int64_t slot = 0; slot < (count + kN - 1) / kN * kN; slot += 4) {
      for (int64_t j = 0; j < 4; ++j) {
        double scale = 0;
        norms_[slot + j] = starts_[slot + j] = 0;
        if (slot + j < count && !measure(first + slot + j, slot + j, scale)) return false;
        lines[j] = scaled_ + j * padded_;
        scale_row(gallery_row(first + least(slot + j, count - 1)), p_.dim, scale, scaled_ + j * padded_);
      }
      interleave4(lines, p_.dim, rows_ + slot / kN * kN * p_.dim + slot % kN, kN);
    }
    return true;
  }

  double refresh_thresholds(int64_t count) {
    double largest = 0x1p-100;
    for (int64_t j = 0; j < count; ++j) largest = norms_[j] > largest ? norms_[j] : largest;
    for (int64_t i = 0; i < count_; ++i) {
      if (p_.gallery_parts > 1) collector_.share_floor(i);
      thresholds_[i] = collector_.threshold(i, largest);
    }
    return largest;
  }

  void scan_packed(int64_t first, int64_t count) {
    const double largest = refresh_thresholds(count);
    const int64_t block = most(1, kQueryBlockBytes / (4 * kM * p_.dim));
    alignas(64) float scores[kM * kN];
    uint32_t reached[kM];
    for (int64_t begin = 0; begin < panels_; begin += block) {
      for (int64_t slot = 0; slot < count; slot += kN) {
        for (int64_t panel = begin; panel < least(begin + block, panels_); ++panel) {
          float* thresholds = thresholds_ + panel * kM;
          if (tile(queries_ + panel * kM * p_.dim, rows_ + slot * p_.dim, p_.dim, starts_ + slot, thresholds, scores,
                   reached)) {
            offer(panel * kM, first + slot, slot, least(kN, count - slot), scores, reached, largest);
          }
        }
      }
    }
  }

  // One loop over all set bits of the tile: a loop for each query would mispredict its end each time.
  void offer(int64_t query, int64_t row, int64_t slot, int64_t columns, const float* scores, const uint32_t* reached,
             double largest) {
    constexpr int kTogether = 64 / kN;  // queries in a word
    const uint64_t valid = (uint64_t(1) << columns) - 1;
    const int64_t queries = least(kM, count_ - query);
    for (int64_t r0 = 0; r0 < queries; r0 += kTogether) {
      uint64_t word = 0;
      for (int64_t r = r0; r < least(r0 + kTogether, queries); ++r) word |= (reached[r] & valid) << (r - r0) * kN;
      for (; word; word &= word - 1) {
        const int bit = __builtin_ctzll(word), j = bit % kN;
        const int64_t r = r0 + bit / kN;
        if (collector_.add(query + r, row + j, scores[r * kN + j], norms_[slot + j])) {
          thresholds_[query + r] = collector_.threshold(query + r, largest);
        }
      }
    }
  }

  bool scan_in_place(int64_t first, int64_t count) {
    for (int64_t i = 0; i < count_; ++i) collector_.share_floor(i);
    for (int64_t slot = 0; slot < count; slot += 4) {
      const int64_t columns = least(4, count - slot);
      const float* lines[4];
      float factors[4], scores[4];
      const bool ordinary = measure_in_place(first + slot, slot, columns, lines, factors, scores);
      if (!ordinary && !copy_rows(first + slot, slot, columns, lines, factors)) return false;
      for (int64_t i = 0; i < count_; ++i) {
        if (i > 0 || !ordinary) dots<false>(queries_ + i * p_.dim, lines, p_.dim, scores, nullptr);
        for (int64_t j = 0; j < columns; ++j) {
          collector_.add(i, first + slot + j, scores[j] * factors[j] + starts_[slot + j], norms_[slot + j]);
        }
      }
    }
    return true;
  }

  // Four rows as they lie: their norms in the same pass as the scores of the first query. False if float32 cannot be
  // trusted with the values as they are (or they are no float32): then nothing of it is used.
  bool measure_in_place(int64_t first, int64_t slot, int64_t columns, const float** lines, float* factors,
                        float* scores) {
    if constexpr (!std::is_same_v<T, float>) {
      return false;
    } else {
      for (int64_t j = 0; j < 4; ++j) lines[j] = gallery_row(first + least(j, columns - 1));
      float squares[4];
      dots<true>(queries_, lines, p_.dim, scores, squares);
      for (int64_t j = 0; j < columns; ++j) {
        if (!(squares[j] > 0x1p-59f && squares[j] < 0x1p59f)) return false;
        const Measure measure = measure_row(squares[j], p_);
        if (!(measure.scale > 0x1p-30 && measure.scale < 0x1p30)) return false;
        factors[j] = float(measure.scale);
        norms_[slot + j] = measure.norm * collector_.bound.norm_slack;
        starts_[slot + j] = measure.start;
      }
      return true;
    }
  }

  // Four rows measured in float64, scaled and rounded to float32. False on a bad row.
  bool copy_rows(int64_t first, int64_t slot, int64_t columns, const float** lines, float* factors) {
    for (int64_t j = 0; j < 4; ++j) {
      double scale = 0;
      if (j < columns && !measure(first + j, slot + j, scale)) return false;
      lines[j] = scaled_ + j * padded_;
      factors[j] = 1;
      scale_row(gallery_row(first + least(j, columns - 1)), p_.dim, scale, scaled_ + j * padded_);
    }
    return true;
  }

  const CollectParams& p_;
  const Task& task_;
  const int64_t count_, panels_, chunk_, padded_;
  CollectReport& report_;
  Collector<T> collector_;
  Buffer<float> queries_, rows_, scaled_, thresholds_, starts_;
  Buffer<double> norms_;
};

void collect(const CollectParams& params, int64_t index, CollectReport& report) {
  const DefaultRounding rounding;
  const Task task(params, index);
  if (task.query_begin == task.query_end) return;
  with_elements(params.gallery, [&]<class T>(const T*) {
    Scan<T> scan(params, task, report);
    scan.part_ = index % params.gallery_parts;
    scan.run();
  });
}

void merge(const CollectParams& p, int64_t query, float* scores, int64_t* indices) {
  const DefaultRounding rounding;
  const double* keys = p.keys + query * p.gallery_parts * p.k;
  const int64_t* rows = p.rows + query * p.gallery_parts * p.k;
  Buffer<int64_t> next(p.gallery_parts);
  for (int64_t part = 0; part < p.gallery_parts; ++part) next[part] = 0;
  for (int64_t j = 0; j < p.k; ++j) {
    Settled best{-__builtin_inf(), -1};
    int64_t from = -1;
    for (int64_t part = 0; part < p.gallery_parts; ++part) {
      const int64_t at = part * p.k + next[part];
      if (next[part] == p.k || rows[at] < 0) continue;
      if (from < 0 || better({keys[at], rows[at]}, best)) best = {keys[at], rows[at]}, from = part;
    }
    if (from >= 0) ++next[from];
    scores[j] = float(p.metric == Metric::l2 ? -best.key : best.key);
    indices[j] = best.row;
  }
}

}  // namespace

extern const ScanKernels GF_TABLE(scan) = {typical_scale, collect, merge};

}  // namespace graceful_fast
