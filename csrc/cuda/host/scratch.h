// Device memory that outlives the launch that works in it: Scratch in params.h.
#pragma once

#include <c10/cuda/CUDAStream.h>
#include <c10/util/FunctionRef.h>

#include "cuda/params.h"

namespace fused_bn::cuda {

// Calls launch(scratch), which launches on the stream, and returns what it does: what the driver says.
// Launches on a stream follow one another and take turns at one scratch. So do those of a stream in one
// capture, and the graph keeps their scratch while it lives: replays of an executable graph follow one
// another. (Those of two executable graphs of one capture do not: they must not run at once.) Nothing in a
// graph zeroes it, because each launch leaves it as the next one needs it. On streams that are not torch's
// each launch zeroes its own.
cudaError_t with_scratch(c10::cuda::CUDAStream stream, c10::function_ref<cudaError_t(const Scratch&)> launch);

}  // namespace fused_bn::cuda
