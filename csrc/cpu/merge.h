// From the moments of several processes to the statistics of them all.
#pragma once

#include "cpu/channel.h"

namespace fused_bn::cpu {
namespace {

template <class A>
void merge_processes(const MergeParams& p) {
  const Statistics<A> statistics(p.statistics, p.C);
  const int64_t length = 2 * p.C + 1;
  *p.count = 0;
  for (int64_t i = 0; i < p.processes; ++i) *p.count += p.moments[i * length + 2 * p.C];
  for (int64_t c = 0; c < p.C; ++c) {
    Moments all;  // in the order of the processes: the same bits in each of them
    for (int64_t i = 0; i < p.processes; ++i) {
      const double* own = p.moments + i * length;
      all = merge(all, {own[2 * p.C], own[c], own[p.C + c]});
    }
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
