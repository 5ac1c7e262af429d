// The gradient of batch_norm_backward.
#pragma once

#include <torch/csrc/autograd/variable.h>

#include "batch_norm.h"

namespace fused_bn {

// From the gradients with respect to grad_input, grad_weight and grad_bias (undefined where there is none),
// those with respect to grad_output, input and weight (undefined where not required). Differentiable again
// where grad mode is on.
torch::autograd::variable_list double_backward(const BackwardArguments& arguments,
                                               const torch::autograd::variable_list& grads);

}  // namespace fused_bn
