// __syncthreads and its kin, and the end of a thread.
#include "checks.h"
#include "machine.h"
#include "meeting.h"

namespace simt::host {

namespace {

constexpr const char* kNames[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and", "__syncthreads_count"};

}  // namespace

int barrier(Barrier kind, bool predicate, Site site) {
  const Inside inside;
  Machine& m = machine();
  const char* name = kNames[int(kind)];
  if (m.live < m.threads_in_block) {
    fail(std::string(name) + ", but " + std::to_string(m.threads_in_block - m.live) +
             " threads of the block have exited and never come",
         site);
  }
  if (m.at_barrier == 0) {
    m.barrier_kind = kind;
    m.barrier_site = site;
  } else if (m.barrier_kind != kind || !same_place(m.barrier_site, site)) {
    fail(std::string("divergent barriers: this thread comes to ") + name + ", others wait in " +
             kNames[int(m.barrier_kind)] + " (" + place(m.barrier_site) + ")",
         site);
  }
  m.yes += predicate;
  if (++m.at_barrier < m.threads_in_block) {
    m.wait(Thread::State::at_barrier, name, site);
    return m.answer;
  }
  m.answer = kind == Barrier::any ? m.yes > 0 : kind == Barrier::all ? m.yes == m.threads_in_block : m.yes;
  m.at_barrier = m.yes = 0;
  checks::block_synchronised();
  for (int i = 0; i < m.threads_in_block; ++i) m.set_ready(m.threads[i]);
  m.may_preempt();
  return m.answer;
}

void Machine::exit_thread() {
  Thread& thread = *current;
  if (!thread.copies.empty()) fail("exits with an asynchronous copy that was never waited for", thread.copies[0].site);
  if (at_barrier > 0) {
    fail("exits while " + std::to_string(at_barrier) + " threads wait in " + kNames[int(barrier_kind)] + " (" +
         place(barrier_site) + ")");
  }
  lane_exits(thread);
  thread.state = Thread::State::exited;
  thread.warp->live &= ~(1u << thread.lane);
  thread.warp->ready &= ~(1u << thread.lane);
  if (thread.warp->ready == 0) ready_warps &= ~(1u << thread.warp->id);
  if (--live == 0) Fiber::change(thread.fiber, outside);
  next();
}

}  // namespace simt::host
