// The process's cache of plans, one for each problem and device.
#pragma once

#include <memory>

#include "cuda/host/launch.h"

namespace fused_bn::cuda {

// Returns the plan for the current device; raises ValueError if a forced option does not fit. streamed:
// without the resident kernel. refused: the driver refused the cooperative launch; makes the plan again
// without it.
std::shared_ptr<const PreparedPlan> plan_for(const Problem& problem, bool streamed, bool refused = false);

// Raises if the launch failed. `how` is appended to the message.
void check_launch(cudaError_t error, const std::string& how);

// Fixes these options of all later plans. FUSED_BN_CUDA_PLAN sets them initially.
void force_plan(const std::string& text);

// Returns the text of the plan that was last made or found; empty if there is none.
std::string last_plan();

}  // namespace fused_bn::cuda
