// The emulated machine: one block at a time, its threads as fibers, and who runs next.
#pragma once
#include <array>
#include <bit>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "fiber.h"
#include "host.h"

namespace simt::host {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kLanes;
constexpr size_t kMaxShared = 227 * 1024;  // what a block may have on sm_90 and sm_100

struct Warp;

// An asynchronous copy under way. A group is the number of commits before it.
struct Copy {
  void* shared;
  const void* global;
  int bytes;
  unsigned group;
  Site site;
};

struct Thread {
  enum class State { ready, at_barrier, in_warp, exited };
  Fiber fiber;
  uint3 index;
  int id;  // in the block
  int lane;
  Warp* warp;
  State state;
  const char* waits_in;  // the name of what it waits in
  Site site;             // and where
  std::vector<Copy> copies;
  unsigned commits;
};

// Lanes that have come to one warp-wide operation, and those that it waits for.
struct Meeting {
  using Complete = void(Warp& warp, Meeting& meeting);
  const char* name;
  Complete* complete;  // computes every lane's result once all have come
  bool only_live;      // lanes that have exited are not waited for
  unsigned mask = 0;   // lanes named; 0: free
  unsigned arrived = 0;
  Site site;                          // of the first to come
  std::array<void*, kLanes> request;  // each lane's operands and results, on its stack
};

struct Warp {
  int id;
  unsigned live;   // lanes that exist and have not exited
  unsigned ready;  // lanes that can run
  unsigned open;   // meetings that wait for somebody
  std::array<Meeting, kLanes> meetings;
};

struct Random {
  uint64_t state;
  uint32_t next() {  // xorshift64*
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return uint32_t((state * 0x2545F4914F6CDD1Dull) >> 32);
  }
  uint32_t below(uint32_t n) { return uint32_t((uint64_t(next()) * n) >> 32); }
};

constexpr size_t kStackBytes = 128 * 1024;  // one page of it is a guard
constexpr size_t kAllStacks = kMaxThreads * kStackBytes;

struct Machine {
  const Call* call = nullptr;
  uint3 block_index, block_size, grid_size;
  int threads_in_block = 0;
  std::array<Thread, kMaxThreads> threads;
  std::array<Warp, kMaxWarps> warps;
  unsigned ready_warps = 0;
  Fiber outside;  // launch() itself

  // The barrier: who waits, and what was said.
  int live = 0, at_barrier = 0;
  Barrier barrier_kind;
  Site barrier_site;
  int yes = 0;     // threads that came with a true predicate
  int answer = 0;  // of the barrier passed last

  Order order = Order::ascending;
  uint64_t seed = 0;
  Random random{1};
  int burst = 0;  // switches until another warp may be chosen
  int warp_running = 0;
  int until_preempted = 0;

  bool inside = false;  // in the emulator's own code: its accesses are nobody's business
  std::string failure;
  std::byte* stacks = nullptr;

  void run(const Call& call);
  void run_block(uint64_t number);
  // Goes on with whoever is next; returns when the caller is chosen again.
  void next();
  void set_ready(Thread& thread);
  // The running thread stops here until somebody calls set_ready.
  void wait(Thread::State state, const char* name, Site site);
  // Random order: may stop the running thread between two accesses.
  void may_preempt() {
    if (order == Order::random && --until_preempted < 0) preempt();
  }
  void preempt();
  bool is_stack(const void* address) const {
    return size_t(static_cast<const std::byte*>(address) - stacks) < kAllStacks;
  }
  // The arguments of the launch, and the program's constants.
  bool may_read_anyway(uintptr_t address, size_t bytes) const;
  void exit_thread();
  [[noreturn]] void deadlock();

 private:
  Thread& choose();
};

// Made by the first launch, never destroyed: no order of destructors to get wrong.
extern Machine* the_machine;
inline Machine& machine() { return *the_machine; }

// Held by a launch, and by all else that comes from outside.
extern std::mutex one_at_a_time;

// Stands in every function that kernels call.
struct Inside {
  Inside() { machine().inside = true; }
  ~Inside() { machine().inside = false; }
  Inside(const Inside&) = delete;
};

extern constinit thread_local Thread* current __attribute__((tls_model("initial-exec")));  // null: code of the host

// Ends the launch with a message about the running thread: "kernel, block, thread: what, at file:line".
[[noreturn]] void fail(const std::string& what);
[[noreturn]] void fail(const std::string& what, Site site);
std::string place(Site site);
bool same_place(Site a, Site b);
std::string name_thread(const Thread& thread);

}  // namespace simt::host
