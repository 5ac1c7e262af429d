// Device memory that a launch works in, see Workspace in params.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/plan.h"

namespace fused_bn::cuda {

// Outside of graph capture one buffer for each stream, whose launches follow one another; its words are
// zeroed once, and every launch leaves them as the next one needs them. A captured launch gets memory of its
// own from the graph's pool, zeroed by a node of the graph, because a replay may run beside anything else.
class Scratch {
 public:
  // On the current stream. counts: the launch counts its blocks, whatever its exchange.
  Scratch(const Plan& plan, bool counts);

  Workspace workspace() const { return workspace_; }

 private:
  void use(const at::Tensor& words, const at::Tensor& partials);

  at::Tensor words_, partials_;  // held until the launch: another thread may replace the stream's
  Workspace workspace_{};
};

}  // namespace fused_bn::cuda
