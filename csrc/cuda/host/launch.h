// From a plan to launches. Knows no torch.
#pragma once

#include <cuda_runtime_api.h>

#include <array>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

constexpr int kMostDevices = 64;

// Launches what the plan asks for on `stream` of the current device: one kernel, or the reduce pass and
// behind it the apply pass by programmatic dependent launch. Tilings, layouts, exchange and slots of the
// params are the plan's. Returns what the driver says; nothing is waited for.
cudaError_t launch(const Plan& plan, DType dtype, ForwardParams params, cudaStream_t stream);
cudaError_t launch(const Plan& plan, DType dtype, BackwardParams params, cudaStream_t stream);
cudaError_t launch(const MergeParams& params, cudaStream_t stream);

// Kernels launched since the process began.
int64_t launches();

// Whether the current device can hold all blocks of the plan's first kernel at once, as a cooperative launch
// needs them.
bool runs_at_once(const Plan& plan, const Problem& problem);

// Clusters of 1, 2, 4, 8 and 16 blocks, one block a multiprocessor, that the current device runs at once; 0
// for sizes that it does not know.
std::array<int, 5> active_clusters();

}  // namespace fused_bn::cuda
