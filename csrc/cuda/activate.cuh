// The activation of a vector: eight elements side by side.
#pragma once

#include "common/activation.h"
#include "cuda/elements.cuh"

namespace fused_bn::cuda {

// Calls body with the activation as a constant, so that one branch serves a whole vector, whose elements do
// not wait for each other.
template <Curve curve, Activation candidate = kFirstOther, class A, class Body>
FUSED_BN_DEVICE void with_constant(Activated<A> f, Body body) {
  if constexpr (curve == Curve::other) {
    if constexpr (candidate != kLastActivation) {
      constexpr auto next = static_cast<Activation>(static_cast<int>(candidate) + 1);
      if (f.activation != candidate) return with_constant<curve, next>(f, body);
    }
    f.activation = candidate;
  }
  body(f);
}

template <class A, Curve curve>
class VectorActivation {
 public:
  FUSED_BN_DEVICE VectorActivation(Activation activation, double param) : f_(activation, param) {}

  FUSED_BN_DEVICE void forward(A (&z)[kVector]) const {
    with_constant<curve>(f_, [&](const Activated<A>& f) {
      FUSED_BN_ROLLED
      for (int i = 0; i < kVector; i += kForward) {
        FUSED_BN_UNROLL
        for (int k = 0; k < kForward; ++k) z[k] = activate<curve, Math<A>>(z[k], f);
        rotate<kForward>(z);
      }
    });
  }

  // grad: with respect to what forward() gives, and then to z, which is used up.
  FUSED_BN_DEVICE void backward(A (&z)[kVector], A (&grad)[kVector]) const {
    with_constant<curve>(f_, [&](const Activated<A>& f) {
      FUSED_BN_ROLLED
      for (int i = 0; i < kVector; i += kBackward) {
        FUSED_BN_UNROLL
        for (int k = 0; k < kBackward; ++k) grad[k] = activate_backward<curve, Math<A>>(z[k], grad[k], f);
        rotate<kBackward>(z);
        rotate<kBackward>(grad);
      }
    });
  }

  // The byte of a mask.
  FUSED_BN_DEVICE static uint32_t bits(const A (&z)[kVector]) {
    uint32_t bits = 0;
    FUSED_BN_UNROLL
    for (int k = 0; k < kVector; ++k) bits |= (passes<curve, Math<A>>(z[k]) ? 1u : 0u) << k;
    return bits;
  }

 private:
  // Elements at once: of a curve with much arithmetic, more would not fit into registers.
  static constexpr bool kLong = curve == Curve::other;
  static constexpr int kForward = !kLong ? kVector : sizeof(A) == 8 ? 1 : 4;
  static constexpr int kBackward = !kLong ? kVector : sizeof(A) == 8 ? 1 : 2;

  // The first `count` go behind the last.
  template <int count>
  FUSED_BN_DEVICE static void rotate(A (&values)[kVector]) {
    A first[count];
    FUSED_BN_UNROLL
    for (int k = 0; k < count; ++k) first[k] = values[k];
    FUSED_BN_UNROLL
    for (int k = count; k < kVector; ++k) values[k - count] = values[k];
    FUSED_BN_UNROLL
    for (int k = 0; k < count; ++k) values[kVector - count + k] = first[k];
  }

  const Activated<A> f_;
};

}  // namespace fused_bn::cuda
