// distill forward: rows of logits -> RowPart of math/row_statistics.h, in one read of both.
//
// A warp takes a row, or an equal share of its tiles: 512 classes (256 in float64) that it holds in registers, 16 (8) a
// lane, in groups of 8 neighbours. Of each tile first the range, then the sums: a vote says whether a maximum rises;
// only then is it reduced, are the frames placed anew and what was summed moved into them. Every lane sums its own
// classes in the warp's frames: float32 within a tile, float64 beyond. Nothing of the row is stored but its part.
//   bytes = both logits (of a row that is compared) + per share: 8 (target), sizeof(RowPart) out, the target's two
//   logits
// The row's last tile reaches past its end: it is summed like one with infinite logits.
#pragma once
#include "kernels/distill_row.cuh"
#include "kernels/reduce.cuh"

namespace graceful_fast {
namespace {

constexpr int kPartsThreads = 128;   // 4 warps: small blocks fill a processor's registers best
constexpr int kPartsBlocks = 2;      // on a processor, at least: as many registers as a lane's 16 classes take
constexpr double kMaxExponent = 20;  // |new_frame - max| / T: exp(d) stays far from overflow and underflow

template <class S>
constexpr int kHeld = sizeof(S) == 4 ? 16 : 8;  // classes a lane: 32 registers of logits
template <class S>
constexpr int kTile = kHeld<S> * int(kWarp);

// What a lane has in registers of a tile.
template <class S>
struct Held {
  S s[kHeld<S>], t[kHeld<S>];  // -inf past the row, and where there is no old logit
  unsigned valid, has_old;     // a bit for each
};

// The column of element e of a lane's share of the tile that begins at `start`.
__device__ inline int64_t column_of(int64_t start, int e) {
  return start + (e / kGroup * int(kWarp) + int(threadIdx.x % kWarp)) * kGroup + e % kGroup;
}

template <class New, class Old, class S>
__device__ void hold(const Pair<New, Old, S>& row, int64_t start, bool compared, Held<S>& tile) {
  tile.valid = tile.has_old = 0;
#pragma unroll
  for (int g = 0; g < kHeld<S> / kGroup; ++g) {
    const int64_t first = column_of(start, g * kGroup);
    S s[kGroup], t[kGroup];
    row.s.load(first, S(-INFINITY), s);
    unsigned has_old = 0;
    if (compared) has_old = row.load_old(first, t);
#pragma unroll
    for (int e = 0; e < kGroup; ++e) {
      tile.s[g * kGroup + e] = s[e];
      tile.t[g * kGroup + e] = compared ? t[e] : S(-INFINITY);
      tile.valid |= unsigned(first + e >= 0 && first + e < row.s.count) << (g * kGroup + e);
    }
    tile.has_old |= has_old << (g * kGroup);
  }
}

// A lane's sums over its classes, in frames that are the warp's.
template <class S>
struct Sums {
  // the warp's
  S top = -INFINITY;                           // of the new logits: the softmax's frame
  S new_max = -INFINITY, old_max = -INFINITY;  // over the classes that both models know
  double placed_at = -INFINITY;                // old_max when the frames were placed
  double mean = 0;                             // of s - t then, under the old model, about
  // the lane's
  Softmax softmax{};
  Divergence divergence{};
  double squares = 0, compared = 0, total = 0;
  S old_min = INFINITY, difference_min = INFINITY, difference_max = -INFINITY;
  S new_before = -INFINITY, old_before = -INFINITY;
};

// 1. Maxima of the tile; where one rises, the frames follow.
template <bool kl, class S>
__device__ void raise(const Held<S>& tile, double temperature, Sums<S>& sums) {
  S top = -INFINITY, new_max = -INFINITY, old_max = -INFINITY;
#pragma unroll
  for (int e = 0; e < kHeld<S>; ++e) {
    top = Larger()(top, tile.s[e]);
    old_max = Larger()(old_max, tile.t[e]);
    if (kl && tile.has_old >> e & 1) new_max = Larger()(new_max, tile.s[e]);
  }
  const bool rises = top > sums.top || old_max > sums.old_max || new_max > sums.new_max;
  if (!__any_sync(kAllLanes, rises)) return;
  sums.top = Larger()(sums.top, warp_reduce<Larger>(top));
  sums.old_max = Larger()(sums.old_max, warp_reduce<Larger>(old_max));
  sums.softmax.move(sums.top);
  if (!kl) return;
  sums.new_max = Larger()(sums.new_max, warp_reduce<Larger>(new_max));
  const double old_to = sums.old_max == S(-INFINITY) ? 0 : double(sums.old_max);
  if (!(old_to - sums.placed_at <= temperature)) {  // never placed, or most of the mass is in this tile
    // about the mean of s - t under the old model; infinite differences are left out
    double mass = 0, weighted = 0;
#pragma unroll
    for (int e = 0; e < kHeld<S>; ++e) {
      const double difference = double(tile.s[e]) - double(tile.t[e]);
      if (!(difference - difference == 0)) continue;
      const double w = exponential((tile.t[e] - S(old_to)) * S(1 / temperature));
      mass += w, weighted += w * difference;
    }
    mass = warp_reduce<Add>(mass), weighted = warp_reduce<Add>(weighted);
    sums.mean = mass > 0 ? weighted / mass : 0;
    sums.placed_at = double(sums.old_max);
  }
  const double highest = sums.new_max == S(-INFINITY) ? old_to : double(sums.new_max),
               reach = kMaxExponent * temperature;
  const double to = old_to + sums.mean;
  const double new_to = S(to < highest - reach ? highest - reach : to > highest + reach ? highest + reach : to);
  sums.divergence.move(new_to, old_to, temperature);
}

// 2. The softmax's sums.
template <class S>
__device__ void add_exponentials(const Held<S>& tile, bool with_total, Sums<S>& sums) {
  const S frame = sums.top == S(-INFINITY) ? S(0) : sums.top;
  S rest = 0, total = 0;
  int ones = 0;
#pragma unroll
  for (int e = 0; e < kHeld<S>; ++e) {
    const S shifted = tile.s[e] - frame;
    const bool one = shifted == 0;
    rest += one ? S(0) : exponential(shifted);
    ones += one;
    if (with_total && tile.valid >> e & 1) total += shifted;
  }
  sums.softmax.rest += double(rest), sums.softmax.ones += ones;
  if (with_total) sums.total += double(total) + __popc(tile.valid) * double(frame);
}

// 3. The divergence's sums. near: every |d| of the tile is at most kSmall, so v follows from the others.
template <bool near, class S>
__device__ void add_divergence(const Held<S>& tile, const Frames<S>& frames, Divergence& divergence) {
  S k = 0, m = 0, x = 0, v = 0;
#pragma unroll
  for (int e = 0; e < kHeld<S>; ++e) {
    const S s = tile.has_old >> e & 1 ? tile.s[e] : S(-INFINITY), t = tile.t[e];
    const auto [u, d] = exponents<!near>(s, t, frames);
    const S w = exponential(u);
    k += w;
    if constexpr (near) {
      m += w * d, x += w * grown_bent(d);
    } else {
      const S of_new = exponential((s - frames.new_frame) * frames.inverse);
      // No old mass: no term, whatever d is. A new -inf under old mass, however small: an infinite divergence.
      const S wd = u == S(-INFINITY) ? S(0) : d == S(-INFINITY) ? S(-INFINITY) : w * d;
      m += wd, v += of_new;
      x += (d < 0 ? -d : d) <= S(kSmall) ? w * grown_bent(d) : (of_new - w) - wd;
    }
  }
  divergence.k += double(k), divergence.m += double(m), divergence.x += double(x);
  divergence.v += near ? double(k) + double(m) + double(x) : double(v);
}
template <class S>
__device__ void compare_kl(const Held<S>& tile, double temperature, Sums<S>& sums) {
  S low = INFINITY, high = -INFINITY, old_min = INFINITY;
  bool whole = true;
#pragma unroll
  for (int e = 0; e < kHeld<S>; ++e) {
    const S difference = tile.s[e] - tile.t[e];
    if (tile.has_old >> e & 1) {
      low = Smaller()(low, difference), high = Larger()(high, difference);
      old_min = Smaller()(old_min, tile.t[e]);
    }
    whole = whole && tile.t[e] != S(-INFINITY);
  }
  sums.difference_min = Smaller()(sums.difference_min, low), sums.difference_max = Larger()(sums.difference_max, high);
  sums.old_min = Smaller()(sums.old_min, old_min);
  const Divergence& d = sums.divergence;
  const Frames<S> frames(0, d.new_frame, d.old_frame, temperature);
  const S reach = S(kSmall * temperature);
  const bool near = whole && low - frames.shift >= -reach && high - frames.shift <= reach;
  if (__all_sync(kAllLanes, near)) return add_divergence<true>(tile, frames, sums.divergence);
  add_divergence<false>(tile, frames, sums.divergence);
}

// 3. Or the squared differences beyond the margin. excluded: the column that counts but differs by nothing.
template <class S>
__device__ void compare_squares(const Held<S>& tile, int64_t start, S margin, int64_t excluded, Sums<S>& sums) {
  S squares = 0;
  int compared = 0;
#pragma unroll
  for (int e = 0; e < kHeld<S>; ++e) {
    if (tile.t[e] == S(-INFINITY)) continue;
    const S size = beyond_margin(tile.s[e] - tile.t[e], margin);
    squares += column_of(start, e) == excluded ? S(0) : size * size;
    ++compared;
  }
  sums.squares += double(squares), sums.compared += compared;
}

// 4. The greatest logits of the columns before the target: the first of equals is the argmax.
template <class S>
__device__ void see_before(const Held<S>& tile, int64_t start, int64_t column, Sums<S>& sums) {
  if (start >= column) return;
#pragma unroll
  for (int e = 0; e < kHeld<S>; ++e) {
    if (column_of(start, e) >= column) continue;
    sums.new_before = Larger()(sums.new_before, tile.s[e]), sums.old_before = Larger()(sums.old_before, tile.t[e]);
  }
}

// The warp's part: what its lanes have, added up.
template <bool kl, class S>
__device__ RowPart part_of(const Sums<S>& sums) {
  RowPart part;
  part.softmax = {double(sums.top), warp_reduce<Add>(sums.softmax.ones), warp_reduce<Add>(sums.softmax.rest)};
  part.total = warp_reduce<Add>(sums.total);
  part.old_max = double(sums.old_max);
  part.new_before = double(warp_reduce<Larger>(sums.new_before));
  part.old_before = double(warp_reduce<Larger>(sums.old_before));
  part.rounding = kFramed;
  if constexpr (kl) {
    const Divergence& d = sums.divergence;
    part.divergence = {d.new_frame,           d.old_frame,           warp_reduce<Add>(d.k),
                       warp_reduce<Add>(d.m), warp_reduce<Add>(d.x), warp_reduce<Add>(d.v)};
    part.old_min = double(warp_reduce<Smaller>(sums.old_min));
    part.difference_min = double(warp_reduce<Smaller>(sums.difference_min));
    part.difference_max = double(warp_reduce<Larger>(sums.difference_max));
  } else {
    part.squares = warp_reduce<Add>(sums.squares), part.compared = warp_reduce<Add>(sums.compared);
  }
  return part;
}

template <class New, class Old, class S, bool kl>
__global__ void __launch_bounds__(kPartsThreads, kPartsBlocks) distill_parts(DistillParts p) {
  const DistillLogits& logits = p.logits;
  const int64_t rows = logits.new_logits.rows, columns = logits.new_logits.columns;
  const int64_t warp = int64_t(blockIdx.x) * (kPartsThreads / kWarp) + threadIdx.x / kWarp;
  if (warp >= rows * p.splits) return;
  const int64_t i = warp / p.splits, split = warp % p.splits;
  const int64_t target = logits.target[i], column = target - logits.first_class;
  const bool first_lane = threadIdx.x % kWarp == 0;
  auto* const out = reinterpret_cast<RowPart*>(p.parts) + split * rows + i;
  if (target == logits.ignore_index) {
    if (first_lane) *out = RowPart{};
    return;
  }
  const Pair<New, Old, S> row(logits, i);
  const bool here = column >= 0 && column < columns;
  const int64_t old_column = here ? row.old_column(column) : -1;
  const bool compared = !here || old_column != -1;  // a target that the old model never knew: no distillation
  const int64_t excluded = logits.exclude_target && here && old_column != -1 ? column : -1;

  const int64_t shift = row.s.misplaced(), tiles = (columns + kGroup - 1 + kTile<S> - 1) / kTile<S>;
  const int64_t begin = tiles * split / p.splits, end = tiles * (split + 1) / p.splits;
  Sums<S> sums;
  for (int64_t i_tile = begin; i_tile < end; ++i_tile) {
    const int64_t start = i_tile * kTile<S> - shift;
    Held<S> tile;
    hold(row, start, compared, tile);
    raise<kl>(tile, logits.temperature, sums);
    add_exponentials(tile, p.with_total, sums);
    see_before(tile, start, column, sums);
    if (!compared) continue;
    if constexpr (kl) {
      compare_kl(tile, logits.temperature, sums);
    } else {
      compare_squares(tile, start, S(logits.margin), excluded, sums);
    }
  }
  RowPart part = part_of<kl>(sums);
  if (!first_lane) return;
  if (here && column >= begin * kTile<S> - shift && column < end * kTile<S> - shift) {
    part.new_target = double(row.s[column]);
    if (old_column != -1) part.known = 1, part.old_target = double(row.old_logit(old_column));
  }
  *out = part;
}

}  // namespace
}  // namespace graceful_fast
