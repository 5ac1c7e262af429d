// Both directions as autograd can differentiate them: in plain torch calls. For derivatives of the
// derivative, and for forward mode, which asks the kernels for more than they compute.
#pragma once

#include <torch/csrc/autograd/variable.h>

#include <tuple>

#include "args.h"

namespace fused_bn {

// What the operator batch_norm does, buffers and counter included.
Tensor differentiable_forward(const ForwardArguments& arguments);

// What the operator batch_norm_backward does. The derivative through the batch statistics is that of the
// formulas, their values are those saved.
BackwardResult differentiable_backward(const BackwardArguments& arguments);

// From the gradients with respect to what batch_norm_backward returns (undefined where there is none), those
// with respect to grad_output, input, residual, weight, bias and negative_slope (undefined where not
// required). Differentiable again where grad mode is on.
torch::autograd::variable_list double_backward(const BackwardArguments& arguments,
                                               const torch::autograd::variable_list& grads);

}  // namespace fused_bn
