// Where the lanes of a warp meet: __syncwarp, shuffles, votes, reductions. The last lane to come does the work for all.
#include "meeting.h"

#include <bit>
#include <cstdio>
#include <string>

#include "machine.h"

namespace simt::host {

namespace {

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

std::string lanes(unsigned mask) {
  std::string text = std::has_single_bit(mask) ? "lane" : "lanes";
  for (int lane = 0, told = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (++told > 6) return text + " ...";
    text += (told > 1 ? ", " : " ") + std::to_string(lane);
  }
  return text;
}

// What two meetings with a lane in common mean: the lane can be in one only, and the others wait for it.
void check_others(const Warp& warp, const char* name, unsigned mask, Site site, int lane) {
  for (unsigned rest = warp.open; rest != 0; rest &= rest - 1) {
    const Meeting& other = warp.meetings[std::countr_zero(rest)];
    if ((other.mask >> lane & 1) && (other.arrived & mask)) {
      fail(std::string("divergent lanes: comes to ") + name + " with mask " + hex(mask) + " while " +
               lanes(other.arrived) + " of its warp wait for it in " + other.name + " with mask " + hex(other.mask) +
               " (" + place(other.site) + ")",
           site);
    }
  }
}

}  // namespace

void finish(Warp& warp, Meeting& meeting) {
  warp.open &= ~(1u << (&meeting - warp.meetings.data()));
  meeting.complete(warp, meeting);
  Machine& m = machine();
  for (unsigned rest = meeting.arrived; rest != 0; rest &= rest - 1) {
    m.set_ready(m.threads[warp.id * kLanes + std::countr_zero(rest)]);
  }
}

void meet(const char* name, unsigned mask, void* request, Site site, Meeting::Complete* complete, bool only_live) {
  Machine& m = machine();
  Warp& warp = *current->warp;
  const int lane = current->lane;
  if (!(mask >> lane & 1)) {
    fail(std::string(name) + ": mask " + hex(mask) + " lacks the calling lane " + std::to_string(lane), site);
  }
  if ((mask & ~warp.live) && !only_live) {
    fail(std::string(name) + ": mask " + hex(mask) + " names " + lanes(mask & ~warp.live) + ", exited or never there",
         site);
  }
  Meeting* meeting = nullptr;
  for (unsigned rest = warp.open; rest != 0; rest &= rest - 1) {
    Meeting& other = warp.meetings[std::countr_zero(rest)];
    if (other.mask == mask && other.name == name && (only_live || same_place(other.site, site))) meeting = &other;
  }
  if (meeting == nullptr) {
    check_others(warp, name, mask, site, lane);
    const int slot = std::countr_one(warp.open);
    warp.open |= 1u << slot;
    meeting = &warp.meetings[slot];
    meeting->name = name;
    meeting->complete = complete;
    meeting->only_live = only_live;
    meeting->mask = mask;
    meeting->arrived = 0;
    meeting->site = site;
  }
  meeting->arrived |= 1u << lane;
  meeting->request[lane] = request;
  if ((mask & warp.live & ~meeting->arrived) != 0) return m.wait(Thread::State::in_warp, name, site);
  finish(warp, *meeting);
  m.may_preempt();
}

void lane_exits(const Thread& thread) {
  Warp& warp = *thread.warp;
  const unsigned self = 1u << thread.lane;
  for (unsigned rest = warp.open; rest != 0; rest &= rest - 1) {
    Meeting& meeting = warp.meetings[std::countr_zero(rest)];
    if (!(meeting.mask & self)) continue;
    if (!meeting.only_live) {
      fail("exits while " + lanes(meeting.arrived) + " of its warp wait for it in " + meeting.name + " with mask " +
           hex(meeting.mask) + " (" + place(meeting.site) + ")");
    }
    if ((meeting.mask & warp.live & ~self & ~meeting.arrived) == 0) finish(warp, meeting);
  }
}

}  // namespace simt::host
