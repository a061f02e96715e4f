// Asks addr2line: only for a message, so its time does not matter.
#include "symbols.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string_view>

namespace simt::host {

std::string source_line(const void* pc) {
  const auto at = reinterpret_cast<uintptr_t>(pc) - 1;  // inside of the call
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(at), &info) == 0) return "an unknown place";
  char offset[32];
  std::snprintf(offset, sizeof offset, "0x%zx", size_t(at - reinterpret_cast<uintptr_t>(info.dli_fbase)));
  const std::string unknown = std::string(info.dli_fname) + "+" + offset;
  if (std::strchr(info.dli_fname, '\'')) return unknown;
  const std::string command = std::string("addr2line -i -e '") + info.dli_fname + "' " + offset + " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return unknown;
  std::string lines;  // innermost first; those of the emulator's own headers say nothing
  char line[4096];
  while (std::fgets(line, sizeof line, pipe)) {
    std::string_view frame(line);
    frame = frame.substr(0, frame.find_first_of(" \n"));
    const bool known = frame.find(":?") == frame.npos && !frame.ends_with(":0") && frame.find("??") == frame.npos;
    const bool own = frame.find("/simt/") != frame.npos && frame.find(".h:") != frame.npos;
    if (!known || own || frame.find("/c++/") != frame.npos) continue;
    lines += (lines.empty() ? "" : " in ") + std::string(frame);
  }
  pclose(pipe);
  return lines.empty() ? unknown : lines;
}

}  // namespace simt::host
