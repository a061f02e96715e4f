// __syncwarp, shuffles, votes and reductions over the lanes of a warp.
#include "warp.h"

#include <algorithm>
#include <bit>
#include <string>

#include "checks.h"
#include "meeting.h"

namespace simt::host {

namespace {

struct ShuffleRequest {
  Shuffle kind;
  uint64_t bits;
  unsigned lane;  // source, distance or lane mask
  int width;
  uint64_t result;
  int outside = -1;  // a lane that was read though the mask does not name it
};

constexpr const char* kShuffles[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};

// The lane that PTX's shfl reads from; the own one where the source lies outside of the segment.
int source(const ShuffleRequest& request, int lane) {
  const int first = lane & ~(request.width - 1), last = first + request.width - 1;
  const int by = int(request.lane & 31);
  switch (request.kind) {
    case Shuffle::index:
      return first | (by & (request.width - 1));
    case Shuffle::up:
      return lane - by >= first ? lane - by : lane;
    case Shuffle::down:
      return lane + by <= last ? lane + by : lane;
    case Shuffle::exclusive_or:
      return (lane ^ by) <= last ? lane ^ by : lane;
  }
  return lane;
}

void complete_shuffle(Warp&, Meeting& meeting) {
  for (unsigned rest = meeting.arrived; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    auto& request = *static_cast<ShuffleRequest*>(meeting.request[lane]);
    const int from = source(request, lane);
    if (meeting.arrived >> from & 1) {
      request.result = static_cast<ShuffleRequest*>(meeting.request[from])->bits;
    } else {
      request.outside = from;
    }
  }
}

struct VoteRequest {
  Vote kind;
  bool predicate;
  unsigned result;
};

constexpr const char* kVotes[] = {"__ballot_sync", "__any_sync", "__all_sync"};

void complete_vote(Warp&, Meeting& meeting) {
  unsigned yes = 0;
  for (unsigned rest = meeting.arrived; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    yes |= unsigned(static_cast<VoteRequest*>(meeting.request[lane])->predicate) << lane;
  }
  for (unsigned rest = meeting.arrived; rest != 0; rest &= rest - 1) {
    auto& request = *static_cast<VoteRequest*>(meeting.request[std::countr_zero(rest)]);
    request.result = request.kind == Vote::ballot ? yes : request.kind == Vote::any ? yes != 0 : yes == meeting.arrived;
  }
}

struct ReduceRequest {
  Reduce kind;
  unsigned value;
};

constexpr const char* kReductions[] = {"__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                       "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
                                       "__reduce_or_sync",  "__reduce_xor_sync"};

unsigned combine(Reduce kind, unsigned a, unsigned b) {
  switch (kind) {
    case Reduce::add:
      return a + b;
    case Reduce::min_signed:
      return unsigned(std::min(int(a), int(b)));
    case Reduce::max_signed:
      return unsigned(std::max(int(a), int(b)));
    case Reduce::min_unsigned:
      return std::min(a, b);
    case Reduce::max_unsigned:
      return std::max(a, b);
    case Reduce::bit_and:
      return a & b;
    case Reduce::bit_or:
      return a | b;
    case Reduce::bit_xor:
      return a ^ b;
  }
  return a;
}

void complete_reduction(Warp&, Meeting& meeting) {
  const auto request = [&](unsigned lanes) -> ReduceRequest& {
    return *static_cast<ReduceRequest*>(meeting.request[std::countr_zero(lanes)]);
  };
  unsigned total = request(meeting.arrived).value;
  for (unsigned rest = meeting.arrived & (meeting.arrived - 1); rest != 0; rest &= rest - 1) {
    total = combine(request(rest).kind, total, request(rest).value);
  }
  for (unsigned rest = meeting.arrived; rest != 0; rest &= rest - 1) request(rest).value = total;
}

}  // namespace

void sync_warp(unsigned mask, Site site) {
  const Inside inside;
  const auto complete = [](Warp& warp, Meeting& meeting) { checks::warp_synchronised(warp.id, meeting.arrived); };
  meet("__syncwarp", mask, nullptr, site, complete, true);
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, unsigned lane, int width, Site site) {
  const Inside inside;
  const char* name = kShuffles[int(kind)];
  if (width < 1 || width > kLanes || !std::has_single_bit(unsigned(width))) {
    fail(std::string(name) + ": expected a width of 1, 2, 4, 8, 16 or 32, got " + std::to_string(width), site);
  }
  ShuffleRequest request{kind, bits, lane, width, 0};
  meet(name, mask, &request, site, complete_shuffle);
  if (request.outside >= 0) {
    fail(std::string(name) + ": reads lane " + std::to_string(request.outside) + ", which the mask does not name",
         site);
  }
  return request.result;
}

unsigned vote(Vote kind, unsigned mask, bool predicate, Site site) {
  const Inside inside;
  VoteRequest request{kind, predicate, 0};
  meet(kVotes[int(kind)], mask, &request, site, complete_vote);
  return request.result;
}

unsigned reduce(Reduce kind, unsigned mask, unsigned value, Site site) {
  const Inside inside;
  ReduceRequest request{kind, value};
  meet(kReductions[int(kind)], mask, &request, site, complete_reduction);
  return request.value;
}

}  // namespace simt::host
