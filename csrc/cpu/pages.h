// Huge pages for large fresh outputs: most of the time of a first write into fresh memory goes into page faults.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace graceful_fast {

// Asks for huge pages in the page-aligned inside of a buffer; a system that has none to give ignores it.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kAtLeast = size_t(4) << 20;  // below, malloc hands out warm memory
  constexpr uintptr_t kPage = 4096;
  if (bytes < kAtLeast) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace graceful_fast
