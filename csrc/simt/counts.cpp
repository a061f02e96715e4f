// Bytes moved, of the launches since somebody asked last.
#include "counts.h"

#include <deque>

namespace simt {

namespace host {

namespace {

std::deque<Counts>& all_counts() {
  static auto* const instance = new std::deque<Counts>;
  return *instance;
}

constexpr size_t kKept = 4096;  // launches; older ones are forgotten

}  // namespace

void counting_started(const char* kernel) {
  if (all_counts().size() == kKept) all_counts().pop_front();
  all_counts().push_back({kernel, 0, 0, 0});
}

void count_access(checks::Access kind, size_t bytes) {
  Counts& now = all_counts().back();
  (kind == checks::Access::read ? now.read : kind == checks::Access::write ? now.written : now.atomic) += bytes;
}

}  // namespace host

std::vector<Counts> take_counts() {
  const std::lock_guard lock(host::one_at_a_time);
  std::vector<Counts> taken(host::all_counts().begin(), host::all_counts().end());
  host::all_counts().clear();
  return taken;
}

}  // namespace simt
