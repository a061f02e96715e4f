// scan, the engine. A task owns a block of queries, packed once and resident, and a range of the gallery, read once:
//   1. a chunk of rows (it fits in L2 beside a block of queries) is checked, measured and packed into panels of kN
//   columns, as float32 or as codes of 8 bits;
//   2. each panel (in L1) meets every panel of kM queries (from L2) in a register tile of sums;
//   3. a tile none of whose scores can matter to its query is forgotten; the others are the ending's.
// Up to kDirect queries the rows are not packed but read where they lie: memory is the limit there.
//
// An ending has
//   double floor(i)              the score, in scan units, from which a row matters to query i
//   take(engine, tile)           some scores; engine.error, engine.row, engine.raised serve it
//   skips(i, row)                nothing is wanted of queries from i on with rows up to this one
//   begin(), refresh(engine)     before the scan, before each chunk
//   seeds(rows), end_seed(whole) how many rows from all over to scan first, for a first floor; when that has ended
#pragma once
#include <type_traits>

#include "cpu/buffer.h"
#include "cpu/scan.h"
#include "cpu/scan_codes.h"
#include "cpu/scan_measure.h"
#include "cpu/scan_tile.h"
#include "math/bound.h"
#include "math/settle.h"

namespace graceful_fast {
namespace {

constexpr int64_t kDirect = 4;                         // packing costs about as much as the products of 8 queries
constexpr int64_t kChunkBytes = 128 << 10;             // of packed rows: a quarter of the smallest L2 (512 KiB)
constexpr int64_t kQueryBlockBytes = 192 << 10;        // of packed queries: they share that L2 with the chunk
constexpr int64_t kMaxChunk = 1024;                    // rows, for small D: limits are refreshed once a chunk
constexpr int64_t kFirstRest = 8, kLongestRest = 128;  // chunks in float32 after one whose codes decided too little

struct Task {
  int64_t query_begin, query_end, row_begin, row_end, part;

  Task(const ScanParams& p, int64_t index) {
    const auto cut = [](int64_t count, int64_t parts, int64_t part, int64_t unit) {
      const int64_t units = (count + unit - 1) / unit;
      return least(count, units * part / parts * unit);
    };
    const int64_t q = index / p.gallery_parts;
    part = index % p.gallery_parts;
    query_begin = cut(p.queries.rows, p.query_parts, q, kM);
    query_end = cut(p.queries.rows, p.query_parts, q + 1, kM);
    row_begin = cut(p.gallery.rows, p.gallery_parts, part, kN);
    row_end = cut(p.gallery.rows, p.gallery_parts, part + 1, kN);
  }
};

// Rows `first`, `first + step`, ...
struct Chunk {
  int64_t first, step, count;
  bool coded;
  int64_t before;  // seeds scanned before these
};

// Of a query: what a coded row's residual and norm are weighed with, and the rest; float32 that round up together.
struct CodedError {
  float residual, norm, rest;
};

// Scores of some queries with some rows of the chunk.
struct Tile {
  int64_t query, queries, slot, columns;
  const float* scores;      // [queries][kN]
  const uint32_t* reached;  // [queries] bit j: the score of column j may matter; bits beyond `columns` mean nothing
};

template <class T, class Ending>
class Scan {
 public:
  template <class Params>
  Scan(const Params& params, const Task& task, ScanReport& report)
      : p_(params),
        task_(task),
        count_(task.query_end - task.query_begin),
        panels_((count_ + kM - 1) / kM),
        stride_(code_stride(params.dim)),
        in_place_(count_ <= kDirect && (!params.coded || params.codes.data)),
        chunk_(chunk_rows(4 * params.dim)),
        coded_chunk_(params.coded ? chunk_rows(stride_) : 0),
        bound_(params.dim, params.metric == Metric::l2, in_place_),
        report_(report),
        queries_(count_),
        packed_(panels_ * kM * params.dim),
        coded_(params.coded ? panels_ * kM * stride_ / 4 : 0),
        rows_(most(chunk_ * params.dim, coded_chunk_ * stride_ / 4)),
        scaled_(4 * stride_),
        codes_(4 * stride_),
        limits_(panels_ * kM),
        weights_(params.coded ? 4 * panels_ * kM : 0),
        origins_(params.coded ? panels_ * kM : 0),
        errors_(params.coded ? count_ : 0),
        starts_(slots()),
        facts_(params.coded ? 3 * slots() : 0),
        norms_(slots()),
        scores_(in_place_ ? count_ * slots() : 0),
        ending_(params, task, queries_, report) {}

  Ending& ending() { return ending_; }

  // False on a bad query or row.
  bool run() {
    if (!pack_queries()) return false;
    ending_.begin();
    scan_seed();
    int64_t rest = 0, next_rest = kFirstRest;
    for (int64_t row = task_.row_begin; row < task_.row_end; row += chunk.count) {
      const bool coded = p_.coded && rest == 0;
      rest -= rest > 0;
      chunk = {row, 1, least(coded ? coded_chunk_ : chunk_, task_.row_end - row), coded, 0};
      const int64_t settled = report_.settled;
      if (!scan_chunk()) return false;
      (coded ? report_.coded_rows : report_.plain_rows) += chunk.count;
      if (coded && row > task_.row_begin) {
        const bool too_little = p_.gallery.data && codes_cost_more(report_.settled - settled);
        rest = too_little ? next_rest : 0;
        next_rest = too_little ? least(2 * next_rest, kLongestRest) : kFirstRest;
      }
    }
    return true;
  }

  // --- for endings ---

  Chunk chunk{};

  int64_t row(int64_t slot) const { return chunk.first + slot * chunk.step; }

  // How far the score of query i with the row in `slot` may be from the definition.
  double error(int64_t i, int64_t slot) const {
    if (chunk.coded && alike_) {
      const CodedError& e = errors_[i];
      return (e.residual * residual(slot) + (e.norm * norm(slot) + e.rest)) * (1 + 0x1p-20f);
    }
    const Query& query = queries_[i];
    double error = bound_.error(query.norm, norms_[slot]) * (1 + 0x1p-22);
    if (chunk.coded) {
      const double norm = norms_[slot];
      if (norm == __builtin_inf() || query.norm == __builtin_inf()) return __builtin_inf();
      error += query.coded * residual(slot) + (query.residual + squares_slack(p_.metric) * norm) * norm;
    }
    return error;
  }

  double largest() const { return largest_; }  // norm in the chunk, in scan units

  // No error of the chunk is greater for query i.
  double largest_error(int64_t i) const {
    const Query& query = queries_[i];
    double error = bound_.error(query.norm, largest_) * (1 + 0x1p-22);
    if (chunk.coded) {
      if (largest_ == __builtin_inf() || query.norm == __builtin_inf()) return __builtin_inf();
      error += query.coded * largest_residual_ + (query.residual + squares_slack(p_.metric) * largest_) * largest_;
    }
    return error;
  }

  void raised(int64_t i) {  // the floor of query i has risen
    const double limit = ending_.floor(i) - bound_.error(queries_[i].norm, largest_);
    if (!chunk.coded) {
      limits_[i] = rounded_down(limit);
      return;
    }
    const Query& query = queries_[i];
    const double unit = in_place_ ? 1 : query.step;  // a tile's scores are over the query's own scale
    const double less = (even_ ? query.residual * largest_ : 0) + squares_slack(p_.metric) * largest_ * largest_;
    limits_[i] = query.norm == __builtin_inf() || largest_ == __builtin_inf() ? -__builtin_inff()
                                                                              : rounded_down((limit - less) / unit);
  }

 private:
  static int64_t chunk_rows(int64_t row_bytes) { return most(1, least(kMaxChunk, kChunkBytes / row_bytes) / kN) * kN; }
  // Whether what the chunk's codes left to be offered and settled cost more than float32 products would have. In
  // products of float32: codes save over half of them; an offer takes some 20 ns, a settled row its memory and float64
  // sums.
  bool codes_cost_more(int64_t settled) const {
    constexpr int64_t kOffer = 1000, kSettled = 3000;
    return offered_ * kOffer + settled * (kSettled + 4 * p_.dim) > chunk.count * count_ * p_.dim * 5 / 8;
  }

  int64_t slots() const { return most(chunk_, coded_chunk_); }

  float norm(int64_t slot) const { return facts_[2 * slots() + slot]; }
  float residual(int64_t slot) const { return facts_[slots() + slot]; }

  // Queries as panels [dim][kM], and [words][kM] of codes; in place: as rows. False on a bad query.
  bool pack_queries() {
    for (int64_t i = 0; i < panels_ * kM; ++i) limits_[i] = __builtin_inff();  // those that fill the last panel
    for (int64_t i = 0; i < panels_ * kM * p_.dim; ++i) packed_[i] = 0;
    if (p_.coded) {
      for (int64_t i = 0; i < panels_ * kM * stride_ / 4; ++i) coded_[i] = 0;
      for (int64_t i = 0; i < 4 * panels_ * kM; ++i) weights_[i] = 0;
      for (int64_t i = 0; i < panels_ * kM; ++i) origins_[i] = 0;
    }
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
        queries_[i] = measure_query(squared, p_, scale);
        const int64_t step = in_place_ ? 1 : kM;
        float* to = in_place_ ? packed_ + i * p_.dim : packed_ + i / kM * kM * p_.dim + i % kM;
        scale_row(q, p_.dim, scale, scaled_, stride_);
        for (int64_t j = 0; j < p_.dim; ++j) to[j * step] = scaled_[j];
        if (p_.coded) code_query(i);
      }
      return true;
    });
  }

  // Codes of the query in scaled_, and what its limit is weighed with.
  void code_query(int64_t i) {
    Query& query = queries_[i];
    float residual;
    const float step = quantize_row(scaled_, stride_, kQueryLevels, codes_, residual);
    query.step = step > 0 ? step : 1;
    int32_t total = 0;
    double squared = 0;
    for (int64_t j = 0; j < stride_; ++j) total += codes_[j], squared += double(codes_[j]) * codes_[j];
    origins_[i] = -kLift * total;
    const int64_t words = stride_ / 4;
    int32_t* to = in_place_ ? coded_ + i * words : coded_ + i / kM * kM * words + i % kM;
    for (int64_t j = 0; j < words; ++j) std::memcpy(to + j * (in_place_ ? 1 : kM), codes_ + 4 * j, 4);
    if (query.norm == __builtin_inf()) return;
    const double slack = kCodedSlack * query.norm;
    query.coded = __builtin_sqrt(squared) * query.step * (1 + kCodedSlack) + slack;
    query.residual = residual * (1 + kCodedSlack) + slack;
    float* const weights[4] = {weight(0), weight(1), weight(2), weight(3)};
    weights[0][i] = float(query.step);
    weights[1][i] = float(1 / query.step);
    weights[2][i] = float(query.coded / query.step);
    weights[3][i] = float(query.residual / query.step);
  }

  float* weight(int64_t which) const { return weights_ + which * panels_ * kM; }
  float* fact(int64_t which) const { return facts_ + which * slots(); }

  const T* gallery_row(int64_t row) const {
    return static_cast<const T*>(p_.gallery.data) + row * p_.gallery.row_stride;
  }

  // Rows from all over the task's range, for a first idea of the scores: it only raises floors. The order of a gallery
  // can be the worst one, each row better than the last.
  void scan_seed() {
    const int64_t rows = task_.row_end - task_.row_begin, seeds = ending_.seeds(rows);
    for (int64_t done = 0; done < seeds; done += chunk.count) {
      const int64_t step = rows / seeds;
      chunk = {task_.row_begin + done * step, step, least(p_.coded ? coded_chunk_ : chunk_, seeds - done), p_.coded,
               done};
      if (!scan_chunk()) {  // the scan itself will tell the first bad row
        report_.row = -1;
        return ending_.end_seed(false);
      }
    }
    ending_.end_seed(true);
  }

  bool scan_chunk() {
    offered_ = 0;
    if (in_place_) return chunk.coded ? scan_codes_in_place() : scan_in_place();
    if (!(chunk.coded ? pack_codes() : pack_rows())) return false;
    refresh_limits();
    scan_packed();
    return !report_.overflow;
  }

  // False on a bad row.
  bool measure(int64_t slot, double& scale) {
    const T* x = gallery_row(row(slot));
    const double squared = squared_norm(x, p_.dim);
    const Fault fault = fault_of(x, p_.dim, squared, p_.metric);
    if (fault != Fault::none) return bad(slot, fault);
    const Measure measure = measure_row(squared, p_);
    scale = measure.scale;
    norms_[slot] = measure.norm;
    starts_[slot] = measure.start;
    return true;
  }

  bool bad(int64_t slot, Fault fault) {
    report_.row = row(slot);
    report_.row_fault = fault;
    return false;
  }

  // Chunk of rows -> panels [dim][kN] of scaled float32, with zero columns at the end.
  bool pack_rows() {
    const float* lines[4];
    for (int64_t slot = 0; slot < (chunk.count + kN - 1) / kN * kN; slot += 4) {
      for (int64_t j = 0; j < 4; ++j) {
        double scale = 0;
        norms_[slot + j] = starts_[slot + j] = 0;
        if (slot + j < chunk.count && !measure(slot + j, scale)) return false;
        lines[j] = scaled_ + j * stride_;
        scale_row(gallery_row(row(least(slot + j, chunk.count - 1))), p_.dim, scale, scaled_ + j * stride_, stride_);
      }
      interleave4(lines, p_.dim, rows_ + slot / kN * kN * p_.dim + slot % kN, kN);
    }
    return true;
  }

  // Chunk of rows -> panels [words][kN] of four codes each, with zero columns at the end.
  bool pack_codes() {
    const int8_t* lines[4];
    uint32_t* const panels = reinterpret_cast<uint32_t*>(+rows_);
    for (int64_t slot = 0; slot < (chunk.count + kN - 1) / kN * kN; slot += 4) {
      for (int64_t j = 0; j < 4; ++j) {
        lines[j] = codes_ + j * stride_;
        if (slot + j < chunk.count) {
          if (!(p_.codes.data ? given_codes(slot + j, lines[j]) : make_codes(slot + j, codes_ + j * stride_))) {
            return false;
          }
        } else {
          norms_[slot + j] = starts_[slot + j] = 0;
          fact(0)[slot + j] = fact(1)[slot + j] = fact(2)[slot + j] = 0;
          std::memset(codes_ + j * stride_, 0, stride_);
        }
      }
      interleave_codes(lines, stride_ / 4, panels + slot / kN * kN * (stride_ / 4) + slot % kN);
    }
    return true;
  }

  bool make_codes(int64_t slot, int8_t* codes) {
    double scale = 0;
    if (!measure(slot, scale)) return false;
    scale_row(gallery_row(row(slot)), p_.dim, scale, scaled_, stride_);
    fact(0)[slot] = quantize_row(scaled_, stride_, kRowLevels, codes, fact(1)[slot]);
    fact(2)[slot] = norms_[slot] < __builtin_inf() ? float(norms_[slot] * (1 + 0x1p-22)) : 0;  // limits are -inf then
    return true;
  }

  bool given_codes(int64_t slot, const int8_t*& codes) {
    codes = p_.codes.data + row(slot) * p_.codes.stride;
    if (p_.codes.facts[row(slot) * kFacts + 2] == 0 && p_.metric == Metric::cosine) return bad(slot, Fault::zero);
    const CodedRow coded = coded_row(p_, row(slot));
    norms_[slot] = coded.norm;
    starts_[slot] = coded.start;
    fact(0)[slot] = coded.scale;
    fact(1)[slot] = coded.residual;
    fact(2)[slot] = coded.norm < __builtin_inf() ? float(coded.norm * (1 + 0x1p-22)) : 0;  // limits are -inf then
    return true;
  }

  void refresh_limits() {
    double smallest = __builtin_inf();
    largest_ = 0x1p-100, largest_residual_ = 0;
    for (int64_t j = 0; j < chunk.count; ++j) {
      if (chunk.coded && residual(j) > largest_residual_) largest_residual_ = residual(j);
      if (norms_[j] > largest_) largest_ = norms_[j];
      if (norms_[j] < smallest) smallest = norms_[j];
    }
    alike_ = largest_ <= 2 * smallest && largest_ < __builtin_inf();
    even_ = !in_place_ && p_.metric != Metric::l2 && alike_;
    for (int64_t i = 0; chunk.coded && alike_ && i < count_; ++i) {
      const Query& query = queries_[i];
      errors_[i] = {float(query.coded), float(query.residual + squares_slack(p_.metric) * largest_),
                    float(bound_.error(query.norm, largest_))};
    }
    ending_.refresh(*this);
    for (int64_t i = 0; i < count_; ++i) raised(i);
  }

  void scan_packed() {
    const int64_t words = stride_ / 4, row_bytes = chunk.coded ? stride_ : 4 * p_.dim;
    const int64_t block = most(1, kQueryBlockBytes / (kM * row_bytes));
    const CodedQueries queries{weight(0), weight(1), weight(2), weight(3), limits_, origins_};
    const CodedRows rows{fact(0), fact(1), fact(2), starts_};
    const uint32_t* const codes = reinterpret_cast<const uint32_t*>(+rows_);
    alignas(64) float scores[kM * kN];
    uint32_t reached[kM];
    for (int64_t begin = 0; begin < panels_; begin += block) {
      for (int64_t slot = 0; slot < chunk.count; slot += kN) {
        for (int64_t panel = begin; panel < least(begin + block, panels_); ++panel) {
          const int64_t query = panel * kM;
          if (ending_.skips(query, row(slot + kN - 1))) continue;
          const bool any = !chunk.coded ? tile(packed_ + query * p_.dim, rows_ + slot * p_.dim, p_.dim, starts_ + slot,
                                               limits_ + query, scores, reached)
                           : even_      ? code_tile<true>(coded_ + query * words, codes + slot * words, words, queries,
                                                          query, rows, slot, scores, reached)
                                        : code_tile<false>(coded_ + query * words, codes + slot * words, words, queries,
                                                           query, rows, slot, scores, reached);
          if (any) offer({query, least(kM, count_ - query), slot, least(kN, chunk.count - slot), scores, reached});
        }
      }
    }
  }

  void offer(const Tile& tile) {
    if (chunk.coded) {
      const uint64_t valid = (uint64_t(1) << tile.columns) - 1;
      for (int64_t r = 0; r < tile.queries; ++r) offered_ += __builtin_popcountll(tile.reached[r] & valid);
    }
    ending_.take(*this, tile);
  }

  // Scores of the whole chunk [count_][slots()] are there: those that may matter, to the ending.
  void offer_in_place() {
    alignas(64) float scores[kN];
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t slot = 0; slot < chunk.count; slot += kN) {
        const int64_t columns = least(kN, chunk.count - slot);
        const float* const from = scores_ + i * slots() + slot;
        uint32_t reached = 0;
        if (columns == kN && limits_[i] > -__builtin_inff()) {
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half) {
            Floats most = load<Floats>(from + half * kFloats);
            if (chunk.coded) {
              const int64_t at = slot + half * kFloats;
              most = fma(broadcast(float(queries_[i].coded)), load<Floats>(fact(1) + at), most);
              most = fma(broadcast(float(queries_[i].residual)), load<Floats>(fact(2) + at), most);
            }
            reached |= bits(at_least(most, broadcast(limits_[i]))) << half * kFloats;
          }
        } else {
          reached = ~uint32_t(0);  // the ending weighs each by its own error
        }
        if (!reached) continue;
        std::memcpy(scores, from, columns * sizeof(float));
        offer({i, 1, slot, columns, scores, &reached});
      }
    }
  }

  bool scan_in_place() {
    for (int64_t slot = 0; slot < chunk.count; slot += 4) {
      const int64_t columns = least(4, chunk.count - slot);
      const float* lines[4];
      float factors[4], scores[4];
      const bool ordinary = measure_in_place(slot, columns, lines, factors, scores);
      if (!ordinary && !copy_rows(slot, columns, lines, factors)) return false;
      for (int64_t i = 0; i < count_; ++i) {
        if (i > 0 || !ordinary) dots<false>(packed_ + i * p_.dim, lines, p_.dim, scores, nullptr);
        for (int64_t j = 0; j < columns; ++j) {
          scores_[i * slots() + slot + j] = scores[j] * factors[j] + starts_[slot + j];
        }
      }
    }
    refresh_limits();
    offer_in_place();
    return true;
  }

  // Four rows as they lie: their norms in the same pass as the scores of the first query. False if float32 cannot be
  // trusted with the values as they are (or they are no float32): then nothing of it is used.
  bool measure_in_place(int64_t slot, int64_t columns, const float** lines, float* factors, float* scores) {
    if constexpr (!std::is_same_v<T, float>) {
      return false;
    } else {
      for (int64_t j = 0; j < 4; ++j) lines[j] = gallery_row(row(slot + least(j, columns - 1)));
      float squares[4];
      dots<true>(packed_, lines, p_.dim, scores, squares);
      for (int64_t j = 0; j < columns; ++j) {
        if (!(squares[j] > 0x1p-59f && squares[j] < 0x1p59f)) return false;
        const Measure measure = measure_row(squares[j], p_);
        if (!(measure.scale > 0x1p-30 && measure.scale < 0x1p30)) return false;
        factors[j] = float(measure.scale);
        norms_[slot + j] = measure.norm * bound_.norm_slack;
        starts_[slot + j] = measure.start;
      }
      return true;
    }
  }

  // Four rows measured in float64, scaled and rounded to float32. False on a bad row.
  bool copy_rows(int64_t slot, int64_t columns, const float** lines, float* factors) {
    for (int64_t j = 0; j < 4; ++j) {
      double scale = 0;
      if (j < columns && !measure(slot + j, scale)) return false;
      lines[j] = scaled_ + j * stride_;
      factors[j] = 1;
      scale_row(gallery_row(row(slot + least(j, columns - 1))), p_.dim, scale, scaled_ + j * stride_, stride_);
    }
    return true;
  }

  bool scan_codes_in_place() {
    const int64_t words = stride_ / 4;
    for (int64_t slot = 0; slot < chunk.count; slot += 4) {
      const int64_t columns = least(4, chunk.count - slot);
      const int8_t* lines[4];
      int32_t products[4];
      for (int64_t j = 0; j < 4; ++j) {
        if (!given_codes(slot + least(j, columns - 1), lines[j])) return false;
      }
      for (int64_t i = 0; i < count_; ++i) {
        code_dots<true>(reinterpret_cast<const int8_t*>(coded_ + i * words), lines, stride_, origins_[i], products);
        for (int64_t j = 0; j < columns; ++j) {
          scores_[i * slots() + slot + j] =
              float(products[j]) * fact(0)[slot + j] * float(queries_[i].step) + starts_[slot + j];
        }
      }
    }
    refresh_limits();
    offer_in_place();
    return !report_.overflow;
  }

  const ScanParams& p_;
  const Task& task_;
  const int64_t count_, panels_, stride_;
  const bool in_place_;
  const int64_t chunk_, coded_chunk_;
  const Bound bound_;
  ScanReport& report_;
  Buffer<Query> queries_;
  Buffer<float> packed_;   // [panels][dim][kM]; in place [count][dim]
  Buffer<int32_t> coded_;  // [panels][words][kM]; in place [count][words]
  Buffer<float> rows_, scaled_;
  Buffer<int8_t> codes_;
  Buffer<float> limits_;
  Buffer<float> weights_;  // [4][panels * kM] CodedQueries but the limits
  Buffer<int32_t> origins_;
  Buffer<CodedError> errors_;  // of a chunk whose norms are alike
  Buffer<float> starts_;
  Buffer<float> facts_;  // [3][slots] scale, residual, norm of the chunk's rows
  Buffer<double> norms_;
  Buffer<float> scores_;  // in place [count][slots]
  Ending ending_;
  double largest_residual_ = 0;
  double largest_ = 0;   // norm in the chunk
  bool alike_ = false;   // the chunk's norms differ by less than a factor of 2
  bool even_ = false;    // and rows start at 0
  int64_t offered_ = 0;  // scores of the chunk that reached a limit
};

}  // namespace
}  // namespace graceful_fast
