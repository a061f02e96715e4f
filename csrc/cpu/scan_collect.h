// scan, the ending `collect`: of each query the rows that may still be among its k best, in bounded memory.
//
// A candidate's definition lies within `error` of its scan score. floor = the k-th largest lower bound seen so far, of
// this task or another: a row whose upper bound is below it is out for good. A full buffer is cut by the floor; if that
// does not help (ties, near-duplicates) it is settled in float64 and cut to the k best, so it never holds more than
// `capacity`. After the scan the parts' candidates are trimmed by a floor that all of them give, and settled.
#pragma once
#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/scan_definition.h"
#include "cpu/scan_engine.h"

namespace graceful_fast {
namespace {

inline double lowest(const Candidate& candidate) { return double(candidate.score) - candidate.error; }

inline float lowest_float(const Candidate& candidate) {
  const double bound = lowest(candidate);
  return float(bound - __builtin_fabs(bound) * 0x1p-23 - 0x1p-120);
}

inline float above(double error) { return float(error * (1 + 0x1p-22)); }

inline Candidate in_scan_units(const Query& query, const Settled& settled, Metric metric) {
  const KeyInScan found = key_in_scan(query, settled.key, metric);
  return {float(found.score), above(found.error + 0x1p-23 * __builtin_fabs(found.score)), settled.row};
}

// A value that at least k of the lower bounds reach, and hardly more: their k-th largest by bisection, since counting
// what reaches a value is many times cheaper than selecting. -infinity where there are fewer. `bounds` has room for a
// vector more than `count`.
inline double kth_bound(float* bounds, int64_t count, int64_t k) {
  constexpr int kSteps = 16;
  if (count < k) return -__builtin_inf();
  for (int64_t j = count; j % kFloats; ++j) bounds[j] = -__builtin_inff();
  const auto reaching = [&](float value) {
    Ints total = {};
    for (int64_t j = 0; j < count; j += kFloats) total -= load<Floats>(bounds + j) >= broadcast(value);
    return sum<int32_t, kFloats>(total);
  };
  float low = __builtin_inff(), high = -__builtin_inff();
  for (int64_t j = 0; j < count; ++j) {
    if (bounds[j] > -__builtin_inff() && bounds[j] < low) low = bounds[j];
    if (bounds[j] > high) high = bounds[j];
  }
  if (reaching(low) < k) return -__builtin_inf();
  if (reaching(high) >= k) return high;
  for (int step = 0; step < kSteps; ++step) {
    const float middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) break;
    const int64_t many = reaching(middle);
    (many >= k ? low : high) = middle;
    if (many == k) break;
  }
  return low;
}

// Drops what ends below the floor; how many stay.
inline int64_t drop_below(double floor, Candidate* candidates, int64_t count) {
  int64_t kept = 0;
  for (int64_t j = 0; j < count; ++j) {
    const Candidate candidate = candidates[j];
    if (double(candidate.score) + candidate.error >= floor) candidates[kept++] = candidate;
  }
  return kept;
}

template <class T>
class Collector {
 public:
  Collector(const CollectParams& params, const Task& task, const Query* queries, ScanReport& report)
      : p_(params),
        queries_(queries),
        first_(task.query_begin),
        part_(task.part),
        count_(task.query_end - task.query_begin),
        kept_((params.capacity + params.k) / 2),
        labelled_(params.query_ids || params.query_groups),
        states_(count_),
        settled_(params.capacity),
        bounds_(params.capacity + kFloats),
        definition_(params),
        report_(report) {}

  // What earlier blocks of the gallery have found.
  void begin() {
    for (int64_t i = 0; i < count_; ++i) {
      states_[i] = {-__builtin_inf(), 0};
      const int64_t last = (first_ + i + 1) * p_.k - 1;
      if (p_.rows[last] >= 0) {
        states_[i].floor = lowest(in_scan_units(queries_[i], {p_.keys[last], p_.rows[last]}, p_.metric));
      }
      share_floor(i);
    }
  }

  // Enough for a floor that most rows do not reach; none where all queries know one, or rows are few. Their scores lie
  // where candidates will.
  int64_t seeds(int64_t rows) {
    const int64_t room = p_.capacity * int64_t(sizeof(Candidate) / sizeof(float));
    const int64_t wanted = least(least(rows / 16, room), most(kSeeds, 4 * p_.k)) / kN * kN;
    bool known = true;
    for (int64_t i = 0; i < count_; ++i) known = known && states_[i].floor > -__builtin_inf();
    seeds_ = known || wanted < p_.k || wanted < kFewestSeeds ? 0 : wanted;
    // Of a query that knows a floor, from earlier blocks or from another task meanwhile, only some tiles are taken.
    for (int64_t i = 0; i < count_; ++i) std::fill_n(seed_scores(i), seeds_, -__builtin_inff());
    return seeds_;
  }

  double floor(int64_t i) const { return states_[i].floor; }
  static bool skips(int64_t, int64_t) { return false; }

  template <class Engine>
  void refresh(const Engine&) {
    for (int64_t i = 0; p_.gallery_parts > 1 && i < count_; ++i) share_floor(i);
  }

  void end_seed(bool whole) {
    for (int64_t i = 0; whole && seeds_ > 0 && i < count_; ++i) {
      const double floor = kth_bound(seed_scores(i), seeds_, p_.k);
      if (floor > states_[i].floor) states_[i].floor = floor;
      share_floor(i);
    }
    seeds_ = 0;
  }

  // One loop over all set bits of the tile: a loop for each query would mispredict its end each time.
  template <class Engine>
  void take(Engine& engine, const Tile& tile) {
    if (seeds_ > 0) return take_seed(engine, tile);
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

  void finish() {
    for (int64_t i = 0; i < count_; ++i) {
      share_floor(i);
      p_.counts[(first_ + i) * p_.gallery_parts + part_] = states_[i].count;
    }
  }

 private:
  // All scores of the seeds, less what they may be off: selecting from them at once costs less than candidates do.
  template <class Engine>
  void take_seed(const Engine& engine, const Tile& tile) {
    for (int64_t r = 0; r < tile.queries; ++r) {
      const int64_t query = tile.query + r;
      const float error = above(engine.largest_error(query));
      float* const to = seed_scores(query) + engine.chunk.before + tile.slot;
      for (int64_t j = 0; j < tile.columns; ++j) {
        const float score = tile.scores[r * kN + j], bound = score - error;
        to[j] = bound - __builtin_fabsf(bound) * 0x1p-22f - __builtin_fabsf(score) * 0x1p-22f - 0x1p-100f;
      }
      if (!labelled_) continue;
      for (int64_t j = 0; j < tile.columns; ++j) {
        if (excluded(query, engine.row(tile.slot + j))) to[j] = -__builtin_inff();
      }
    }
  }

  float* seed_scores(int64_t i) const { return reinterpret_cast<float*>(candidates(i)); }

  static constexpr int64_t kSeeds = 2048, kFewestSeeds = 128;

  struct State {
    double floor;
    int64_t count;  // candidates
  };

  Candidate* candidates(int64_t i) const {
    return p_.candidates + ((first_ + i) * p_.gallery_parts + part_) * p_.capacity;
  }

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
    if (score + error < state.floor || (labelled_ && excluded(i, row)) || report_.overflow) return false;
    candidates(i)[state.count++] = {score, above(error), row};
    if (state.count < p_.capacity) return false;
    cut(i);
    return true;
  }

  bool excluded(int64_t i, int64_t row) const {
    return (p_.query_ids && p_.query_ids[first_ + i] == p_.gallery_ids[row]) ||
           (p_.query_groups && p_.query_groups[first_ + i] == p_.gallery_groups[row]);
  }

  // The k-th largest lower bound becomes the floor; candidates that end below it leave.
  void raise_floor(int64_t i) {
    State& state = states_[i];
    Candidate* const mine = candidates(i);
    for (int64_t j = 0; j < state.count; ++j) bounds_[j] = lowest_float(mine[j]);
    const double floor = kth_bound(bounds_, state.count, p_.k);
    if (floor > state.floor) state.floor = floor;
    share_floor(i);
    state.count = drop_below(state.floor, mine, state.count);
  }

  void cut(int64_t i) {
    raise_floor(i);
    State& state = states_[i];
    if (state.count <= kept_) return;
    if (p_.deferred) {
      report_.overflow = true;
      return;
    }
    ++report_.cuts;
    report_.settled += state.count;
    Candidate* const mine = candidates(i);
    definition_.choose(first_ + i);
    definition_.each(
        state.count, [&](int64_t j) { return mine[j].row; }, [&](int64_t j, Settled s) { settled_[j] = s; });
    if (state.count > p_.k) {
      std::nth_element(+settled_, settled_ + (p_.k - 1), settled_ + state.count,
                       [](const Settled& a, const Settled& b) { return better(a, b); });
      state.count = p_.k;
    }
    double floor = __builtin_inf();
    for (int64_t j = 0; j < state.count; ++j) {
      mine[j] = in_scan_units(queries_[i], settled_[j], p_.metric);
      if (lowest(mine[j]) < floor) floor = lowest(mine[j]);
    }
    if (state.count == p_.k && floor > state.floor) state.floor = floor;
  }

  const CollectParams& p_;
  const Query* const queries_;
  const int64_t first_, part_, count_, kept_;
  int64_t seeds_ = 0;  // while they are scanned
  const bool labelled_;
  Buffer<State> states_;
  Buffer<Settled> settled_;  // [capacity] of the query being settled
  Buffer<float> bounds_;     // [capacity] of the query being cut
  Definition<T> definition_;
  ScanReport& report_;
};

// A query as codes of twice 8 bits, for the candidates that codes of 8 bits leave: with t b + u a + g for it and s c +
// e for a row, the score t s <b, c> + u s <a, c> is off by |t b + u a| |e| + |g| |row| at most, half of what it was.
class FineQuery {
 public:
  FineQuery(const CollectParams& params, int64_t query)
      : p_(params),
        stride_(code_stride(params.dim)),
        scaled_(stride_),
        codes_(2 * stride_),
        bound_(params.dim, params.metric == Metric::l2, false) {
    with_elements(p_.queries, [&](const auto* data) {
      const auto* q = data + query * p_.queries.row_stride;
      double scale;
      query_ = measure_query(squared_norm(q, p_.dim), p_, scale);
      scale_row(q, p_.dim, scale, scaled_, stride_);
    });
    float rest = 0;
    for (int plane = 0; plane < 2; ++plane) {
      int8_t* const codes = codes_ + plane * stride_;
      steps_[plane] = quantize_row(scaled_, stride_, kQueryLevels, codes, rest);
      int32_t total = 0;
      for (int64_t i = 0; i < stride_; ++i) {
        total += codes[i];
        scaled_[i] = float(double(scaled_[i]) - double(steps_[plane]) * codes[i]);
      }
      origins_[plane] = -kLift * total;
    }
    // Rests were rounded to float32 once: 2^-24 of them, far within the slack.
    rest_ = rest * (1 + kCodedSlack) + kCodedSlack * query_.norm;
    length_ = (query_.norm + rest) * (1 + kCodedSlack);
  }

  // Up to four candidates, finer.
  void refine(Candidate* candidates, int64_t count) const {
    if (query_.norm == __builtin_inf()) return;
    const int8_t* lines[4];
    int32_t products[2][4];
    for (int64_t j = 0; j < 4; ++j) lines[j] = p_.codes.data + candidates[least(j, count - 1)].row * p_.codes.stride;
    for (int plane = 0; plane < 2; ++plane) {
      code_dots(codes_ + plane * stride_, lines, stride_, origins_[plane], products[plane]);
    }
    for (int64_t j = 0; j < count; ++j) {
      const CodedRow row = coded_row(p_, candidates[j].row);
      if (row.norm == __builtin_inf()) continue;
      const double product = double(steps_[0]) * products[0][j] + double(steps_[1]) * products[1][j];
      const double score = product * row.scale + row.start;
      const double error = length_ * row.residual + (rest_ + squares_slack(p_.metric) * row.norm) * row.norm +
                           bound_.error(query_.norm, row.norm) + 0x1p-23 * __builtin_fabs(score);
      if (error < candidates[j].error) candidates[j] = {float(score), above(error), candidates[j].row};
    }
  }

 private:
  const CollectParams& p_;
  const int64_t stride_;
  Buffer<float> scaled_;
  Buffer<int8_t> codes_;  // [2][stride]
  const Bound bound_;
  Query query_;
  float steps_[2];
  int32_t origins_[2];
  double rest_, length_;
};

// The parts' candidates of a query by the floor that all of them give together.
inline void trim(const CollectParams& p, int64_t query) {
  Candidate* const candidates = p.candidates + query * p.gallery_parts * p.capacity;
  int64_t* const counts = p.counts + query * p.gallery_parts;
  int64_t total = 0;
  for (int64_t part = 0; part < p.gallery_parts; ++part) total += counts[part];
  Buffer<float> bounds(total + kFloats);
  const auto drop = [&] {
    int64_t at = 0;
    for (int64_t part = 0; part < p.gallery_parts; ++part) {
      for (int64_t j = 0; j < counts[part]; ++j) bounds[at++] = lowest_float(candidates[part * p.capacity + j]);
    }
    const double joint = kth_bound(bounds, at, p.k), floor = joint > p.floor[query] ? joint : p.floor[query];
    p.floor[query] = floor;
    total = 0;
    for (int64_t part = 0; part < p.gallery_parts; ++part) {
      counts[part] = drop_below(floor, candidates + part * p.capacity, counts[part]);
      total += counts[part];
    }
  };
  drop();
  if (!p.codes.data || total <= p.k + p.k / 8) return;
  const FineQuery fine(p, query);
  for (int64_t part = 0; part < p.gallery_parts; ++part) {
    Candidate* const mine = candidates + part * p.capacity;
    for (int64_t j = 0; j < counts[part]; j += 4) fine.refine(mine + j, least(4, counts[part] - j));
  }
  drop();
}

// Candidates and the best so far -> the k best, sorted.
template <class T>
void settle_queries(const CollectParams& p, int64_t begin, int64_t end, ScanReport& report) {
  Buffer<Settled> all(p.gallery_parts * p.capacity + p.k);
  Definition<T> definition(p);
  const auto order = [](const Settled& a, const Settled& b) { return better(a, b); };
  for (int64_t query = begin; query < end; ++query) {
    double* const keys = p.keys + query * p.k;
    int64_t* const rows = p.rows + query * p.k;
    int64_t count = 0;
    for (; count < p.k && rows[count] >= 0; ++count) all[count] = {keys[count], rows[count]};
    definition.choose(query);
    for (int64_t part = 0; part < p.gallery_parts; ++part) {
      const int64_t found = p.counts[query * p.gallery_parts + part];
      const Candidate* const candidates = p.candidates + (query * p.gallery_parts + part) * p.capacity;
      definition.each(
          found, [&](int64_t j) { return candidates[j].row; },
          [&](int64_t j, Settled s) { all[count + j] = {s.key, p.numbers ? p.numbers[s.row] : s.row + p.first_row}; });
      count += found;
      report.settled += found;
    }
    if (count > p.k) {
      std::nth_element(+all, all + (p.k - 1), all + count, order);
      count = p.k;
    }
    std::sort(+all, all + count, order);
    for (int64_t j = 0; j < count; ++j) keys[j] = all[j].key, rows[j] = all[j].row;
  }
}

}  // namespace
}  // namespace graceful_fast
