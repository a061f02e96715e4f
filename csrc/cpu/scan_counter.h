// scan, the ending `count`: where each score stands among a query's positives.
//
// upper[i], lower[i]: a scan score above upper[i] surely beats positive i, one below lower[i] surely does not; both
// descend. b = #{i: score <= upper[i]} positives are not surely beaten, and if the last of them, b - 1, surely beats the
// score, so do all before it: the score is counted at place b. Else float64 settles it.
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
        grid_(4 * rooms()),
        report_(report) {}

  void begin() {
    int64_t room = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t at = p_.start[first_ + i], count = p_.start[first_ + i + 1] - at;
      State& state = states_[i];
      state = {Tally(p_, first_ + i, part_), p_.keys + at, p_.rows + at, count, 0, edges_ + 2 * room, nullptr,
               grid_ + 4 * room,             0,            0,            0};
      state.lower = state.upper + room_of(count);
      room += room_of(count);
    }
  }
  void end_seed() {}

  double floor(int64_t i) const {
    const State& state = states_[i];
    if (state.count == 0) return __builtin_inf();
    const InScanUnits worst = in_scan_units(queries_[i], state.keys[state.count - 1], p_.metric);
    return worst.score - worst.error;
  }

  // Norms differ from chunk to chunk, and so does the error; the edges of a larger one stay right.
  template <class Engine>
  void refresh(const Engine& engine) {
    for (int64_t i = 0; i < count_; ++i) {
      const double error = engine.error(i);
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
      uint32_t unsure;
#if defined(GF_AVX512)
      if (state.count <= kInRegisters && tile.columns == kN) {
        unsure = count_in_registers(state, scores, reached);
      } else {
        unsure = count_by_grid(state, scores, reached);
      }
#else
      unsure = count_by_grid(state, scores, reached);
#endif
      for (; unsure; unsure &= unsure - 1) {
        settle(tile.query + r, engine.row(tile.slot + __builtin_ctz(unsure)));
      }
    }
  }

 private:
  struct State {
    Tally tally;
    const double* keys;
    const int64_t* rows;
    int64_t count;
    double error;  // for which the edges are set, in scan units
    float *upper, *lower;  // [count], [count + 1]: lower[b] is that of positive b - 1
    uint32_t* grid;        // [cells + 1] how many upper edges lie in this cell or above
    int64_t cells;
    float origin, density;  // cell of a score: density * score + origin
  };

  static constexpr int64_t kInRegisters = 31;
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
      const InScanUnits key = in_scan_units(queries_[i], state.keys[j], p_.metric);
      state.upper[j] = at_least(key.score + key.error + error);
      state.lower[j + 1] = at_most(key.score - key.error - error);
    }
    state.lower[0] = __builtin_inff();
    for (int64_t j = count; j < room_of(count); ++j) state.upper[j] = -__builtin_inff();
    for (int64_t j = count + 1; j < room_of(count); ++j) state.lower[j] = -__builtin_inff();
    set_grid(state);
  }

  void set_grid(State& state) {
    const int64_t count = state.count;
    state.cells = 2;
    while (state.cells < 2 * count) state.cells *= 2;
    const float low = state.upper[count - 1], span = state.upper[0] - low;
    const bool spread = span > 0x1p-60f && span < 0x1p60f && __builtin_fabsf(low) < 0x1p60f;
    state.density = spread ? float(state.cells - 1) / span : 0;
    state.origin = spread ? 1 - low * state.density : 0;  // cell 0 is for what is below all
    for (int64_t c = 0; c <= state.cells; ++c) state.grid[c] = 0;
    for (int64_t j = 0; j < count; ++j) ++state.grid[cell(state, state.upper[j])];
    for (int64_t c = state.cells; c-- > 0;) state.grid[c] += state.grid[c + 1];
  }

  // Never falls as the score rises: rounding keeps order.
  static int64_t cell(const State& state, float score) {
    const float place = state.density * score + state.origin;
    return place > 0 ? (place < float(state.cells - 1) ? int64_t(place) : state.cells - 1) : 0;
  }

  // Counts the scores of set bits; the bits of those that float64 must settle.
  static uint32_t count_by_grid(State& state, const float* scores, uint32_t reached) {
    uint32_t unsure = 0;
    for (; reached; reached &= reached - 1) {
      const int j = __builtin_ctz(reached);
      const int64_t at = cell(state, scores[j]);
      int64_t low = state.grid[at + 1], high = state.grid[at];
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (scores[j] <= state.upper[middle]) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      if (scores[j] >= state.lower[low]) {
        unsure |= uint32_t(1) << j;
      } else {
        ++state.tally.between[low];
      }
    }
    return unsure;
  }

#if defined(GF_AVX512)
  // The same with all edges in four registers, for up to kInRegisters positives: five halvings of 16 scores at a time.
  static uint32_t count_in_registers(State& state, const float* scores, uint32_t reached) {
    const __m512 upper0 = _mm512_loadu_ps(state.upper), upper1 = _mm512_loadu_ps(state.upper + 16);
    const __m512 lower0 = _mm512_loadu_ps(state.lower), lower1 = _mm512_loadu_ps(state.lower + 16);
    uint32_t all_unsure = 0;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 score = _mm512_loadu_ps(scores + 16 * half);
      __m512i place = _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(score, _mm512_set1_ps(state.upper[15]), _CMP_LE_OQ), 16);
#pragma GCC unroll 4
      for (int step = 8; step > 0; step /= 2) {
        const __m512i next = _mm512_add_epi32(place, _mm512_set1_epi32(step));
        const __m512 edge = _mm512_permutex2var_ps(upper0, _mm512_add_epi32(place, _mm512_set1_epi32(step - 1)), upper1);
        place = _mm512_mask_mov_epi32(place, _mm512_cmp_ps_mask(score, edge, _CMP_LE_OQ), next);
      }
      const __mmask16 mine = __mmask16(reached >> 16 * half);
      const __m512 edge = _mm512_permutex2var_ps(lower0, place, lower1);
      const __mmask16 unsure = _mm512_mask_cmp_ps_mask(mine, score, edge, _CMP_GE_OQ);
      alignas(64) uint32_t places[16];
      _mm512_store_si512(places, place);
      int64_t* const between = state.tally.between;
      if (unsure == 0 && mine == 0xffff) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) ++between[places[j]];
      } else {
        for (uint32_t sure = mine & ~unsure; sure; sure &= sure - 1) ++between[places[__builtin_ctz(sure)]];
      }
      all_unsure |= uint32_t(unsure) << 16 * half;
    }
    return all_unsure;
  }
#endif

  void settle(int64_t i, int64_t row) {
    State& state = states_[i];
    ++report_.settled;
    state.tally.add(state.keys, state.rows, state.count, definition_(first_ + i, row), row, 1);
  }

  const CountParams& p_;
  const Query* const queries_;
  const int64_t first_, count_, part_;
  Definition<T> definition_;
  Buffer<State> states_;
  Buffer<float> edges_;
  Buffer<uint32_t> grid_;
  ScanReport& report_;
};

}  // namespace
}  // namespace graceful_fast
