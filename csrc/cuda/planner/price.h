// What a plan costs: bytes, and predicted microseconds.
#pragma once

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

// Fills in traffic, floor_time and predicted_time.
void price(const Problem& problem, const Device& device, Plan& plan);

// Clusters of so many blocks that run at once, at so many blocks a multiprocessor.
int64_t active_clusters(const Device& device, int cluster, int blocks_per_multiprocessor);

}  // namespace fused_bn::cuda
