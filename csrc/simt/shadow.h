// What is remembered of every byte of a piece of memory: who wrote it last, and who has read it since.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace simt::host {

// Time is counted in intervals: a new one begins with every launch, block and barrier, so a larger number is later.
// Within an interval a warp counts its __syncwarps: an access carries their number so far, its stamp.
struct Cell {
  uint32_t write_interval = 0;  // 0: never written
  uint32_t write_stamp = 0;
  // The accessors since: readers, or atomics (kAtomics); a new kind, or an ordered write, begins a new set.
  uint32_t set_interval = 0;
  uint32_t set_stamp = 0;  // of every lane in the set, unless kMixed
  uint32_t lanes = 0;      // of the warp of `accessor`
  uint16_t writer = 0;     // number in its block
  uint16_t accessor = 0;   // one of the set
  uint16_t other = 0;      // kSeveralWarps: one of another warp
  uint8_t flags = 0;
  uintptr_t write_where = 0, set_where = 0;
};

enum CellFlag : uint8_t {
  kInFlight = 1,       // an asynchronous copy has not been waited for
  kAtomics = 2,        // the set is of atomics
  kEarlierBlocks = 4,  // the set had members in earlier blocks of this launch
  kSeveralWarps = 8,   // the set has members of more than one warp
  kMixed = 16,         // the lanes' stamps differ and stand in a table
};

// Cells for a piece of memory, each for as many bytes as the narrowest aligned access so far.
class Shadow {
 public:
  // Calls f(cell, first byte of it) for every cell of [offset, offset + count) in a memory of `size` bytes.
  template <typename F>
  void each(size_t size, size_t offset, size_t count, F&& f) {
    if ((offset | count) & (grain_ - 1) || cells_.empty()) refine(size, offset | count);
    for (size_t i = offset / grain_; i * grain_ < offset + count; ++i) f(cells_[i], i * grain_);
  }
  void clear() { cells_.clear(), grain_ = kCoarsest; }

 private:
  static constexpr size_t kCoarsest = 16;

  void refine(size_t size, size_t aligned_to) {
    size_t grain = grain_;
    while (aligned_to & (grain - 1)) grain /= 2;
    std::vector<Cell> finer((size + grain - 1) / grain);
    if (!cells_.empty()) {
      for (size_t i = 0; i < finer.size(); ++i) finer[i] = cells_[i * grain / grain_];
    }
    cells_ = std::move(finer);
    grain_ = grain;
  }

  std::vector<Cell> cells_;
  size_t grain_ = kCoarsest;
};

}  // namespace simt::host
