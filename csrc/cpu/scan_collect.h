// scan, the ending `collect`: of each query the rows that may still be among its k best, in bounded memory.
//
// floor = the k-th largest lower bound seen so far, of this task or another: a row whose upper bound is below it is out
// for good. Whenever a query's candidates have become half as many again, the floor is raised and cuts them; if that
// does not help (ties, near-duplicates) they are settled in float64 and cut to the k best, so there are never more than
// `capacity`. After the scan the parts' candidates are trimmed by a floor that all of them give, and settled: the k
// most promising first, whose scores are a floor that hardly any other reaches.
#pragma once
#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/scan_definition.h"
#include "cpu/scan_engine.h"

namespace graceful_fast {
namespace {

inline Candidate in_scan_units(const Query& query, const Settled& settled, Metric metric) {
  const KeyInScan found = key_in_scan(query, settled.key, metric);
  return {rounded_down(found.score - found.error), rounded_up(found.score + found.error), settled.row};
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
    candidates[kept] = candidate;  // no branch: which stay is anyone's guess
    kept += candidate.high >= floor;
  }
  return kept;
}

// Raises the floor to the k-th largest lower bound of the candidates and drops what ends below it; how many stay.
// `bounds`: room for a vector more than `count`.
inline int64_t cut_by_floor(double& floor, Candidate* candidates, int64_t count, int64_t k, float* bounds) {
  for (int64_t j = 0; j < count; ++j) bounds[j] = candidates[j].low;
  const double found = kth_bound(bounds, count, k);
  if (found > floor) floor = found;
  return drop_below(floor, candidates, count);
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
      states_[i] = {-__builtin_inf(), 0, next_cut(0)};
      const int64_t last = (first_ + i + 1) * p_.k - 1;
      if (p_.rows[last] >= 0) {
        states_[i].floor = in_scan_units(queries_[i], {p_.keys[last], p_.rows[last]}, p_.metric).low;
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
      const float error = rounded_up(engine.largest_error(query));
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
  static constexpr int64_t kFewestNew = 32;  // candidates between two cuts

  struct State {
    double floor;
    int64_t count, next;  // candidates; how many there will be when they are cut
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
    const float high = rounded_up(score + error);
    if (high < state.floor || (labelled_ && excluded(i, row)) || report_.overflow) return false;
    candidates(i)[state.count++] = {rounded_down(score - error), high, row};
    if (state.count < state.next) return false;
    cut(i);
    return true;
  }

  // A staler floor lets more rows in, a fresher one costs more cuts.
  int64_t next_cut(int64_t count) const { return least(p_.capacity, most(count, p_.k) + most(count / 2, kFewestNew)); }

  bool excluded(int64_t i, int64_t row) const {
    return (p_.query_ids && p_.query_ids[first_ + i] == p_.gallery_ids[row]) ||
           (p_.query_groups && p_.query_groups[first_ + i] == p_.gallery_groups[row]);
  }

  void cut(int64_t i) {
    State& state = states_[i];
    Candidate* const mine = candidates(i);
    state.count = cut_by_floor(state.floor, mine, state.count, p_.k, bounds_);
    share_floor(i);
    if (state.count > kept_) settle_candidates(i);
    state.next = next_cut(state.count);
  }

  void settle_candidates(int64_t i) {
    if (p_.deferred) {
      report_.overflow = true;
      return;
    }
    State& state = states_[i];
    Candidate* const mine = candidates(i);
    ++report_.cuts;
    report_.settled += state.count;
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
      if (mine[j].low < floor) floor = mine[j].low;
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

inline Query measured(const CollectParams& p, int64_t query, double* scale) {
  return with_elements(p.queries, [&](const auto* data) {
    return measure_query(squared_norm(data + query * p.queries.row_stride, p.dim), p, *scale);
  });
}

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
    double scale;
    query_ = measured(params, query, &scale);
    with_elements(p_.queries, [&](const auto* data) {
      scale_row(data + query * p_.queries.row_stride, p_.dim, scale, scaled_, stride_);
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

  void refine(Candidate* candidates, int64_t count) const {
    if (query_.norm == __builtin_inf()) return;
    for (int64_t j = 0; j < count; j += 4) {
      for (int64_t next = j + 4; next < least(j + 8, count); ++next) prefetch_codes(candidates[next].row);
      refine_four(candidates + j, least(4, count - j));
    }
  }

 private:
  void prefetch_codes(int64_t row) const {
    __builtin_prefetch(p_.codes.facts + row * kFacts);
    for (int64_t at = 0; at < least(stride_, 4096); at += 64) __builtin_prefetch(p_.codes.data + row * stride_ + at);
  }

  void refine_four(Candidate* candidates, int64_t count) const {
    const int8_t* lines[4];
    int32_t products[2][4];
    for (int64_t j = 0; j < 4; ++j) lines[j] = p_.codes.data + candidates[least(j, count - 1)].row * p_.codes.stride;
    for (int plane = 0; plane < 2; ++plane) {
      code_dots<false>(codes_ + plane * stride_, lines, stride_, origins_[plane], products[plane]);
    }
    for (int64_t j = 0; j < count; ++j) {
      const CodedRow row = coded_row(p_, candidates[j].row);
      if (row.norm == __builtin_inf()) continue;
      const double product = double(steps_[0]) * products[0][j] + double(steps_[1]) * products[1][j];
      const double score = product * row.scale + row.start;
      const double error = length_ * row.residual + (rest_ + squares_slack(p_.metric) * row.norm) * row.norm +
                           bound_.error(query_.norm, row.norm);
      const float low = rounded_down(score - error), high = rounded_up(score + error);
      if (low > candidates[j].low) candidates[j].low = low;
      if (high < candidates[j].high) candidates[j].high = high;
    }
  }

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

// The parts' candidates of a query, one list of them now, by the floor that all of them give together. Where they
// cannot be settled they are weighed by finer codes, too.
inline void trim(const CollectParams& p, int64_t query) {
  Candidate* const candidates = p.candidates + query * p.gallery_parts * p.capacity;
  int64_t* const counts = p.counts + query * p.gallery_parts;
  int64_t total = counts[0];
  for (int64_t part = 1; part < p.gallery_parts; ++part) {
    std::copy_n(candidates + part * p.capacity, counts[part], candidates + total);
    total += counts[part];
    counts[part] = 0;
  }
  Buffer<float> bounds(total + kFloats);
  total = cut_by_floor(p.floor[query], candidates, total, p.k, bounds);
  if (p.deferred && total > p.k + p.k / 8) {
    FineQuery(p, query).refine(candidates, total);
    total = cut_by_floor(p.floor[query], candidates, total, p.k, bounds);
  }
  counts[0] = total;
}

// The candidates of one query after another, trimmed, and the best so far -> the k best, sorted.
template <class T>
class Settlement {
 public:
  explicit Settlement(const CollectParams& params, ScanReport& report)
      : p_(params), all_(params.gallery_parts * params.capacity + params.k), definition_(params), report_(report) {}

  void settle(int64_t query) {
    double* const keys = p_.keys + query * p_.k;
    int64_t* const rows = p_.rows + query * p_.k;
    count_ = 0;
    for (; count_ < p_.k && rows[count_] >= 0; ++count_) all_[count_] = {keys[count_], rows[count_]};
    definition_.choose(query);
    Candidate* candidates = p_.candidates + query * p_.gallery_parts * p_.capacity;
    int64_t found = p_.counts[query * p_.gallery_parts];
    if (p_.coded && found > p_.k + p_.k / 8) {
      const auto promising = [](const Candidate& a, const Candidate& b) { return a.low > b.low; };
      std::nth_element(candidates, candidates + (p_.k - 1), candidates + found, promising);
      const double worst = add(candidates, p_.k);
      double scale;
      const double floor = in_scan_units(measured(p_, query, &scale), {worst, 0}, p_.metric).low;
      candidates += p_.k;
      found = drop_below(floor, candidates, found - p_.k);
      if (p_.codes.data) {
        FineQuery(p_, query).refine(candidates, found);
        found = drop_below(floor, candidates, found);
      }
    }
    add(candidates, found);
    if (count_ > p_.k) {
      std::nth_element(+all_, all_ + (p_.k - 1), all_ + count_, better);
      count_ = p_.k;
    }
    std::sort(+all_, all_ + count_, better);
    for (int64_t j = 0; j < count_; ++j) keys[j] = all_[j].key, rows[j] = all_[j].row;
  }

 private:
  // Settles candidates; the worst of their keys.
  double add(const Candidate* candidates, int64_t count) {
    double worst = __builtin_inf();
    definition_.each(
        count, [&](int64_t j) { return candidates[j].row; },
        [&](int64_t, Settled s) {
          all_[count_++] = {s.key, p_.numbers ? p_.numbers[s.row] : s.row + p_.first_row};
          if (s.key < worst) worst = s.key;
        });
    report_.settled += count;
    return worst;
  }

  const CollectParams& p_;
  Buffer<Settled> all_;
  int64_t count_ = 0;
  Definition<T> definition_;
  ScanReport& report_;
};

}  // namespace
}  // namespace graceful_fast
