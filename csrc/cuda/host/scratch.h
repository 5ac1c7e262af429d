// Device memory that outlives the launch that works in it: Scratch in params.h.
#pragma once

#include <c10/cuda/CUDAStream.h>
#include <c10/util/FunctionRef.h>

#include "cuda/params.h"

namespace fused_bn::cuda {

// Returns launch(scratch), which launches on the stream. Launches of a stream take turns at one scratch, and
// so do those in one capture, whose graph keeps it: two executable graphs of one capture must not run at
// once. On streams that are not torch's each launch zeroes its own.
cudaError_t with_scratch(c10::cuda::CUDAStream stream, c10::function_ref<cudaError_t(const Scratch&)> launch);

}  // namespace fused_bn::cuda
