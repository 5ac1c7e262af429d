// Merges the moments of several processes into the statistics of all their values.
#pragma once

#include "cpu/channel.h"

namespace fused_bn::cpu {
namespace {

template <class A>
void merge_processes(const MergeParams& p) {
  const Statistics<A> statistics(p.statistics, p.C);
  write_count(p);
  for (int64_t c = 0; c < p.C; ++c) {
    const Moments all = merge(p, c);
    if (all.count == 0) {
      save(statistics, c, 0, 0, p.eps);
    } else {
      save(statistics, c, all.mean, all.m2 / all.count, p.eps);
      blend(p, c, all.mean, all.m2 / (all.count - 1));
    }
  }
}

}  // namespace
}  // namespace fused_bn::cpu
