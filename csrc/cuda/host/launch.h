// Launches the kernels of a plan. Includes no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

// Returns a kernel's function, or null if no plan uses it. The .cu file of each element type defines it.
template <class T>
const void* kernel_of(Kernel kernel, const Problem& problem, const Tiling& tiling);

// A kernel with its attributes set for a device, and the attribute of its launch.
struct Prepared {
  const void* kernel = nullptr;
  cudaLaunchAttribute attribute{};
  int compiled_for = 0;  // 90 is sm_90, which may be older than the device
};

struct PreparedPlan {
  Plan plan;
  Prepared first, apply;
};

// Prepares the kernels of plan.plan for the current device. Returns the driver's error, as launch() does.
cudaError_t prepare(const Problem& problem, const Device& device, PreparedPlan& plan);

// Launches the first kernel and, if results are wanted, the apply pass. `params` is a part of ForwardParams
// or BackwardParams; its Launch is filled in.
cudaError_t launch(const PreparedPlan& plan, Launch& params, bool results_wanted, cudaStream_t stream);
cudaError_t launch(const MergeParams& params, cudaStream_t stream);

int64_t launches();  // since the process started

// Whether all blocks of the plan's first kernel run at once, as a cooperative launch requires.
bool runs_at_once(const PreparedPlan& plan, const Device& device);

// How many clusters of 1, 2, 4, 8 and 16 blocks, one block per multiprocessor, run at once; 0 if unsupported.
std::array<int, 5> active_clusters(const Device& device);

}  // namespace fused_bn::cuda
