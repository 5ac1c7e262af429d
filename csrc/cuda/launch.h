// From a plan to a launch. Knows no torch.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan.h"

namespace fused_bn::cuda {

// Launches the kernel that the plan, the type and the activation ask for on `stream` of the current device;
// geometry, layout, exchange and phase of the params are the plan's, which was made for this activation.
// Returns what the driver says; nothing is waited for.
cudaError_t launch(const Plan& plan, DType dtype, ForwardParams params, cudaStream_t stream);
cudaError_t launch(const Plan& plan, DType dtype, BackwardParams params, cudaStream_t stream);

cudaError_t launch(const MergeParams& params, cudaStream_t stream);

// Kernels launched since the process began.
int64_t launches();
void count_launch();

// One element type's share of launch(), in a file of its own, so that they compile side by side.
template <class T>
cudaError_t launch_one_type(const Plan& plan, const ForwardParams& params, cudaStream_t stream);
template <class T>
cudaError_t launch_one_type(const Plan& plan, const BackwardParams& params, cudaStream_t stream);

// Blocks in the largest cluster, of at most so many, that the current device can run; 1 where it runs none.
int most_blocks_of_cluster(int limit);

}  // namespace fused_bn::cuda
