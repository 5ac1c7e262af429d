// Which accesses to memory no stream order, event or wait puts one behind the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace cuda_device {

struct Access {
  const void* begin;
  size_t bytes;
  bool writes;
};

// For each stream, how much of its work has happened before.
using Clock = std::map<uint64_t, uint64_t>;
void merge(Clock& clock, const Clock& other);

struct Stamp {
  uint64_t stream = 0, tick = 0;
  const char* work = nullptr;  // its name, which lives for ever

  bool before(const Clock& clock) const;
};

// The last accesses to every byte.
class Accesses {
 public:
  // Adds one, whose work begins at the clock. Returns the stamp of an access that it races with, if any.
  const Stamp* add(const Access& access, const Stamp& stamp, const Clock& clock);
  void forget(uintptr_t begin, size_t bytes);

 private:
  struct Range {
    uintptr_t end;
    Stamp write;
    std::vector<Stamp> reads;  // since the write
  };
  using Ranges = std::map<uintptr_t, Range>;

  // The first range at or behind the address, where no range goes across it.
  Ranges::iterator cut(uintptr_t address);
  Ranges ranges_;
  Stamp raced_;
};

}  // namespace cuda_device
