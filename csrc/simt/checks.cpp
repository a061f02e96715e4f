// Every access: is it inside of a buffer, of bytes that were written, and ordered with all others that it conflicts
// with?
#include "checks.h"

#include <unordered_map>

#include "buffers.h"
#include "clocks.h"
#include "counts.h"
#include "shared.h"
#include "symbols.h"

namespace simt::host::checks {

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kHooks = false;  // plain accesses are not seen, so what was written, and by whom, is not known
#else
constexpr bool kHooks = true;
#endif

struct State {
  Clocks clocks;
  // Cells whose lanes have different stamps (kMixed), by address; for this interval.
  std::unordered_map<uintptr_t, std::array<uint32_t, kLanes>> mixed;
};

State& state() {
  static State* const instance = new State;
  return *instance;
}

// The memory that an access is in.
struct Place {
  uintptr_t begin;
  size_t size;
  Shadow& shadow;
  uint32_t relevant;  // the first interval whose accesses matter here
  uint32_t written;   // the first interval a write of which counts as initialisation; 0: all is initialised
  const SharedArray* array;
  const GlobalMemory* memory;

  std::string at(size_t offset) const {
    return "byte " + std::to_string(offset) + " of " +
           (array ? name_array(*array) : memory->name + " (" + std::to_string(size) + " bytes)");
  }
};

const char* verb(Access kind) {
  return kind == Access::read ? "reads" : kind == Access::write ? "writes" : "atomic on";
}

std::string bytes_text(size_t bytes) { return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes"); }

[[noreturn]] void report(const std::string& what, Where where) { fail(what + ", at " + where.text()); }

// Finds the memory of [at, at + bytes); reports what lies outside.
Place find(uintptr_t at, size_t bytes, Access kind, Where where) {
  const Clocks& clocks = state().clocks;
  const auto outside = [&](const std::string& which) {
    report("out of bounds: " + std::string(verb(kind)) + " " + bytes_text(bytes) + " " + which, where);
  };
  if (in_shared_arena(at)) {
    SharedArray* array = shared_array_near(at);
    const uintptr_t begin = array ? reinterpret_cast<uintptr_t>(array->begin) : 0;
    if (array == nullptr) outside("in shared memory before the first array");
    if (at + bytes > begin + array->bytes) {
      outside((at >= begin + array->bytes ? std::to_string(at - begin - array->bytes) + " bytes past the end of "
                                          : "from byte " + std::to_string(at - begin) + " on, across the end of ") +
              name_array(*array));
    }
    return {begin, array->bytes, *array->shadow, clocks.block_began, clocks.block_began, array, nullptr};
  }
  GlobalMemory* memory = global_memory_at(at);
  if (memory == nullptr) outside(describe_unknown(at));
  if (at + bytes > memory->end) {
    outside("from byte " + std::to_string(at - memory->begin) + " on, across the end of " + memory->name + " (" +
            bytes_text(memory->end - memory->begin) + ")");
  }
  return {memory->begin,
          memory->end - memory->begin,
          memory->shadow,
          clocks.launch_began,
          memory->initialised ? 0u : 1u,
          nullptr,
          memory};
}

// A member of the cell's set whose access is not over for the running thread; -1: there is none, -2: in another block.
int unordered_member(const Cell& cell, const Place& place, uintptr_t key) {
  Clocks& clocks = state().clocks;
  if (cell.set_interval < place.relevant) return -1;
  if (cell.set_interval < clocks.block_began || (cell.flags & kEarlierBlocks)) return -2;
  if (cell.set_interval != clocks.now) return -1;
  const int warp = cell.accessor / kLanes;
  if (cell.flags & kSeveralWarps) return warp == current->warp->id ? cell.other : cell.accessor;
  if (warp != current->warp->id) return cell.accessor;
  const auto* stamps = cell.flags & kMixed ? &state().mixed[key] : nullptr;
  for (unsigned rest = cell.lanes & ~(1u << current->lane); rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (!clocks.knows(*current, lane, stamps ? (*stamps)[lane] : cell.set_stamp)) return warp * kLanes + lane;
  }
  return -1;
}

// Adds the running thread's access to the set of those that later writes must wait for.
void join(Cell& cell, const Place& place, uintptr_t key, bool atomic, Where where) {
  Clocks& clocks = state().clocks;
  const uint32_t stamp = clocks.stamp(*current);
  const unsigned self = 1u << current->lane;
  const uint8_t kind = atomic ? kAtomics : 0;
  if (cell.set_interval == clocks.now && (cell.flags & kAtomics) == kind) {
    if (cell.flags & kSeveralWarps) return;
    if (cell.accessor / kLanes != current->warp->id) {
      cell.flags |= kSeveralWarps;
      cell.other = uint16_t(current->id);
      return;
    }
    if (cell.set_stamp == stamp && !(cell.flags & kMixed)) {
      cell.lanes |= self;
      return;
    }
    // Members whose access is over for this thread need no mention of their own; the others' stamps differ.
    std::array<uint32_t, kLanes> stamps;
    if (cell.flags & kMixed) {
      stamps = state().mixed[key];
    } else {
      stamps.fill(cell.set_stamp);
    }
    unsigned lanes = cell.lanes & ~self;
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      if (clocks.knows(*current, lane, stamps[lane])) lanes &= ~(1u << lane);
    }
    if (lanes != 0) {
      stamps[current->lane] = stamp;
      state().mixed[key] = stamps;
      cell.lanes = lanes | self;
      cell.flags |= kMixed;
      return;
    }
  }
  const bool earlier =
      cell.set_interval >= place.relevant && (cell.set_interval < clocks.block_began || (cell.flags & kEarlierBlocks));
  cell.flags = uint8_t((cell.flags & kInFlight) | kind | (earlier ? kEarlierBlocks : 0));
  cell.set_interval = clocks.now;
  cell.set_stamp = stamp;
  cell.lanes = self;
  cell.accessor = uint16_t(current->id);
  cell.set_where = where.store();
}

void set_writer(Cell& cell, Where where) {
  Clocks& clocks = state().clocks;
  cell.write_interval = clocks.now;
  cell.write_stamp = clocks.stamp(*current);
  cell.writer = uint16_t(current->id);
  cell.write_where = where.store();
  cell.set_interval = 0;  // all of the set are over, and whoever conflicts with them conflicts with this write
  cell.flags = 0;
}

// [[cell, offset]] is the first byte in conflict.
[[noreturn]] void race(const Place& place, size_t offset, size_t bytes, Access kind, Where where, const char* did,
                       int by, uintptr_t by_where) {
  const std::string who = by < 0 ? "another block of this launch" : "thread " + name_thread(machine().threads[by]);
  report("race: " + std::string(verb(kind)) + " " + bytes_text(bytes) + " at " + place.at(offset) + ", which " + who +
             " " + did + " (" + Where::stored(by_where).text() + ") with " +
             (by < 0                             ? "nothing"
              : by / kLanes == current->warp->id ? "no __syncwarp"
                                                 : "no barrier") +
             " between",
         where);
}

void check(Cell& cell, const Place& place, size_t offset, size_t bytes, Access kind, Where where) {
  Clocks& clocks = state().clocks;
  if (cell.flags & kInFlight) {
    const int by = cell.writer;
    report(std::string(verb(kind)) + " " + bytes_text(bytes) + " at " + place.at(offset) +
               ", where an asynchronous copy of thread " + name_thread(machine().threads[by]) + " (" +
               Where::stored(cell.write_where).text() + ") is under way: not waited for",
           where);
  }
  if (kind != Access::write && cell.write_interval < place.written) {
    report("uninitialised: " + std::string(verb(kind)) + " " + bytes_text(bytes) + " at " + place.at(offset) +
               ", which nobody has written",
           where);
  }
  if (cell.write_interval >= std::max(place.relevant, 1u) &&
      !clocks.ordered(*current, cell.write_interval, cell.writer, cell.write_stamp)) {
    race(place, offset, bytes, kind, where, "wrote", cell.write_interval < clocks.block_began ? -2 : cell.writer,
         cell.write_where);
  }
  const bool atomics = cell.flags & kAtomics;
  if (kind == Access::write || atomics != (kind == Access::atomic)) {
    const int by = unordered_member(cell, place, place.begin + offset);
    if (by != -1) race(place, offset, bytes, kind, where, atomics ? "changed atomically" : "read", by, cell.set_where);
  }
}

}  // namespace

std::string Where::text() const {
  if (value_ & kIsSite) return place(std::bit_cast<Site>(value_ & ~kIsSite));
  return source_line(reinterpret_cast<const void*>(value_));
}

void launch_started() {
  Clocks& clocks = state().clocks;
  clocks.launch_began = ++clocks.now;
}
void block_started() {
  Clocks& clocks = state().clocks;
  clocks.block_began = ++clocks.now;
  state().mixed.clear();
}
void block_synchronised() {
  ++state().clocks.now;
  if (!state().mixed.empty()) state().mixed.clear();
}
void warp_synchronised(int warp, unsigned lanes) { state().clocks.synchronise(warp, lanes); }

void access(const void* address, size_t bytes, Access kind, Where where) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (kind == Access::read && machine().may_read_anyway(at, bytes)) return;
  const Place place = find(at, bytes, kind, where);
  if (place.memory) count_access(kind, bytes);
  if (!kHooks) return;
  place.shadow.each(place.size, at - place.begin, bytes, [&](Cell& cell, size_t offset) {
    check(cell, place, offset, bytes, kind, where);
    if (kind == Access::write) {
      set_writer(cell, where);
    } else {
      join(cell, place, place.begin + offset, kind == Access::atomic, where);
    }
  });
}

void copy_started(const void* shared, Where where) {
  access(shared, 16, Access::write, where);
  if (!kHooks) return;
  const auto at = reinterpret_cast<uintptr_t>(shared);
  const Place place = find(at, 16, Access::write, where);
  place.shadow.each(place.size, at - place.begin, 16, [&](Cell& cell, size_t) { cell.flags = kInFlight; });
}

void copy_arrived(const void* shared, Where where) {
  if (!kHooks) return;
  const auto at = reinterpret_cast<uintptr_t>(shared);
  const Place place = find(at, 16, Access::write, where);
  place.shadow.each(place.size, at - place.begin, 16, [&](Cell& cell, size_t) { set_writer(cell, where); });
}

}  // namespace simt::host::checks
