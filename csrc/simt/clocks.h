// Which accesses of a block are ordered: all of earlier intervals; within one, those of a warp that its __syncwarps
// order.
#pragma once
#include "machine.h"

namespace simt::host {

struct Clocks {
  uint32_t launch_began = 0, block_began = 0, now = 0;  // intervals

  // Of each warp, for the interval `of`: how many __syncwarps there were, and whose accesses before which of them a
  // lane knows to be over.
  struct OfWarp {
    uint32_t of = 0, events = 0;
    uint32_t known[kLanes][kLanes];
  };
  std::array<OfWarp, kMaxWarps> warps;

  OfWarp& warp(int id) {
    OfWarp& w = warps[size_t(id)];
    if (w.of != now) w.of = now, w.events = 0, std::memset(w.known, 0, sizeof w.known);
    return w;
  }
  uint32_t stamp(const Thread& thread) { return warp(thread.warp->id).events; }

  // Whether an access of another lane of this thread's warp, in this interval, is over for this thread.
  bool knows(const Thread& thread, int lane, uint32_t stamp) {
    return stamp < warp(thread.warp->id).known[thread.lane][lane];
  }
  // Whether what thread number `by` did is over for this thread.
  bool ordered(const Thread& thread, uint32_t interval, int by, uint32_t stamp) {
    if (interval != now) return interval >= block_began;  // else: another block of this launch
    if (by == thread.id) return true;
    return by / kLanes == thread.warp->id && knows(thread, by % kLanes, stamp);
  }

  void synchronise(int id, unsigned lanes) {
    OfWarp& w = warp(id);
    uint32_t together[kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int other = 0; other < kLanes; ++other) together[other] = std::max(together[other], w.known[lane][other]);
    }
    ++w.events;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes >> lane & 1) together[lane] = w.events;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes >> lane & 1) std::memcpy(w.known[lane], together, sizeof together);
    }
  }
};

}  // namespace simt::host
