// Counters of batches that the kernels do not write.
#pragma once

#include <ATen/ATen.h>

#include "batch_norm.h"

namespace fused_bn {

// next(arguments), and counts in a counter of another dtype or device, as nn.BatchNorm does.
template <auto next>
Tensor with_any_counter(const ForwardArguments& a) {
  if (!a.training || !present(a.num_batches_tracked)) return next(a);
  const Tensor& counter = *a.num_batches_tracked;
  const auto type = counter.scalar_type();
  const bool is_kernels = type == at::kLong && counter.device() == a.input.device();
  const bool is_number = at::isFloatingType(type) || at::isIntegralType(type, /*includeBool=*/false);
  if (is_kernels || !is_number || counter.sym_numel() != 1) return next(a);
  counter.add_(0);  // raises where it cannot be written, before the statistics are
  const OptionalTensor absent;
  const auto momentum = a.momentum.has_value() ? a.momentum : 1 / (counter.item().toDouble() + 1);
  Tensor output = next({a.input, a.residual, a.weight, a.bias, a.running_mean, a.running_var, absent,
                        a.training, momentum, a.eps, a.activation, a.activation_param, a.save_mask});
  counter.add_(1);  // last: a call that is refused is not counted
  return output;
}

}  // namespace fused_bn
