// From a plan to a launch. Knows no torch.
#pragma once

#include <cuda_runtime_api.h>

#include "common/activation.h"
#include "cuda/plan.h"

namespace fused_bn::cuda {

// Launches the kernel that the plan and the types ask for on `stream` of the current device; geometry,
// layout, exchange and phase of the params are the plan's. Returns what the driver says; nothing is waited
// for.
cudaError_t launch(const Plan& plan, DType dtype, Activation activation, ForwardParams params,
                   cudaStream_t stream);
cudaError_t launch(const Plan& plan, DType dtype, Activation activation, BackwardParams params,
                   cudaStream_t stream);

// Kernels launched since the process began.
int64_t launches();

// One element type's share of launch(), in a file of its own, so that they compile side by side.
template <class T>
cudaError_t launch_one_type(const Plan& plan, Activation activation, const ForwardParams& params,
                            cudaStream_t stream);
template <class T>
cudaError_t launch_one_type(const Plan& plan, Activation activation, const BackwardParams& params,
                            cudaStream_t stream);

// Blocks in the largest cluster, of at most so many, that the current device can run; 1 where it runs none.
int most_blocks_of_cluster(int limit);

}  // namespace fused_bn::cuda
