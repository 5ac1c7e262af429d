// The activations behind a batch norm, shared by forward and backward so that their masks agree bit for bit.
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace fused_bn {

enum class Activation : int8_t { none, relu, leaky_relu };

// V is a scalar or a vector whose comparisons give a lane mask for ?:. slope is leaky_relu's.
// Written with !(z <= 0) rather than z > 0 so that NaN passes, as it does in PyTorch.
template <Activation activation, class V>
FUSED_BN_HOST_DEVICE inline __attribute__((always_inline)) V activate(V z, V slope = V{}) {
  if constexpr (activation == Activation::relu) {
    return z <= V{} ? V{} : z;
  } else if constexpr (activation == Activation::leaky_relu) {
    return z <= V{} ? z * slope : z;
  } else {
    return z;
  }
}

// The gradient with respect to z, from the gradient with respect to activate(z).
template <Activation activation, class V>
FUSED_BN_HOST_DEVICE inline __attribute__((always_inline)) V activate_backward(V z, V grad, V slope = V{}) {
  if constexpr (activation == Activation::relu) {
    return z <= V{} ? V{} : grad;
  } else if constexpr (activation == Activation::leaky_relu) {
    return z <= V{} ? grad * slope : grad;
  } else {
    return grad;
  }
}

}  // namespace fused_bn
