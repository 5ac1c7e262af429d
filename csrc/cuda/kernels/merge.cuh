// Merges the moments of several processes, in one block.
#pragma once

#include "common/moments.h"
#include "cuda/kernels/finish.cuh"

namespace fused_bn::cuda {

template <class A>
FUSED_BN_DEVICE void merge_kernel(const MergeParams& p) {
  const double momentum = p.cumulative ? cumulative_momentum(p.num_batches_tracked) : p.momentum;
  if (thread_index() == 0) write_count(p);
  for (int64_t c = thread_index(); c < p.C; c += kMergeThreads) {
    const Moments all = merge(p, c);
    const bool any = all.count > 0;
    const double variance = any ? all.m2 / all.count : 0;
    ChannelStatistics<A>(all.mean, variance, p.eps).save(p.statistics, p.C, c);
    if (!any) continue;
    blend(p.running_mean, c, read(p.running_mean, load_value(p.running_mean, c), 0), all.mean, momentum);
    blend(p.running_var, c, read(p.running_var, load_value(p.running_var, c), 0), all.m2 / (all.count - 1),
          momentum);
  }
  sync_block();  // all threads have read the counter
  if (thread_index() == 0 && p.num_batches_tracked != nullptr) *p.num_batches_tracked += 1;
}

}  // namespace fused_bn::cuda
