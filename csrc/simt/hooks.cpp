// What g++ -fsanitize=thread calls before every access of a kernel. Hidden: a process may have ThreadSanitizer of its
// own.
// With AddressSanitizer there are none.
#ifndef __SANITIZE_ADDRESS__
#include "checks.h"
#include "machine.h"

namespace {

using simt::host::checks::Access;

// A kernel's thread accesses memory other than its stack.
inline void hook(const void* address, size_t bytes, bool aligned, Access kind, const void* pc) {
  using namespace simt::host;
  if (current == nullptr) return;  // code of the host in the same source
  Machine& m = machine();
  if (m.inside || m.is_stack(address)) return;
  const Inside inside;
  const auto where = checks::Where::behind(pc);
  if (aligned && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("misaligned: an access of " + std::to_string(bytes) + " bytes at an address that is no multiple of them, at " +
         where.text());
  }
  checks::access(address, bytes, kind, where);
  m.may_preempt();
}

}  // namespace

#pragma GCC visibility push(hidden)
extern "C" {

#define SIMT_HOOKS(n)                                                                                        \
  void __tsan_read##n(void* p) { hook(p, n, true, Access::read, __builtin_return_address(0)); }              \
  void __tsan_write##n(void* p) { hook(p, n, true, Access::write, __builtin_return_address(0)); }            \
  void __tsan_unaligned_read##n(void* p) { hook(p, n, false, Access::read, __builtin_return_address(0)); }   \
  void __tsan_unaligned_write##n(void* p) { hook(p, n, false, Access::write, __builtin_return_address(0)); } \
  void __tsan_volatile_read##n(void* p) { hook(p, n, true, Access::read, __builtin_return_address(0)); }     \
  void __tsan_volatile_write##n(void* p) { hook(p, n, true, Access::write, __builtin_return_address(0)); }
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

void __tsan_read_range(void* p, size_t n) {
  if (n > 0) hook(p, n, false, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  if (n > 0) hook(p, n, false, Access::write, __builtin_return_address(0));
}

// Nothing to do for these.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

// Atomics of host code in the same source: guards of local statics, std::atomic.
#define SIMT_ATOMIC_HOOKS(bits, T)                                                                                  \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v, int, int) {                    \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v, int, int) {                      \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
  }
SIMT_ATOMIC_HOOKS(8, uint8_t)
SIMT_ATOMIC_HOOKS(16, uint16_t)
SIMT_ATOMIC_HOOKS(32, uint32_t)
SIMT_ATOMIC_HOOKS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"
#pragma GCC visibility pop
#endif
