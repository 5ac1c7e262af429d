// The compiled kernels, to be launched.
#pragma once

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {

// The function of a kernel for CUDA's runtime; null for what no plan asks for. Each element type has a .cu
// file of its own, so that they compile side by side.
template <class T>
const void* kernel_of(Kernel kernel, const Problem& problem, const Tiling& tiling);

}  // namespace fused_bn::cuda
