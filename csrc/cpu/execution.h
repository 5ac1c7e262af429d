// Distributes work over threads: units are channels, or tiles of them, and are cut into parts.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace fused_bn::cpu {
namespace {

// Up to here a parallel region, of about 3 us, costs more than it saves.
constexpr int64_t kSerialElements = 32768;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// reduce(unit, part) returns a part's sums; finish(unit, sums) gets those of all parts of a unit; apply(unit,
// part) then writes the part's output.
//
// If there are enough units for the threads, one thread does a whole unit, and its apply pass reads from
// cache; otherwise the parts of a unit go to different threads. The sums are merged in the same order.
template <class Sums, class Reduce, class Finish, class Apply>
void run_units(int64_t units, int64_t parts, int64_t elements, const Execution& execution, Reduce reduce,
               Finish finish, Apply apply) {
  const int64_t threads = elements <= kSerialElements ? 1 : execution.threads;
  // Threads may be idle for a fifth of the time.
  const bool balanced = 5 * units >= 4 * divide_up(units, threads) * threads;
  const auto whole_units = [&](int64_t begin, int64_t end) {
    std::vector<Sums> sums(parts);
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int64_t part = 0; part < parts; ++part) sums[part] = reduce(unit, part);
      finish(unit, sums.data());
      // Backwards, because the part that was read last is still in cache.
      for (int64_t part = parts - 1; part >= 0; --part) apply(unit, part);
    }
  };
  if (threads == 1) {
    whole_units(0, units);
  } else if (parts == 1 || balanced) {
    execution.parallel_for(units, whole_units);
  } else {
    std::vector<Sums> sums(units * parts);
    execution.parallel_for(units * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sums[i] = reduce(i / parts, i % parts);
    });
    for (int64_t unit = 0; unit < units; ++unit) finish(unit, sums.data() + unit * parts);
    execution.parallel_for(units * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = end - 1; i >= begin; --i) apply(i / parts, i % parts);
    });
  }
}

}  // namespace
}  // namespace fused_bn::cpu
