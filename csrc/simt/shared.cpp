// Dynamic shared memory: one arena, in which a block's arrays lie 128 bytes or more apart.
#include "shared.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string_view>
#include <system_error>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes)
#endif

namespace simt::host {

namespace {

struct Arena {
  std::byte* begin = nullptr;
  size_t used = 0;      // bytes here, red zones included
  size_t launched = 0;  // bytes that the launch asked for
  std::vector<SharedArray> arrays;
  SharedArray* last = nullptr;  // where the last access was
  // By place of the array: blocks of a launch have the same arrays, and what earlier blocks did no longer counts.
  std::map<std::pair<size_t, size_t>, Shadow> shadows;
};

Arena& arena() {
  static Arena* const instance = [] {
    auto* made = new Arena;
    void* memory = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "simt: shared memory");
    made->begin = static_cast<std::byte*>(memory);
    made->arrays.reserve(kArenaBytes / kRedZone);
    shared_arena_begin = reinterpret_cast<uintptr_t>(memory);
    return made;
  }();
  return *instance;
}

}  // namespace

constinit uintptr_t shared_arena_begin = 0;

void forget_shared_memory() { arena().shadows.clear(); }

void start_shared_memory(size_t bytes) {
  Arena& a = arena();
  a.launched = bytes;
  a.used = 0;
  a.arrays.clear();
  a.last = nullptr;
  ASAN_POISON_MEMORY_REGION(a.begin, kArenaBytes);
}

void* shared_array(size_t offset, size_t bytes, size_t align, const char* type, Site site) {
  const Inside inside;
  Arena& a = arena();
  for (const SharedArray& array : a.arrays) {
    if (array.offset == offset && array.bytes == bytes) return array.begin;
    if (array.offset < offset + bytes && offset < array.offset + array.bytes) {
      fail("shared memory: takes bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) +
               ", which overlap " + name_array(array) + " of another thread or another Smem; a kernel has one layout",
           site);
    }
  }
  if (offset + bytes > a.launched) {
    fail("shared memory: arrays need " + std::to_string(offset + bytes) + " bytes, the launch gives " +
             std::to_string(a.launched),
         site);
  }
  // As aligned as on the GPU and no more, so that a missing alignment shows.
  const size_t begin = align_up(a.used + kRedZone, std::max<size_t>(align, 16));
  if (begin + bytes + kRedZone > kArenaBytes) fail("shared memory: too many arrays for the emulator", site);
  a.used = begin + bytes;
  a.arrays.push_back({offset, bytes, a.begin + begin, type, site, &a.shadows[{begin, bytes}]});
  ASAN_UNPOISON_MEMORY_REGION(a.begin + begin, bytes);
  std::memset(a.begin + begin, 0xff, bytes);  // NaN, until written
  return a.begin + begin;
}

SharedArray* shared_array_near(uintptr_t address) {
  Arena& a = arena();
  const auto begin = [](const SharedArray& array) { return reinterpret_cast<uintptr_t>(array.begin); };
  if (a.last && begin(*a.last) <= address && address < begin(*a.last) + a.last->bytes) return a.last;
  SharedArray* found = nullptr;
  for (SharedArray& array : a.arrays) {
    if (begin(array) <= address && (found == nullptr || begin(*found) < begin(array))) found = &array;
  }
  return a.last = found;
}

std::string name_array(const SharedArray& array) {
  std::string_view type = array.type;  // "... [with T = float]"
  const size_t begin = type.find("T = ");
  if (begin != type.npos) type = type.substr(begin + 4, type.find_first_of(";]", begin) - begin - 4);
  return "shared array of " + std::string(type) + " (" + std::to_string(array.bytes) + " bytes, taken at " +
         place(array.site) + ")";
}

void check_shared_16(const void* address, const char* operation, Site site) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (!in_shared_arena(at)) fail(std::string(operation) + ": the address is not in shared memory", site);
  if (at % 16 != 0) fail(std::string(operation) + ": the address in shared memory is not 16-byte aligned", site);
}

}  // namespace simt::host
