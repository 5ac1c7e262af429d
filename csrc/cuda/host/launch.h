// From a plan to launches. Knows no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

// A kernel that a device is prepared for, and how its launch differs from a plain one.
struct Prepared {
  const void* kernel = nullptr;
  cudaLaunchAttribute attribute{};
};

// A plan whose kernels are prepared; null kernels where it has none.
struct PreparedPlan {
  Plan plan;
  Prepared first, apply;
};

// What follows concerns the current device, and returns what the driver says. Prepares the kernels of
// `plan.plan`.
cudaError_t prepare(const Problem& problem, const Device& device, PreparedPlan& plan);

// Launches what the plan asks for: one kernel, or the reduce pass and behind it, where results are wanted,
// the apply pass by programmatic dependent launch. `params` are ForwardParams or BackwardParams; the plan
// fills in their Launch. Nothing is waited for.
cudaError_t launch(const PreparedPlan& plan, Launch& params, bool results_wanted, cudaStream_t stream);
cudaError_t launch(const MergeParams& params, cudaStream_t stream);

// Kernels launched since the process began.
int64_t launches();

// Whether all blocks of the plan's first kernel run at once, as a cooperative launch needs them.
bool runs_at_once(const PreparedPlan& plan, const Device& device);

// Clusters of 1, 2, 4, 8 and 16 blocks, one block a multiprocessor, that run at once; 0 for sizes that the
// device does not know.
std::array<int, 5> active_clusters(const Device& device);

}  // namespace fused_bn::cuda
