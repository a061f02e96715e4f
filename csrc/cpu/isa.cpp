// Chooses the instruction set: the best this CPU has, or what GRACEFUL_FAST_ISA asks for.
#include "cpu/isa.h"

#include <cstdio>
#include <cstring>
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace graceful_fast {
namespace {

struct Choice {
  const char* name;
  Isa isa;
  bool (*supported)();
};

// Best first; the names are what GRACEFUL_FAST_ISA takes.
const Choice kChoices[] = {
#if defined(__x86_64__)
    {"avx512", Isa::avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
     }},
    {"avx2", Isa::avx2,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"); }},
#elif defined(__aarch64__) && defined(__linux__)
    {"neon", Isa::neon, [] { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }},
#elif defined(__aarch64__)
    {"neon", Isa::neon, [] { return true; }},
#endif
    {"baseline", Isa::baseline, [] { return true; }},
};

const Choice* chosen = nullptr;

}  // namespace

Isa isa() { return chosen->isa; }

}  // namespace graceful_fast

// Called by _C right after loading the library. `wanted`: GRACEFUL_FAST_ISA or null. Returns the name in use; on an
// unknown or unsupported name returns null and writes what is available to `available` (comma-separated).
extern "C" __attribute__((visibility("default"))) const char* graceful_fast_choose_isa(const char* wanted,
                                                                                       char* available, size_t size) {
  using namespace graceful_fast;
  size_t used = 0;
  available[0] = '\0';
  for (const Choice& choice : kChoices) {
    if (!choice.supported()) continue;
    used += std::snprintf(available + used, size - used, "%s%s", used ? ", " : "", choice.name);
    if (!wanted || std::strcmp(wanted, choice.name) == 0) {
      chosen = &choice;
      return choice.name;
    }
  }
  return nullptr;
}
