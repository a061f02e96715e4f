// Runs a launch: block after block, each block's threads as fibers, in the order of the schedule.
#include "machine.h"

#include <sys/mman.h>

#include <bit>
#include <cstring>
#include <numeric>
#include <string_view>
#include <system_error>

#include "buffers.h"
#include "checks.h"
#include "counts.h"
#include "shared.h"

namespace simt::host {

constinit thread_local Thread* current = nullptr;

constinit Machine* the_machine = nullptr;
constinit std::mutex one_at_a_time;

uint3 thread_index() { return current->index; }
uint3 block_index() { return machine().block_index; }
uint3 block_size() { return machine().block_size; }
uint3 grid_size() { return machine().grid_size; }

namespace {

void enter() {
  Fiber::entered();
  Machine& m = machine();
  m.inside = false;
  std::string thrown;
  try {
    m.call->run(m.call->bound);
  } catch (const std::exception& error) {
    thrown = error.what();
  } catch (...) {
    thrown = "of an unknown type";
  }
  m.inside = true;
  if (!thrown.empty()) fail("an exception left the kernel: " + thrown);
  m.exit_thread();
}

Machine& make_machine() {
  if (the_machine == nullptr) the_machine = new Machine;
  return *the_machine;
}

std::byte* make_stacks() {
  void* stacks = mmap(nullptr, kAllStacks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "simt: stacks of the fibers");
  for (int i = 0; i < kMaxThreads; ++i) mprotect(static_cast<std::byte*>(stacks) + i * kStackBytes, 4096, PROT_NONE);
  return static_cast<std::byte*>(stacks);
}

// Any set bit of a non-zero mask, all about equally likely.
int random_bit(unsigned mask, Random& random) {
  const int turn = int(random.next() & 31);
  return (std::countr_zero(std::rotr(mask, turn)) + turn) & 31;
}

std::string size(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

void check_launch(const Call& call) {
  const auto refuse = [&](const std::string& what) { throw Error(std::string("kernel ") + call.name + ": " + what); };
  const uint64_t threads = uint64_t(call.block.x) * call.block.y * call.block.z;
  if (threads < 1 || threads > kMaxThreads || call.block.z > 64) {
    refuse("launched with blocks of " + size(call.block) + " threads; a block has 1 to 1024, at most 64 in z");
  }
  if (call.grid.x > 0x7fffffff || call.grid.y > 65535 || call.grid.z > 65535) {
    refuse("launched with a grid of " + size(call.grid) + "; at most (2147483647, 65535, 65535)");
  }
  if (call.shared_bytes > kMaxShared) {
    refuse("launched with " + std::to_string(call.shared_bytes) + " bytes of shared memory; at most " +
           std::to_string(kMaxShared));
  }
}

}  // namespace

void launch(const Call& call) {
  if (call.grid.x == 0 || call.grid.y == 0 || call.grid.z == 0) return;
  check_launch(call);
  const std::lock_guard lock(one_at_a_time);
  make_machine().run(call);
}

void Machine::run(const Call& with) {
  if (stacks == nullptr) stacks = make_stacks();
  call = &with;
  grid_size = {with.grid.x, with.grid.y, with.grid.z};
  block_size = {with.block.x, with.block.y, with.block.z};
  threads_in_block = int(with.block.x * with.block.y * with.block.z);
  random.state = (seed + 1) * 0x9E3779B97F4A7C15ull;
  failure.clear();
  checks::launch_started();
  counting_started(with.name);
  const uint64_t count = uint64_t(with.grid.x) * with.grid.y * with.grid.z;
  std::vector<uint32_t> shuffled;
  if (order == Order::random) {
    shuffled.resize(count);
    std::iota(shuffled.begin(), shuffled.end(), 0u);
    for (uint32_t i = uint32_t(count); i > 1; --i) std::swap(shuffled[i - 1], shuffled[random.below(i)]);
  }
  for (uint64_t i = 0; i < count && failure.empty(); ++i) {
    run_block(order == Order::ascending ? i : order == Order::descending ? count - 1 - i : shuffled[i]);
  }
  call = nullptr;
  if (failure.empty()) return;
  forget_shared_memory();  // what the abandoned threads left
  throw Error(failure);
}

void Machine::run_block(uint64_t number) {
  block_index.x = unsigned(number % grid_size.x);
  block_index.y = unsigned(number / grid_size.x % grid_size.y);
  block_index.z = unsigned(number / grid_size.x / grid_size.y);
  checks::block_started();
  start_shared_memory(call->shared_bytes);
  live = threads_in_block;
  at_barrier = yes = 0;
  ready_warps = 0;
  for (int i = 0; i < threads_in_block; ++i) {
    Thread& thread = threads[i];
    thread.id = i;
    thread.lane = i % kLanes;
    thread.warp = &warps[i / kLanes];
    thread.index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    thread.copies.clear();
    thread.commits = 0;
    thread.fiber.prepare(stacks + i * kStackBytes + 4096, kStackBytes - 4096, enter);
    if (thread.lane == 0) {
      thread.warp->id = i / kLanes;
      thread.warp->live = thread.warp->ready = thread.warp->open = 0;
    }
    thread.warp->live |= 1u << thread.lane;
    set_ready(thread);
  }
  burst = 0;
  current = &choose();
  Fiber::change(outside, current->fiber);
  current = nullptr;
}

void Machine::set_ready(Thread& thread) {
  thread.state = Thread::State::ready;
  thread.warp->ready |= 1u << thread.lane;
  ready_warps |= 1u << thread.warp->id;
}

Thread& Machine::choose() {
  int warp, lane;
  if (order == Order::ascending) {
    warp = std::countr_zero(ready_warps);
    lane = std::countr_zero(warps[warp].ready);
  } else if (order == Order::descending) {
    warp = 31 - std::countl_zero(ready_warps);
    lane = 31 - std::countl_zero(warps[warp].ready);
  } else {
    // A warp keeps the machine for a burst of 1 to 512 switches: long enough to be whole barriers ahead of the others.
    if (--burst < 0 || !(ready_warps >> warp_running & 1)) {
      warp_running = random_bit(ready_warps, random);
      burst = 1 << random.below(10);
    }
    warp = warp_running;
    lane = random_bit(warps[warp].ready, random);
  }
  return threads[warp * kLanes + lane];
}

void Machine::next() {
  if (ready_warps == 0) deadlock();
  Thread& to = choose();
  if (&to == current) return;
  Thread& from = *current;
  const bool was_inside = inside;
  current = &to;
  Fiber::change(from.fiber, to.fiber);
  inside = was_inside;
}

void Machine::wait(Thread::State state, const char* name, Site site) {
  Thread& thread = *current;
  thread.state = state;
  thread.waits_in = name;
  thread.site = site;
  thread.warp->ready &= ~(1u << thread.lane);
  if (thread.warp->ready == 0) ready_warps &= ~(1u << thread.warp->id);
  next();
}

void Machine::preempt() {
  until_preempted = int(random.below(64));
  next();
}

bool Machine::may_read_anyway(uintptr_t address, size_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(call->bound);
  if (begin <= address && address + bytes <= begin + call->bound_bytes) return true;
  return !in_shared_arena(address) && global_memory_at(address) == nullptr &&
         is_constant_data(address, address + bytes);
}

// Threads that wait at the same place are told of together.
void Machine::deadlock() {
  std::vector<const Thread*> waiting;
  for (int i = 0; i < threads_in_block; ++i) {
    if (threads[i].state != Thread::State::exited) waiting.push_back(&threads[i]);
  }
  std::string what = "deadlock, nobody can run:";
  while (!waiting.empty()) {
    const Thread& first = *waiting.front();
    const size_t count = std::erase_if(waiting, [&](const Thread* thread) {
      return thread->waits_in == first.waits_in && same_place(thread->site, first.site);
    });
    what += (count == 1 ? " thread " : " " + std::to_string(count) + " threads from ") + name_thread(first) +
            (count == 1 ? " waits in " : " on wait in ") + first.waits_in + " (" + place(first.site) + ");";
  }
  what.pop_back();
  fail(what);
}

void fail(const std::string& what) {
  Machine& m = machine();
  m.inside = true;
  m.failure = std::string("kernel ") + m.call->name + ", block " +
              size({m.block_index.x, m.block_index.y, m.block_index.z}) + ", thread " + name_thread(*current) + ": " +
              what;
  Fiber::change(current->fiber, m.outside);
  __builtin_unreachable();
}

void fail(const std::string& what, Site site) { fail(what + ", at " + place(site)); }

std::string name_thread(const Thread& thread) { return size({thread.index.x, thread.index.y, thread.index.z}); }

std::string place(Site site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }

bool same_place(Site a, Site b) { return a.line() == b.line() && std::string_view(a.file_name()) == b.file_name(); }

}  // namespace simt::host

void simt::set_schedule(Order order, uint64_t seed) {
  const std::lock_guard lock(host::one_at_a_time);
  host::make_machine().order = order;
  host::make_machine().seed = seed;
}
