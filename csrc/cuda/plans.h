// The plans of this process: made once for each problem and device, then looked up.
#pragma once

#include "cuda/plan.h"

namespace fused_bn::cuda {

// For the current device.
Plan plan_for(const Problem& problem);

// The current device, as the planner sees it.
const Device& current_device();

}  // namespace fused_bn::cuda
