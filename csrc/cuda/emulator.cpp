// What the tests ask of the emulator, by ctypes (python_tests/engines.py).
#include "simt/control.h"

extern "C" __attribute__((visibility("default"))) void graceful_fast_simt_schedule(int order, uint64_t seed) {
  simt::set_schedule(simt::Order(order), seed);
}
