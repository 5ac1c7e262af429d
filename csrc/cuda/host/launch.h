// From a plan to launches. Knows no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

// A kernel's function; null for what no plan asks for. Each element type has a .cu file: they compile at
// once.
template <class T>
const void* kernel_of(Kernel kernel, const Problem& problem, const Tiling& tiling);

// A kernel that a device is prepared for, and how its launch differs from a plain one.
struct Prepared {
  const void* kernel = nullptr;
  cudaLaunchAttribute attribute{};
  int compiled_for = 0;  // 90 is sm_90; a newer device may run it, without its own instructions
};

struct PreparedPlan {
  Plan plan;
  Prepared first, apply;
};

// Prepares the kernels of plan.plan for the current device. Returns what the driver says, as launch() does.
cudaError_t prepare(const Problem& problem, const Device& device, PreparedPlan& plan);

// Launches the first kernel and, where results are wanted, the apply pass. The plan fills in the Launch of
// `params`, which are ForwardParams or BackwardParams.
cudaError_t launch(const PreparedPlan& plan, Launch& params, bool results_wanted, cudaStream_t stream);
cudaError_t launch(const MergeParams& params, cudaStream_t stream);

int64_t launches();  // since the process began

// Whether all blocks of the plan's first kernel run at once, as a cooperative launch needs them.
bool runs_at_once(const PreparedPlan& plan, const Device& device);

// Clusters of 1, 2, 4, 8 and 16 blocks, one block a multiprocessor, that run at once; 0 for unknown sizes.
std::array<int, 5> active_clusters(const Device& device);

}  // namespace fused_bn::cuda
