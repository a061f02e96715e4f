// Switches between fibers. A switch is a call, so only what a callee must keep is saved.
#include "fiber.h"

#include <cstdint>

namespace simt::host {

#ifndef SIMT_UCONTEXT

extern "C" __attribute__((visibility("hidden"))) void simt_change_stack(void** save, void* to);

#ifdef __x86_64__
asm(R"(
  .text
  .p2align 4
  .hidden simt_change_stack
  .globl simt_change_stack
  .type simt_change_stack, @function
simt_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
  .size simt_change_stack, . - simt_change_stack
)");

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // entry()'s return address; the stack is now as just after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
}
#else
asm(R"(
  .text
  .p2align 4
  .hidden simt_change_stack
  .globl simt_change_stack
  .type simt_change_stack, %function
simt_change_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size simt_change_stack, . - simt_change_stack
)");

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15));
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // the link register
  stack_pointer_ = top;
}
#endif

void Fiber::change(Fiber& from, Fiber& to) { simt_change_stack(&from.stack_pointer_, to.stack_pointer_); }
void Fiber::entered() {}

#else

#ifdef __SANITIZE_ADDRESS__
static thread_local Fiber* left = nullptr;  // whom the fiber that is being entered was entered from
#endif

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, bytes);  // a fiber that was abandoned has left its marks
  stack_ = stack;
  bytes_ = bytes;
  fake_stack_ = nullptr;
#endif
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fiber::change(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  left = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.bytes_);
#endif
  swapcontext(&from.context_, &to.context_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::entered() {
#ifdef __SANITIZE_ADDRESS__
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (left->stack_ == nullptr) {
    left->stack_ = stack;
    left->bytes_ = bytes;
  }
#endif
}

#endif

}  // namespace simt::host
