// Device memory that a launch works in, see Workspace in params.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/plan.h"

namespace fused_bn::cuda {

// The sums are a tensor of the call. The words are zeroed once for each stream, whose launches follow one
// another and leave them as the next one needs them. A captured launch gets words of its own from the graph's
// pool, zeroed by a node of the graph, because a replay may run beside anything else.
class Scratch {
 public:
  // On the current stream. counts: the launch counts its blocks, whatever its exchange.
  Scratch(const Plan& plan, bool counts);

  Workspace workspace() const { return workspace_; }

 private:
  at::Tensor words_, partials_;  // held until the launch, whose stream orders what follows
  Workspace workspace_{};
};

}  // namespace fused_bn::cuda
