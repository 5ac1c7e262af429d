// The autograd node of forward. Profiles and error texts name it by its type.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include "args.h"

namespace fused_bn {

// Saves the input, the parameters and [3, C] statistics. It does not save the running buffers, which later
// forwards change. Backward computes the activation's mask again. With a residual it saves one bit per
// element where that is enough, and else the residual itself; it never copies the residual.
class BatchNorm : public torch::autograd::Function<BatchNorm> {
 public:
  // The order of the saved tensors. An absent one is undefined.
  enum Saved : size_t { kInput, kResidual, kWeight, kBias, kNegativeSlope, kStatistics, kMask };

  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& input,
                        const OptionalTensor& residual, const OptionalTensor& weight,
                        const OptionalTensor& bias, const OptionalTensor& negative_slope,
                        const ForwardArguments& arguments);
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads);
};

}  // namespace fused_bn
