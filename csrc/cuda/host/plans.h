// The plans of this process: made once for each problem and device, then looked up.
#pragma once

#include <memory>

#include "cuda/host/launch.h"

namespace fused_bn::cuda {

// For the current device; ValueError where what is forced does not fit. streamed: never the resident kernel.
// refused: the driver did not take the cooperative launch, which the plan does without from now on.
std::shared_ptr<const PreparedPlan> plan_for(const Problem& problem, bool streamed, bool refused = false);

// Raises where the driver refuses a launch; `how` is added to the reason.
void check_launch(cudaError_t error, const std::string& how);

// What the text says holds for every plan from now on. FUSED_BN_CUDA_PLAN gives it from the start.
void force_plan(const std::string& text);

// The text of the plan that was made or found last in this process; empty before the first.
std::string last_plan();

}  // namespace fused_bn::cuda
