// A fiber: a stack and the place in the code where it stopped. Switching costs a few nanoseconds in assembly on x86-64;
// elsewhere, and with -DEMULATOR_UCONTEXT, by ucontext, which is portable and some fifty times slower.
#pragma once
#include <cstddef>

#if defined(__x86_64__) && defined(__linux__) && !defined(EMULATOR_UCONTEXT)

namespace emulator {

struct Fiber {
  void** stack_pointer = nullptr;
};

// Saves the callee-saved registers and the stack pointer, loads those of the other fiber, returns to where it stopped.
// Threads stop at the same barrier, hence with the same return addresses on their stacks, so the processor predicts
// these returns; a jump in place of `ret` would unbalance its predictions and cost twice as much.
extern "C" void minigan_switch_fiber(void*** save, void** load) __asm__("minigan_switch_fiber");
__asm__(R"(
.text
.hidden minigan_switch_fiber
.globl minigan_switch_fiber
.type minigan_switch_fiber,@function
minigan_switch_fiber:
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
  ret
.size minigan_switch_fiber,.-minigan_switch_fiber
)");

inline void switch_fiber(Fiber& from, Fiber& to) { minigan_switch_fiber(&from.stack_pointer, to.stack_pointer); }

inline void prepare_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);  // a multiple of 16
  *--top = nullptr;                                      // the return address of `entry`, which never returns
  *--top = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; saved_register++) *--top = nullptr;
  fiber.stack_pointer = top;
}

}  // namespace emulator

#else

#ifdef __APPLE__
#define _XOPEN_SOURCE 600
#endif
#include <ucontext.h>

namespace emulator {

struct Fiber {
  ucontext_t context;
};

inline void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

inline void prepare_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

}  // namespace emulator

#endif
