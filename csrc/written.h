// The buffers that an operator writes, for autograd's version counters.
#pragma once

#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/variable.h>

#include "batch_norm.h"

namespace fused_bn {

class WrittenBuffers {
 public:
  // Raises what bump_version would, but before anything is written.
  explicit WrittenBuffers(const ForwardArguments& a) : arguments_(a) {
    for_each([](const Tensor& buffer) {
      TORCH_CHECK(
          !buffer.is_inference() || c10::InferenceMode::is_enabled(),
          "Inplace update to inference tensor outside InferenceMode is not allowed. You can make a clone "
          "to get a normal tensor before doing inplace update.");
    });
  }

  // Counts as an in-place change, so that autograd sees one of a buffer that somebody else saved.
  void bump_versions() const { for_each(torch::autograd::impl::bump_version); }

 private:
  template <class Function>
  void for_each(Function function) const {
    if (!arguments_.training) return;
    for (const OptionalTensor* buffer :
         {&arguments_.running_mean, &arguments_.running_var, &arguments_.num_batches_tracked}) {
      if (present(*buffer)) function(**buffer);
    }
  }

  const ForwardArguments arguments_;
};

}  // namespace fused_bn
