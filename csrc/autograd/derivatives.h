// Which derivatives the tensors of a call ask for.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include "args.h"

namespace fused_bn {

inline bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
inline bool requires_grad(const OptionalTensor& tensor) {
  return tensor.has_value() && requires_grad(*tensor);
}

// Forward mode's tangent. torch.func.jvp has levels of its own, of which this is the innermost.
inline bool has_tangent(const Tensor& tensor) {
  return tensor.defined() && tensor._fw_grad(/*level=*/0).defined();
}
inline bool has_tangent(const OptionalTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

template <class... Tensors>
bool any_requires_grad(const Tensors&... tensors) {
  return c10::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}
template <class... Tensors>
bool any_has_tangent(const Tensors&... tensors) {
  return (has_tangent(tensors) || ...);
}

}  // namespace fused_bn
