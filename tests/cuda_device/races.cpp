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
  const Stamp* raced = nullptr;
  const auto check = [&](const Stamp& earlier) {
    if (raced != nullptr || earlier.before(clock)) return;
    raced_ = earlier;
    raced = &raced_;
  };
  cut(end);
  auto range = cut(begin);
  for (uintptr_t at = begin; at < end;) {
    if (range == ranges_.end() || range->first > at) {
      const uintptr_t gap_end = range == ranges_.end() ? end : std::min(end, range->first);
      range = ranges_.emplace_hint(range, at, Range{gap_end, {}, {}});
    }
    Range& found = range->second;
    check(found.write);
    if (access.writes) {
      for (const Stamp& read : found.reads) check(read);
      found.write = stamp;
      found.reads.clear();
    } else {
      const auto same = [&](const Stamp& read) { return read.stream == stamp.stream; };
      found.reads.erase(std::remove_if(found.reads.begin(), found.reads.end(), same), found.reads.end());
      found.reads.push_back(stamp);
    }
    at = found.end;
    ++range;
  }
  return raced;
}

void Accesses::forget(uintptr_t begin, size_t bytes) {
  const auto last = cut(begin + bytes);
  ranges_.erase(cut(begin), last);
}

}  // namespace cuda_device
