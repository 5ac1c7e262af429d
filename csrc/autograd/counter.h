// Counters of batches that the kernels do not write.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "args.h"

namespace fused_bn {

// torch.func.grad, vmap, jvp and what is made of them know primitive operators only. They set this key for
// what they call.
inline bool within_function_transform() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode);
}

// next(arguments), and counts in a counter of another dtype or device, as nn.BatchNorm does.
template <auto next>
Tensor with_any_counter(const ForwardArguments& a) {
  if (!a.training || !present(a.num_batches_tracked)) return next(a);
  const Tensor& counter = *a.num_batches_tracked;
  const auto type = counter.scalar_type();
  const bool is_kernels = type == at::kLong && counter.device() == a.input.device();
  const bool is_number = at::isFloatingType(type) || at::isIntegralType(type, /*includeBool=*/false);
  if (is_kernels || !is_number || counter.sym_numel() != 1) return next(a);
  // Raises where the counter cannot be written, before the statistics are.
  if (counter.requires_grad() || within_function_transform()) counter.add_(0);
  const auto momentum = a.momentum.has_value() ? a.momentum : 1 / (counter.item().toDouble() + 1);
  Tensor output = next(a.without_counter(momentum));
  counter.add_(1);  // last: a call that is refused is not counted
  return output;
}

}  // namespace fused_bn
