// Autograd's version counters of the buffers that an operator writes.
#pragma once

#include "args.h"

namespace fused_bn {

// Raises what bump_version() would raise, before anything is written.
void check_buffers_can_be_written(const ForwardArguments& arguments);

// Calls batch_norm_forward below the autograd keys, and increments the versions of the buffers that it wrote:
// autograd then sees the change of a buffer that somebody else saved. The caller has checked the buffers.
ForwardResult forward_and_bump_versions(const ForwardArguments& arguments);

}  // namespace fused_bn
