// What the tests ask of the emulator, by ctypes (python_tests/engines.py).
#include <cstring>

#include "kernels/distill.h"
#include "simt/control.h"

#define GF_EXPORT extern "C" __attribute__((visibility("default")))

GF_EXPORT void graceful_fast_simt_schedule(int order, uint64_t seed) { simt::set_schedule(simt::Order(order), seed); }

GF_EXPORT void graceful_fast_simt_distill_warps(int64_t warps) { graceful_fast::distill_warps = warps; }

// Lines "kernel read written" of the launches since the last call, as many as fit.
GF_EXPORT void graceful_fast_simt_bytes(char* text, size_t size) {
  std::string lines;
  for (const simt::Counts& c : simt::take_counts()) {
    lines += c.kernel + " " + std::to_string(c.read) + " " + std::to_string(c.written) + "\n";
  }
  std::strncpy(text, lines.c_str(), size - 1);
  text[size - 1] = 0;
}
