// The plans of this process: made once for each problem and device, then looked up.
#pragma once

#include "cuda/plan.h"

namespace fused_bn::cuda {

// For the current device.
Plan plan_for(const Problem& problem);

}  // namespace fused_bn::cuda
