// The rounding that every kernel runs with, whatever the calling thread has set: a pool's threads do not share it.
#pragma once
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace graceful_fast {
namespace {

// Default rounding, denormals kept: torch.set_flush_denormal on the caller's threads must not change a definition.
class DefaultRounding {
#if defined(__x86_64__)
 public:
  DefaultRounding() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultRounding() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
 public:
  DefaultRounding() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t(0)));
  }
  ~DefaultRounding() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

}  // namespace
}  // namespace graceful_fast
