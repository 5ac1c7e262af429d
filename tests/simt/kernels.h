// Runs the kernels of one element type.
#pragma once

#include "common/activation.h"
#include "cuda/params.h"
#include "executor.h"

namespace simt {

template <class T>
void run_kernel(const fused_bn::cuda::ForwardParams& params, fused_bn::Activation activation,
                const Launch& launch);
template <class T>
void run_kernel(const fused_bn::cuda::BackwardParams& params, fused_bn::Activation activation,
                const Launch& launch);

}  // namespace simt
