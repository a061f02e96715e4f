// What the tests ask of the emulator, by ctypes (python_tests/engines.py).
#include <cstring>

#include "kernels/distill.h"
#include "simt/control.h"

#define GF_EXPORT extern "C" __attribute__((visibility("default")))

GF_EXPORT void graceful_fast_simt_schedule(int order, uint64_t seed) { simt::set_schedule(simt::Order(order), seed); }

GF_EXPORT void graceful_fast_simt_distill_warps(int64_t warps) { graceful_fast::distill_warps = warps; }

// "kernel read written atomic" of the launches since the last call, a line each: bytes. Cut to `room` bytes.
GF_EXPORT void graceful_fast_simt_counts(char* text, size_t room) {
  std::string lines;
  for (const simt::Counts& c : simt::take_counts()) {
    lines += c.kernel + ' ' + std::to_string(c.read) + ' ' + std::to_string(c.written) + ' ' + std::to_string(c.atomic);
    lines += '\n';
  }
  std::strncpy(text, lines.c_str(), room - 1);
  text[room - 1] = 0;
}
