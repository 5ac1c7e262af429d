// Checks of the operators' arguments. They raise what nn.BatchNorm raises for the same misuse, before
// anything is written.
#pragma once

#include "args.h"

namespace fused_bn {

// An input alone: all that batch_norm_moments takes.
void check(const Tensor& input);
void check(const ForwardArguments& arguments);
void check(const ElementwiseArguments& arguments);
void check(const MergeArguments& arguments);
void check(const BackwardArguments& arguments);
void check(const BackwardElementwiseArguments& arguments);

// check(ElementwiseArguments) without the statistics.
void check_elementwise(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
                       const OptionalTensor& bias, std::string_view activation, double activation_param,
                       const OptionalTensor& negative_slope);

}  // namespace fused_bn
