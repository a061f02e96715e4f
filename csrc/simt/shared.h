// The shared memory of the block that runs: its arrays, with red zones between them.
#pragma once
#include "machine.h"
#include "shadow.h"

namespace simt::host {

// Room for 227 KiB, and for the red zones of as many arrays as a kernel may sensibly have.
constexpr size_t kArenaBytes = 512 * 1024;
constexpr size_t kRedZone = 128;

struct SharedArray {
  size_t offset, bytes;  // on the GPU
  std::byte* begin;      // here
  const char* type;
  Site site;
  Shadow* shadow;
};

// Fixed once the first launch has begun.
extern uintptr_t shared_arena_begin;
inline bool in_shared_arena(uintptr_t address) { return address - shared_arena_begin < kArenaBytes; }
void start_shared_memory(size_t bytes);
void forget_shared_memory();
// The array that holds an address of the arena, or the last one before it; null before the first.
SharedArray* shared_array_near(uintptr_t address);
std::string name_array(const SharedArray& array);

// That an address is shared memory and 16-byte aligned.
void check_shared_16(const void* address, const char* operation, Site site);

}  // namespace simt::host
