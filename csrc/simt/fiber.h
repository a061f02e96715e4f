// A stack of its own and the switch to it: by hand on x86-64 and AArch64, ucontext elsewhere and under
// AddressSanitizer.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_UCONTEXT 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>
#elif !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt::host {

class Fiber {
 public:
  // Makes the next switch to this fiber call entry(), which must never return, on the given stack.
  void prepare(void* stack, size_t bytes, void (*entry)());
  // Leaves `from` (the fiber that runs) and goes on where `to` stopped.
  static void change(Fiber& from, Fiber& to);
  // entry() must call this first.
  static void entered();

 private:
#ifdef SIMT_UCONTEXT
  ucontext_t context_;
#ifdef __SANITIZE_ADDRESS__
  const void* stack_ = nullptr;  // null: the stack of the OS thread, known once a fiber has been entered from it
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
#endif
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace simt::host
