// The activations in plain torch calls, which autograd differentiates as often as it likes.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/activation.h"

namespace fused_bn {

// negative_slope: prelu's, undefined for the others.
at::Tensor plain_activation(Activation activation, double param, const at::Tensor& negative_slope,
                            const at::Tensor& z);

// The derivative at z, of an activation whose derivative is not one of two numbers or a channel's.
at::Tensor plain_derivative(Activation activation, double param, const at::Tensor& z);

}  // namespace fused_bn
