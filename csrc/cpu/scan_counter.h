// scan, the ending `count`: where each score stands among a query's positives.
//
// upper[i], lower[i]: a scan score above upper[i] surely beats positive i, one below lower[i] surely does not; both
// descend. b = #{i: score <= upper[i]} positives are not surely beaten, and if the last of them, b - 1, surely beats
// the score, so do all before it: the score is counted at place b. Else float64 settles it.
#pragma once
#include "cpu/scan_definition.h"
#include "cpu/scan_engine.h"
#include "cpu/scan_tally.h"

namespace graceful_fast {
namespace {

template <class T>
class Counter {
 public:
  Counter(const CountParams& params, const Task& task, const Query* queries, ScanReport& report)
      : p_(params),
        queries_(queries),
        first_(task.query_begin),
        count_(task.query_end - task.query_begin),
        part_(task.part),
        definition_(params),
        states_(count_),
        edges_(2 * rooms()),
        grid_(kCellsAPositive * rooms()),
        places_(kPlaces * count_),
        report_(report) {}

  void begin() {
    int64_t room = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t at = p_.start[first_ + i], count = p_.start[first_ + i + 1] - at;
      State& state = states_[i];
      state = {Tally(p_, first_ + i, part_),
               p_.keys + at,
               p_.rows + at,
               count,
               0,
               edges_ + 2 * room,
               nullptr,
               grid_ + kCellsAPositive * room,
               0,
               0,
               0,
               places_ + kPlaces * i,
               0};
      state.lower = state.upper + room_of(count);
      room += room_of(count);
    }
  }
  static int64_t seeds(int64_t) { return 0; }
  void end_seed(bool) {}
  static bool skips(int64_t, int64_t) { return false; }

  double floor(int64_t i) const {
    const State& state = states_[i];
    if (state.count == 0) return __builtin_inf();
    const KeyInScan worst = key_in_scan(queries_[i], state.keys[state.count - 1], p_.metric);
    return worst.score - worst.error;
  }

  // Norms differ from chunk to chunk, and so does the error; the edges of a larger one stay right.
  template <class Engine>
  void refresh(const Engine& engine) {
    for (int64_t i = 0; i < count_; ++i) {
      const double error = engine.largest_error(i);
      if (states_[i].count > 0 && !(error <= states_[i].error && error >= states_[i].error / 2)) set_edges(i, error);
    }
  }

  template <class Engine>
  void take(Engine& engine, const Tile& tile) {
    const uint64_t valid = (uint64_t(1) << tile.columns) - 1;
    for (int64_t r = 0; r < tile.queries; ++r) {
      const uint32_t reached = tile.reached[r] & uint32_t(valid);
      State& state = states_[tile.query + r];
      if (!reached || state.count == 0) continue;
      const float* const scores = tile.scores + r * kN;
#if defined(GF_AVX512)
      uint32_t unsure = state.count <= kInRegisters ? place_in_registers(state, scores, reached)
                                                    : count_by_grid(state, scores, reached);
#else
      uint32_t unsure = count_by_grid(state, scores, reached);
#endif
      for (; unsure; unsure &= unsure - 1) {
        postpone(tile.query + r, engine.row(tile.slot + __builtin_ctz(unsure)));
      }
    }
  }

  void finish() {
    settle_postponed();
#if defined(GF_AVX512)
    for (int64_t i = 0; i < count_; ++i) {
      if (states_[i].placed) count_places(states_[i]);
    }
#endif
  }

 private:
  struct State {
    Tally tally;
    const double* keys;
    const int64_t* rows;
    int64_t count;
    double error;          // for which the edges are set, in scan units
    float *upper, *lower;  // [count], [count + 1]: lower[b] is that of positive b - 1
    uint32_t* grid;        // [cells + 1] how many upper edges lie in this cell or above
    int64_t cells;
    float origin, density;  // cell of a score: density * score + origin
    uint8_t* places;  // [kPlaces] of scores not counted yet, 32 more than the place; 255 of one that does not count
    int64_t placed;
  };

#if defined(GF_AVX512)
  static constexpr int64_t kInRegisters = 31;  // positives: their edges are a tree
#else
  static constexpr int64_t kInRegisters = 0;
#endif
  static constexpr int64_t kPlaces = 4 * kN;     // more bring little and leave less of L2 for rows and queries
  static constexpr int64_t kCellsAPositive = 8;  // one score in ten or so meets an edge in its cell
  static int64_t room_of(int64_t count) { return most(count, kInRegisters) + 1; }
  int64_t rooms() const {
    int64_t total = 0;
    for (int64_t i = 0; i < count_; ++i) total += room_of(p_.start[first_ + i + 1] - p_.start[first_ + i]);
    return total;
  }

  void set_edges(int64_t i, double error) {
    State& state = states_[i];
    state.error = error;
    const int64_t count = state.count;
    for (int64_t j = 0; j < count; ++j) {
      const KeyInScan key = key_in_scan(queries_[i], state.keys[j], p_.metric);
      state.upper[j] = rounded_up(key.score + key.error + error);
      state.lower[j + 1] = rounded_down(key.score - key.error - error);
    }
    state.lower[0] = __builtin_inff();
    for (int64_t j = count; j < room_of(count); ++j) state.upper[j] = -__builtin_inff();
    for (int64_t j = count + 1; j < room_of(count); ++j) state.lower[j] = -__builtin_inff();
    count <= kInRegisters ? grow_tree(state.upper) : set_grid(state);
  }

  // 31 descending edges -> a search tree: the children of node h are 2h and 2h + 1, its root is node 1.
  static void grow_tree(float* edges) {
    float sorted[32];
    std::memcpy(sorted, edges, sizeof sorted);
    for (uint32_t h = 1; h < 32; ++h) {
      const int level = 31 - __builtin_clz(h);
      edges[h] = sorted[((2 * (h - (1u << level)) + 1) << (4 - level)) - 1];
    }
  }

  void set_grid(State& state) {
    const int64_t count = state.count;
    state.cells = kCellsAPositive * count;
    const float low = state.upper[count - 1], span = state.upper[0] - low;
    const bool spread = span > 0x1p-60f && span < 0x1p60f && __builtin_fabsf(low) < 0x1p60f;
    state.density = spread ? float(state.cells - 1) / span : 0;
    state.origin = spread ? 1 - low * state.density : 0;  // cell 0 is for what is below all
    for (int64_t c = 0; c <= state.cells; ++c) state.grid[c] = 0;
    for (int64_t j = 0; j < count; ++j) ++state.grid[cells_of(state, broadcast(state.upper[j]))[0]];
    for (int64_t c = state.cells; c-- > 0;) state.grid[c] += state.grid[c + 1];
  }

  // Never falls as the score rises: rounding keeps order.
  static Ints cells_of(const State& state, Floats score) {
    const Floats last = broadcast(float(state.cells - 1)), none = Floats{};
    const Floats place = broadcast(state.density) * score + broadcast(state.origin);
    const Floats above = place > none ? place : none;
    return __builtin_convertvector(above < last ? above : last, Ints);
  }

  // Counts the scores of set bits; the bits of those that float64 must settle.
  static uint32_t count_by_grid(State& state, const float* scores, uint32_t reached) {
    alignas(64) int32_t cells[kN];
    store(cells, cells_of(state, load<Floats>(scores)));
    store(cells + kFloats, cells_of(state, load<Floats>(scores + kFloats)));
    uint32_t unsure = 0;
    for (; reached; reached &= reached - 1) {
      const int j = __builtin_ctz(reached);
      int64_t low = state.grid[cells[j] + 1], high = state.grid[cells[j]];
      while (low < high) {  // seldom: a cell has few edges
        const int64_t middle = (low + high) / 2;
        const bool beaten = scores[j] > state.upper[middle];
        low = beaten ? low : middle + 1;
        high = beaten ? middle : high;
      }
      unsure |= uint32_t(scores[j] >= state.lower[low]) << j;
      state.tally.between[low] += !(scores[j] >= state.lower[low]);
    }
    return unsure;
  }

#if defined(GF_AVX512)
  // The same with all edges in four registers, for up to kInRegisters positives: 16 scores at a time go down the tree,
  // and the node they come to is 32 + their place. The places of some tiles are then counted together.
  static uint32_t place_in_registers(State& state, const float* scores, uint32_t reached) {
    const __m512 inner = _mm512_loadu_ps(state.upper), leaves = _mm512_loadu_ps(state.upper + 16);
    const __m512 lower0 = _mm512_loadu_ps(state.lower), lower1 = _mm512_loadu_ps(state.lower + 16);
    const __m512 root = _mm512_set1_ps(state.upper[1]);
    const __m512i one = _mm512_set1_epi32(1);
    uint32_t unsure = 0;
    __m128i places[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 score = _mm512_loadu_ps(scores + 16 * half);
      __m512i node = one;
      const auto descend = [&](__m512 edge) __attribute__((always_inline)) {
        const __mmask16 not_beaten = _mm512_cmp_ps_mask(score, edge, _CMP_LE_OQ);
        node = _mm512_add_epi32(node, node);
        node = _mm512_mask_add_epi32(node, not_beaten, node, one);
      };
      descend(root);
#pragma GCC unroll 3
      for (int level = 1; level < 4; ++level) descend(_mm512_permutexvar_ps(node, inner));
      descend(_mm512_permutexvar_ps(node, leaves));
      const __m512 edge = _mm512_permutex2var_ps(lower0, node, lower1);
      unsure |= uint32_t(_mm512_cmp_ps_mask(score, edge, _CMP_GE_OQ)) << 16 * half;
      places[half] = _mm512_cvtepi32_epi8(node);
    }
    unsure &= reached;
    const __m256i all = _mm256_set_m128i(places[1], places[0]), nowhere = _mm256_set1_epi8(-1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(state.places + state.placed),
                        _mm256_mask_mov_epi8(nowhere, reached & ~unsure, all));
    if ((state.placed += kN) == kPlaces) count_places(state);
    return unsure;
  }

  // By comparing bytes: adding to one counter after the other would wait for each store.
  static void count_places(State& state) {
    static_assert(kPlaces == 128);
    for (int64_t j = state.placed; j < kPlaces; j += kN) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(state.places + j), _mm256_set1_epi8(-1));
    }
    const __m512i first = _mm512_loadu_si512(state.places), second = _mm512_loadu_si512(state.places + 64);
    for (int64_t i = 0; i < state.count; ++i) {
      const __m512i place = _mm512_set1_epi8(char(32 + i));
      state.tally.between[i] += __builtin_popcountll(_mm512_cmpeq_epi8_mask(first, place)) +
                                __builtin_popcountll(_mm512_cmpeq_epi8_mask(second, place));
    }
    state.placed = 0;
  }
#endif

  struct Pair {
    int64_t i, row;
  };
  static constexpr int64_t kTogether = 64;  // pairs: by the time they are settled they have come from memory

  void postpone(int64_t i, int64_t row) {
    definition_.prefetch_pair(first_ + i, row);
    pairs_[postponed_++] = {i, row};
    if (postponed_ == kTogether) settle_postponed();
  }

  void settle_postponed() {
    for (int64_t j = 0; j < postponed_; ++j) {
      const auto [i, row] = pairs_[j];
      State& state = states_[i];
      definition_.choose(first_ + i, queries_[i].square);
      state.tally.add(state.keys, state.rows, state.count, definition_.key(row), p_.first_row + row);
    }
    report_.settled += postponed_;
    postponed_ = 0;
  }

  const CountParams& p_;
  const Query* const queries_;
  const int64_t first_, count_, part_;
  Definition<T> definition_;
  Pair pairs_[kTogether];
  int64_t postponed_ = 0;
  Buffer<State> states_;
  Buffer<float> edges_;
  Buffer<uint32_t> grid_;
  Buffer<uint8_t> places_;
  ScanReport& report_;
};

}  // namespace
}  // namespace graceful_fast
