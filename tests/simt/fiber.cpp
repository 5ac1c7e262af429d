#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(SIMT_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

#if SIMT_OWN_SWITCH

// Saves callee-saved registers on the stack, stores the stack pointer in *save and loads another one. Keeps
// the floating-point control words, which no kernel changes.
extern "C" void simt_switch(void** save, void* load);

#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".globl simt_switch\n"
    ".hidden simt_switch\n"
    ".type simt_switch, @function\n"
    "simt_switch:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size simt_switch, .-simt_switch\n");

namespace {
constexpr size_t kFrame = 64;    // six registers, the return address, and that of entry()'s caller
constexpr size_t kReturnTo = 6;  // words from the stack pointer on
}  // namespace
#else
__asm__(
    ".text\n"
    ".globl simt_switch\n"
    ".hidden simt_switch\n"
    ".type simt_switch, %function\n"
    "simt_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ".size simt_switch, .-simt_switch\n");

namespace {
constexpr size_t kFrame = 160;
constexpr size_t kReturnTo = 11;  // x30
}  // namespace
#endif

#endif  // SIMT_OWN_SWITCH

namespace simt {

#if defined(SIMT_THREAD_SANITIZER)

void announce_current(Context& context) { context.announced = __tsan_get_current_fiber(); }
void announce_fiber(Context& context) { context.announced = __tsan_create_fiber(0); }
void announce_end(Context& context) { __tsan_destroy_fiber(context.announced); }
void announce_release(void* object) { __tsan_release(object); }
void announce_acquire(void* object) { __tsan_acquire(object); }
static void announce_change(const Context& to) {
  __tsan_switch_to_fiber(to.announced, __tsan_switch_to_fiber_no_sync);
}

#else

void announce_current(Context&) {}
void announce_fiber(Context&) {}
void announce_end(Context&) {}
void announce_release(void*) {}
void announce_acquire(void*) {}
static void announce_change(const Context&) {}

#endif

#if SIMT_OWN_SWITCH

void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  char* top = stack + bytes - kFrame;
  std::memset(top, 0, kFrame);
  const auto address = reinterpret_cast<uintptr_t>(entry);
  std::memcpy(top + kReturnTo * 8, &address, sizeof address);
  context.stack_pointer = top;
}

void change(Context& from, Context& to) {
  announce_change(to);
  simt_switch(&from.stack_pointer, to.stack_pointer);
}

#else

void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

void change(Context& from, Context& to) {
  announce_change(to);
  swapcontext(&from.state, &to.state);
}

#endif

Stacks::Stacks(size_t count) : bytes_(count * kBytes) {
  void* base =
      mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  // A huge page would take 2 MB for a stack that uses 8 KB.
  madvise(base, bytes_, MADV_NOHUGEPAGE);
  base_ = static_cast<char*>(base);
}

Stacks::~Stacks() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

}  // namespace simt
