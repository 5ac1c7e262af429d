#include "guarded.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>

namespace simt {
namespace {

// All live GuardedMemory objects.
GuardedMemory* head = nullptr;
std::mutex head_mutex;

constexpr unsigned char kFill = 0xFF;

// Not memcmp and memset, which ThreadSanitizer would take for accesses of the kernel.
bool filled(const char* from, const char* to) {
  for (; from != to; ++from) {
    if (static_cast<unsigned char>(*from) != kFill) return false;
  }
  return true;
}

}  // namespace

GuardedMemory::GuardedMemory(Kind kind, int64_t bytes, int64_t alignment) : kind_(kind), bytes_(bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  if (bytes < 0) throw std::invalid_argument("GuardedMemory: bytes is negative");
  if (alignment < 1 || alignment > page || (alignment & (alignment - 1)) != 0) {
    throw std::invalid_argument("GuardedMemory: alignment must be a power of two, a page at most");
  }
  const int64_t inner = bytes / page * page + page;
  page_bytes_ = static_cast<size_t>(inner + 2 * page);
  void* pages = mmap(nullptr, page_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  pages_ = static_cast<char*>(pages);
  first_ = pages_ + page;
  last_ = first_ + inner;
  data_ = last_ - (bytes + alignment - 1) / alignment * alignment;
  if (mprotect(first_, static_cast<size_t>(inner), PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  fill();
  const std::lock_guard<std::mutex> lock(head_mutex);
  next_ = head;
  head = this;
}

GuardedMemory::~GuardedMemory() {
  {
    const std::lock_guard<std::mutex> lock(head_mutex);
    GuardedMemory** link = &head;
    while (*link != this) link = &(*link)->next_;
    *link = next_;
  }
  munmap(pages_, page_bytes_);
}

bool GuardedMemory::contains(const void* address, int64_t bytes) const {
  const auto* p = static_cast<const char*>(address);
  return p >= data_ && p + bytes <= data_ + bytes_;
}

void GuardedMemory::fill() { std::memset(first_, kFill, static_cast<size_t>(last_ - first_)); }

bool GuardedMemory::intact() const { return filled(first_, data_) && filled(data_ + bytes_, last_); }

// Takes no lock, because a signal handler calls it too. During a launch only the executor makes or frees
// memory, between blocks.
std::string describe_address(const void* address) {
  const auto* p = static_cast<const char*>(address);
  char text[160];
  for (const GuardedMemory* m = head; m != nullptr; m = m->next_) {
    if (p < m->pages_ || p >= m->pages_ + m->page_bytes_) continue;
    const char* what = m->kind_ == GuardedMemory::Kind::shared ? "shared memory" : "a global buffer";
    if (p >= m->data_ + m->bytes_) {
      std::snprintf(text, sizeof text, "%td bytes past the end of %s of %" PRId64 " bytes",
                    p - (m->data_ + m->bytes_), what, m->bytes_);
    } else if (p < m->data_) {
      std::snprintf(text, sizeof text, "%td bytes before the start of %s", m->data_ - p, what);
    } else {
      std::snprintf(text, sizeof text, "byte %td of %s of %" PRId64 " bytes", p - m->data_, what, m->bytes_);
    }
    return text;
  }
  std::snprintf(text, sizeof text, "address %p", address);
  return text;
}

}  // namespace simt
