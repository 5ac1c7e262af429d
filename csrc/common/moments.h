// Count, mean and sum of squared deviations of a set of values.
#pragma once

#include "common/params.h"
#include "common/portable.h"

namespace fused_bn {

struct Moments {
  double count = 0;
  double mean = 0;
  double m2 = 0;
};

// Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
// The mean moves by a share of the difference, so equal means stay exactly equal.
FUSED_BN_HOST_DEVICE inline Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double count = a.count + b.count;
  const double delta = b.mean - a.mean;
  const double share = b.count / count;
  const double mean = delta - delta == 0 ? a.mean + delta * share : a.mean + b.mean;  // inf stays inf
  return {count, mean, a.m2 + b.m2 + delta * delta * (a.count * share)};
}

// Merges a channel's moments in the order of the processes, so that each gets the same bits.
FUSED_BN_HOST_DEVICE inline Moments merge(const CommonMergeParams& p, int64_t c) {
  const int64_t length = 2 * p.C + 1;
  Moments all;
  for (int64_t i = 0; i < p.processes; ++i) {
    const double* own = p.moments + i * length;
    all = merge(all, {own[2 * p.C], own[c], own[p.C + c]});
  }
  return all;
}

FUSED_BN_HOST_DEVICE inline void write_count(const CommonMergeParams& p) {
  const int64_t length = 2 * p.C + 1;
  *p.count = 0;
  for (int64_t i = 0; i < p.processes; ++i) *p.count += p.moments[i * length + 2 * p.C];
}

}  // namespace fused_bn
