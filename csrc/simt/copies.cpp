// cp.async: the bytes arrive when they are waited for, not before, and until then nobody may look at them.
#include <algorithm>
#include <cstring>

#include "checks.h"
#include "shared.h"

namespace simt::host {

void copy_async(void* shared, const void* global, int bytes, Site site) {
  const Inside inside;
  check_shared_16(shared, "cp_async_16", site);
  if (bytes < 0 || bytes > 16) fail("cp_async_16: expected 0 to 16 bytes, got " + std::to_string(bytes), site);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fail("cp_async_16: the address in global memory is not 16-byte aligned", site);
  if (bytes > 0) checks::access(global, size_t(bytes), checks::Access::read, site);
  checks::copy_started(shared, site);
  std::memset(shared, 0xff, 16);
  current->copies.push_back({shared, global, bytes, current->commits, site});
  machine().may_preempt();
}

void commit_copies() { ++current->commits; }

void wait_copies(unsigned pending) {
  const Inside inside;
  Thread& thread = *current;
  const auto arrived = [&](const Copy& copy) { return copy.group + pending < thread.commits; };
  for (const Copy& copy : thread.copies) {
    if (!arrived(copy)) continue;
    std::memcpy(copy.shared, copy.global, size_t(copy.bytes));
    std::memset(static_cast<std::byte*>(copy.shared) + copy.bytes, 0, size_t(16 - copy.bytes));
    checks::copy_arrived(copy.shared, copy.site);
  }
  std::erase_if(thread.copies, arrived);
  machine().may_preempt();
}

uint4 load_16B(const void* from, Site site) {
  const Inside inside;
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("load_16B: the address is not 16-byte aligned", site);
  checks::access(from, 16, checks::Access::read, site);
  uint4 value;
  std::memcpy(&value, from, 16);
  machine().may_preempt();
  return value;
}

void store_16B(void* to, uint4 value, Site site) {
  const Inside inside;
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) fail("store_16B: the address is not 16-byte aligned", site);
  checks::access(to, 16, checks::Access::write, site);
  std::memcpy(to, &value, 16);
  machine().may_preempt();
}

}  // namespace simt::host
