// The activations in plain torch calls, which autograd differentiates as often as it likes.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/activation.h"

namespace fused_bn {

at::Tensor plain_activation(Activation activation, double param, const at::Tensor& z);

// The derivative at z, of an activation whose derivative is not one of two numbers.
at::Tensor plain_derivative(Activation activation, double param, const at::Tensor& z);

}  // namespace fused_bn
