// What is checked of every access to memory, and what synchronises.
#pragma once
#include "machine.h"

namespace simt::host::checks {

enum class Access { read, write, atomic };

// Where in the source: a place, or (for plain accesses) the address of the instruction behind the access.
struct Where {
  const void* pc;
  Site site;
};

void launch_started();
void block_started();
void block_synchronised();
void warp_synchronised(Warp& warp, unsigned lanes);

// The running thread accesses memory.
void access(const void* address, size_t bytes, Access kind, Where where);
// The running thread's asynchronous copy to shared memory starts, and is done.
void copy_started(const void* shared, size_t bytes, Where where);
void copy_arrived(const void* shared, size_t bytes, Where where);

}  // namespace simt::host::checks
