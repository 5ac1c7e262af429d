// The activations behind a batch norm, shared by forward and backward so that their masks agree bit for bit.
#pragma once

#include <cstdint>

namespace fused_bn {

enum class Activation : int8_t { none, relu };

// V is a scalar or a vector whose comparisons give a lane mask for ?:.
// Written with !(z <= 0) rather than z > 0 so that NaN passes, as it does in PyTorch.
template <Activation activation, class V>
inline __attribute__((always_inline)) V activate(V z) {
  if constexpr (activation == Activation::relu) {
    return z <= V{} ? V{} : z;
  } else {
    return z;
  }
}

// The gradient with respect to z, from the gradient with respect to activate(z).
template <Activation activation, class V>
inline __attribute__((always_inline)) V activate_backward(V z, V grad) {
  if constexpr (activation == Activation::relu) {
    return z <= V{} ? V{} : grad;
  } else {
    return grad;
  }
}

}  // namespace fused_bn
