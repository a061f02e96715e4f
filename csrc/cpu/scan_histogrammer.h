// scan, the ending `histogram`: every pair counted by the bin of its scan score, those of some bins kept.
#pragma once
#include "cpu/scan_pairs.h"

namespace graceful_fast {
namespace {

template <class T>
class Histogrammer {
 public:
  Histogrammer(const HistogramParams& params, const Task& task, const Query* queries, ScanReport&)
      : p_(params),
        queries_(queries),
        first_(task.query_begin),
        count_(task.query_end - task.query_begin),
        bins_(params),
        kept_(params),
        lines_(count_) {}

  // bin = slope * score + offset; the key of a score s is s / unit, of l2 (2 s - square unit) / unit.
  void begin() {
    for (int64_t i = 0; i < count_; ++i) {
      const Query& query = queries_[i];
      const bool l2 = p_.metric == Metric::l2;
      const double slope = (l2 ? 2 : 1) / (query.unit * p_.width);
      const double offset = -(p_.origin + (l2 ? query.square : 0)) / p_.width;
      const bool usable = slope < 0x1p100 && __builtin_fabs(offset) < 0x1p100;
      lines_[i] = usable ? Line{slope, offset, float(slope), float(offset)} : Line{__builtin_inf(), 0, 0, 0};
    }
  }
  static int64_t seeds(int64_t) { return 0; }
  void end_seed(bool) {}
  double floor(int64_t) const { return -__builtin_inf(); }
  bool skips(int64_t i, int64_t row) const { return p_.within && row <= first_ + i; }

  template <class Engine>
  void refresh(const Engine& engine) {
    bins_.expect(count_ * engine.chunk.count);
    for (int64_t i = 0; i < count_; ++i) {
      // Slope, offset, the sum and the bin's edge are rounded to float32 and no score exceeds the square of the norms.
      const double reach = queries_[i].norm + engine.largest();
      const double rounding = lines_[i].slope * reach * reach + __builtin_fabs(lines_[i].offset) + double(p_.bins);
      const double margin = engine.largest_error(i) * lines_[i].slope + 0x1p-22 * rounding;
      if (!(margin <= margin_)) margin_ = margin < __builtin_inf() ? margin : __builtin_inf();
    }
  }

  template <class Engine>
  void take(Engine& engine, const Tile& tile) {
    const int64_t row = engine.row(tile.slot);
    uint32_t* const counts = bins_.counts();
    const Floats last = broadcast(float(p_.bins - 1)), none = Floats{};
    for (int64_t r = 0; r < tile.queries; ++r) {
      const Line& line = lines_[tile.query + r];
      const int64_t query = first_ + tile.query + r;
      const Wanted pairs = wanted(p_, query, row, tile.columns);
      alignas(64) int32_t targets[kN];
      alignas(64) float places[kN];
      uint32_t keep = 0;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Floats score = load<Floats>(tile.scores + r * kN + half * kFloats);
        const Floats place = fma(score, broadcast(line.slope32), broadcast(line.offset32));
        const Floats above = place > none ? place : none;
        const Ints bin = __builtin_convertvector(above < last ? above : last, Ints);
        const Ints genuine = load<Ints>(p_.row_labels + row + half * kFloats) == Ints{} + p_.query_labels[query];
        store(places + half * kFloats, place);
        store(targets + half * kFloats, bin + (genuine & (Ints{} + int32_t(p_.bins))));
        Ints inside = Ints{};
        for (int64_t k = 0; k < p_.range_count; ++k) {
          const Words from = (Words)(bin - int32_t(p_.ranges[2 * k]));
          inside |= (Ints)(from <= uint32_t(p_.ranges[2 * k + 1] - p_.ranges[2 * k]));
        }
        keep |= bits(inside) << half * kFloats;
      }
      if (pairs.valid == kAll) {
#pragma GCC unroll 32
        for (int j = 0; j < kN; ++j) ++counts[targets[j]];
      } else {
        for (uint32_t valid = pairs.valid; valid; valid &= valid - 1) ++counts[targets[__builtin_ctz(valid)]];
      }
      for (keep &= pairs.valid; keep; keep &= keep - 1) {
        const int j = __builtin_ctz(keep);
        kept_.add({places[j], uint8_t(pairs.genuine >> j & 1), query * p_.gallery.rows + row + j}, move());
      }
    }
  }

  double finish() {
    bins_.flush();
    kept_.flush(move());
    return margin_;
  }

 private:
  struct Line {
    double slope, offset;
    float slope32, offset32;
  };
  static constexpr uint32_t kAll = uint32_t((uint64_t(1) << kN) - 1);

  struct Item {
    float place;
    uint8_t genuine;
    int64_t pair;
  };
  auto move() const {
    return [this](int64_t to, const Item& item) {
      p_.places[to] = item.place;
      p_.kinds[to] = item.genuine;
      p_.pairs[to] = item.pair;
    };
  }

  const HistogramParams& p_;
  const Query* const queries_;
  const int64_t first_, count_;
  Bins bins_;
  Kept<Item> kept_;
  Buffer<Line> lines_;
  double margin_ = 0;
};

}  // namespace
}  // namespace graceful_fast
