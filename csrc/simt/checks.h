// What is checked of every access to memory, and what orders accesses.
#pragma once
#include "machine.h"

namespace simt::host::checks {

enum class Access { read, write, atomic };

// Where in the source: a place, or (for plain accesses) the address of the instruction behind the access.
class Where {
 public:
  Where(Site site) : value_(std::bit_cast<uintptr_t>(site) | kIsSite) {}
  static Where behind(const void* pc) { return Where(reinterpret_cast<uintptr_t>(pc)); }
  static Where stored(uintptr_t value) { return Where(value); }
  uintptr_t store() const { return value_; }
  std::string text() const;  // file:line

 private:
  explicit Where(uintptr_t value) : value_(value) {}
  static constexpr uintptr_t kIsSite = uintptr_t(1) << 63;  // no address of a program has it
  uintptr_t value_;
};

void launch_started();
void block_started();
void block_synchronised();
void warp_synchronised(int warp, unsigned lanes);

// The running thread accesses memory: throws it out of the kernel if it may not.
void access(const void* address, size_t bytes, Access kind, Where where);
// The running thread's asynchronous copy of 16 bytes to shared memory starts, and is done.
void copy_started(const void* shared, Where where);
void copy_arrived(const void* shared, Where where);

}  // namespace simt::host::checks
