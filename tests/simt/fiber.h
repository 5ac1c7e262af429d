// Contexts that switch in user space, which takes a few nanoseconds.
#pragma once

#include <cstddef>
#include <vector>

#if defined(SIMT_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#define SIMT_OWN_SWITCH 0
#include <ucontext.h>
#else
#define SIMT_OWN_SWITCH 1
#endif

namespace simt {

struct Context {
#if SIMT_OWN_SWITCH
  void* stack_pointer = nullptr;
#else
  ucontext_t state;
#endif
  void* announced = nullptr;  // ThreadSanitizer's handle
};

// Makes a context that starts in entry(), which never returns, on the given stack.
void prepare(Context& context, char* stack, size_t bytes, void (*entry)());

// Switches to `to`. Returns when something switches back to `from`.
void change(Context& from, Context& to);

// ---- annotations for ThreadSanitizer; they do nothing in other builds. A switch orders nothing for it,
// unlike announce_release(x) in one context before announce_acquire(x) in another one.
void announce_current(Context& context);
void announce_fiber(Context& context);
void announce_end(Context& context);
void announce_release(void* object);
void announce_acquire(void* object);
constexpr int kMostAnnounced = 8000;  // contexts that ThreadSanitizer can tell apart

#if defined(SIMT_THREAD_SANITIZER)
constexpr bool kAnnounced = true;
#else
constexpr bool kAnnounced = false;
#endif

// Memory for stacks. Untouched pages cost nothing. There are no guard pages between stacks: Linux allows
// 65,530 mappings, which is too few for them.
class Stacks {
 public:
  static constexpr size_t kBytes = 64 * 1024;

  explicit Stacks(size_t count);
  ~Stacks();
  Stacks(Stacks&& other) noexcept : base_(other.base_), bytes_(other.bytes_) { other.base_ = nullptr; }
  Stacks& operator=(Stacks&&) = delete;

  char* stack(size_t i) const { return base_ + i * kBytes; }

 private:
  char* base_;
  size_t bytes_;
};

}  // namespace simt
