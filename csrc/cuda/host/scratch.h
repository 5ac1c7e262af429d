// Device memory that outlives a launch: Scratch in params.h.
#pragma once

#include <c10/cuda/CUDAStream.h>
#include <c10/util/FunctionRef.h>

#include "cuda/params.h"

namespace fused_bn::cuda {

// Returns launch(scratch), which launches on the stream. All launches of a stream share a scratch. So do all
// launches of a capture, whose graph keeps it alive: two executable graphs of one capture must not run at
// once. On streams that are not torch's, each launch gets its own, which is zeroed first.
cudaError_t with_scratch(c10::cuda::CUDAStream stream, c10::function_ref<cudaError_t(const Scratch&)> launch);

}  // namespace fused_bn::cuda
