#include "races.h"

#include <algorithm>

namespace cuda_device {

void merge(Clock& clock, const Clock& other) {
  for (const auto& [stream, tick] : other) clock[stream] = std::max(clock[stream], tick);
}

bool Stamp::before(const Clock& clock) const {
  if (tick == 0) return true;
  const auto found = clock.find(stream);
  return found != clock.end() && found->second >= tick;
}

Accesses::Ranges::iterator Accesses::cut(uintptr_t address) {
  const auto behind = ranges_.lower_bound(address);
  if (behind == ranges_.begin()) return behind;
  Range& across = std::prev(behind)->second;
  if (across.end <= address) return behind;
  Range rest = across;
  across.end = address;
  return ranges_.emplace_hint(behind, address, std::move(rest));
}

const Stamp* Accesses::add(const Access& access, const Stamp& stamp, const Clock& clock) {
  const auto begin = reinterpret_cast<uintptr_t>(access.begin);
  const uintptr_t end = begin + access.bytes;
  const auto last = cut(end);
  const auto first = cut(begin);
  const Stamp* raced = nullptr;
  const auto check = [&](const Stamp& earlier) {
    if (raced != nullptr || earlier.before(clock)) return;
    raced_ = earlier;
    raced = &raced_;
  };
  for (auto range = first; range != last; ++range) {
    check(range->second.write);
    if (!access.writes) continue;
    for (const Stamp& read : range->second.reads) check(read);
  }
  if (access.writes) {  // nothing before it matters any more
    ranges_.erase(first, last);
    ranges_.emplace(begin, Range{end, stamp, {}});
    return raced;
  }
  uintptr_t at = begin;
  for (auto range = first; at < end; ++range) {
    if (range == last || range->first > at) {  // never accessed before
      const uintptr_t next = range == last ? end : range->first;
      range = ranges_.emplace_hint(range, at, Range{next, {}, {}});
    }
    auto& reads = range->second.reads;
    const auto replaced = [&](const Stamp& read) {
      return read.stream == stamp.stream || read.before(clock);
    };
    reads.erase(std::remove_if(reads.begin(), reads.end(), replaced), reads.end());
    reads.push_back(stamp);
    at = range->second.end;
  }
  return raced;
}

void Accesses::forget(uintptr_t begin, size_t bytes) {
  const auto last = cut(begin + bytes);
  ranges_.erase(cut(begin), last);
}

}  // namespace cuda_device
