// The registry of global memory. Overlapping buffers become one piece, so that aliases share what is known of each
// byte.
#include "buffers.h"

#include <link.h>

#include <map>
#include <utility>

#include "machine.h"

namespace simt {

namespace host {

namespace {

struct Registry {
  std::map<uintptr_t, GlobalMemory> pieces;  // by begin
  GlobalMemory* last = nullptr;              // where the last access was
};

Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

}  // namespace

GlobalMemory* global_memory_at(uintptr_t address) {
  Registry& r = registry();
  if (r.last != nullptr && r.last->begin <= address && address < r.last->end) return r.last;
  auto after = r.pieces.upper_bound(address);
  if (after == r.pieces.begin()) return nullptr;
  GlobalMemory& piece = std::prev(after)->second;
  if (address >= piece.end) return nullptr;
  return r.last = &piece;
}

std::string describe_unknown(uintptr_t address) {
  const auto& pieces = registry().pieces;
  const auto after = pieces.upper_bound(address);
  const GlobalMemory* nearest = nullptr;
  uintptr_t distance = 1 << 20;
  if (after != pieces.end() && after->second.begin - address < distance) {
    nearest = &after->second;
    distance = nearest->begin - address;
  }
  if (after != pieces.begin() && address - std::prev(after)->second.end < distance) nearest = &std::prev(after)->second;
  if (nearest == nullptr) return "in no buffer that the kernel may touch";
  const std::string which = nearest->name + " (" + std::to_string(nearest->end - nearest->begin) + " bytes)";
  if (address < nearest->begin) return std::to_string(nearest->begin - address) + " bytes before the start of " + which;
  return std::to_string(address - nearest->end) + " bytes past the end of " + which;
}

bool is_constant_data(uintptr_t begin, uintptr_t end) {
  struct Question {
    uintptr_t begin, end;
  } question{begin, end};
  const auto answers = [](dl_phdr_info* info, size_t, void* data) {
    const auto& asked = *static_cast<Question*>(data);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr) & segment = info->dlpi_phdr[i];
      const uintptr_t from = info->dlpi_addr + segment.p_vaddr;
      if (segment.p_type == PT_LOAD && !(segment.p_flags & PF_W) && from <= asked.begin &&
          asked.end <= from + segment.p_memsz) {
        return 1;
      }
    }
    return 0;
  };
  return dl_iterate_phdr(answers, &question) != 0;
}

}  // namespace host

Buffer::Buffer(std::string name, const void* begin, size_t bytes, Contents contents) : begin_(begin), bytes_(bytes) {
  if (bytes == 0) return;
  host::Registry& r = host::registry();
  const std::lock_guard lock(host::one_at_a_time);
  r.last = nullptr;
  const auto from = reinterpret_cast<uintptr_t>(begin);
  host::GlobalMemory piece{from, from + bytes, std::move(name), contents == Contents::initialised, 1, {}};
  auto it = r.pieces.upper_bound(from);
  if (it != r.pieces.begin() && std::prev(it)->second.end > from) --it;
  if (it != r.pieces.end() && it->second.begin <= piece.begin && piece.end <= it->second.end) {
    ++it->second.owners;
    it->second.initialised |= piece.initialised;
    return;
  }
  while (it != r.pieces.end() && it->second.begin < piece.end) {
    piece.begin = std::min(piece.begin, it->second.begin);
    piece.end = std::max(piece.end, it->second.end);
    piece.name = it->second.name + " or " + piece.name;
    piece.initialised |= it->second.initialised;
    piece.owners += it->second.owners;
    it = r.pieces.erase(it);
  }
  r.pieces.emplace(piece.begin, std::move(piece));
}

Buffer::Buffer(Buffer&& other) noexcept : begin_(other.begin_), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer::~Buffer() {
  if (bytes_ == 0) return;
  host::Registry& r = host::registry();
  const std::lock_guard lock(host::one_at_a_time);
  r.last = nullptr;
  const auto it = std::prev(r.pieces.upper_bound(reinterpret_cast<uintptr_t>(begin_)));
  if (--it->second.owners == 0) r.pieces.erase(it);
}

}  // namespace simt
