// Who does what when: units of work (channels, or tiles of them), each cut into parts.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace fused_bn::cpu {
namespace {

constexpr int64_t kSerialElements =
    32768;  // below it a parallel region (about 3 us) costs more than it saves

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// summarise(unit, part) gives a part's summary; finish(unit, summaries) sees all parts of a unit;
// emit(unit, part) then writes the part's share of the output.
//
// Where there are units enough for the threads, one thread does a whole unit, so that its second read comes
// from cache; else the parts of a unit go to different threads. Summaries are merged in the same order either
// way.
template <class Summary, class Summarise, class Finish, class Emit>
void run_units(int64_t units, int64_t parts, int64_t elements, const Execution& execution,
               Summarise summarise, Finish finish, Emit emit) {
  const int64_t threads = elements <= kSerialElements ? 1 : execution.threads;
  // At most a fifth of the threads' time may pass idle.
  const bool balanced = 5 * units >= 4 * divide_up(units, threads) * threads;
  const auto whole_units = [&](int64_t begin, int64_t end) {
    std::vector<Summary> summaries(parts);
    for (int64_t unit = begin; unit < end; ++unit) {
      for (int64_t part = 0; part < parts; ++part) summaries[part] = summarise(unit, part);
      finish(unit, summaries.data());
      // Backwards: the part read last is the one still in cache.
      for (int64_t part = parts - 1; part >= 0; --part) emit(unit, part);
    }
  };
  if (threads == 1) {
    whole_units(0, units);
  } else if (parts == 1 || balanced) {
    execution.parallel_for(units, whole_units);
  } else {
    std::vector<Summary> summaries(units * parts);
    execution.parallel_for(units * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) summaries[i] = summarise(i / parts, i % parts);
    });
    for (int64_t unit = 0; unit < units; ++unit) finish(unit, summaries.data() + unit * parts);
    execution.parallel_for(units * parts, [&](int64_t begin, int64_t end) {
      for (int64_t i = end - 1; i >= begin; --i) emit(i / parts, i % parts);
    });
  }
}

}  // namespace
}  // namespace fused_bn::cpu
