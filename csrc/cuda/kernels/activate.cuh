// The activation of a vector.
#pragma once

#include "common/activation.h"
#include "cuda/kernels/elements.cuh"

namespace fused_bn::cuda {

// Calls body with the activation as a constant: one branch serves a whole vector. any: includes the
// activations that have their own kind.
template <ActivationKind kind, bool any, Activation candidate = any ? Activation::none : kFirstOther, class A,
          class Body>
FUSED_BN_DEVICE void with_constant(Activated<A> f, Body body) {
  if constexpr (kind == ActivationKind::other) {
    if constexpr (candidate != kLastActivation) {
      constexpr auto next = static_cast<Activation>(static_cast<int>(candidate) + 1);
      if (f.activation != candidate) return with_constant<kind, any, next>(f, body);
    }
    if constexpr (candidate != Activation::prelu) {
      f.activation = candidate;
      constexpr bool has_own = candidate < kFirstOther;
      body(std::integral_constant<ActivationKind, has_own ? kind_of(candidate) : ActivationKind::other>{}, f);
    }
  } else {
    body(std::integral_constant<ActivationKind, kind>{}, f);
  }
}

// All activations but prelu, see with_negative_slopes(). Kernels of single elements branch among all of them.
template <class T, int vector, ActivationKind kind>
class VectorActivation {
  using A = Compute<T>;
  static constexpr bool kAny = vector == 1;

 public:
  FUSED_BN_DEVICE VectorActivation(Activation activation, double param) : f_(activation, param) {}

  FUSED_BN_DEVICE bool is_prelu() const {
    return kind == ActivationKind::other && f_.activation == Activation::prelu;
  }

  FUSED_BN_DEVICE Raw<T, vector> forward(A (&z)[vector]) const {
    if constexpr (kind == ActivationKind::relu) {
      return pack<T, vector, true>(z);
    } else {
      with_constant<kind, kAny>(f_, [&](auto own, const Activated<A>& f) {
        in_turns<kForward>([&](int k) { z[k] = activate<own.value, Math<A>>(z[k], f); }, z, z);
      });
      return pack<T, vector>(z);
    }
  }

  // Turns the gradient with respect to the output into that with respect to z. Overwrites z.
  FUSED_BN_DEVICE void backward(A (&z)[vector], A (&grad)[vector]) const {
    with_constant<kind, kAny>(f_, [&](auto own, const Activated<A>& f) {
      in_turns<kBackward>([&](int k) { grad[k] = activate_backward<own.value, Math<A>>(z[k], grad[k], f); },
                          z, grad);
    });
  }

  // Returns the mask's bits, the first element's lowest.
  FUSED_BN_DEVICE uint32_t bits(const A (&z)[vector]) const {
    uint32_t bits = 0;
    const bool plain = kAny && f_.activation < kFirstOther;
    FUSED_BN_UNROLL
    for (int k = 0; k < vector; ++k) {
      const bool one = plain ? !(z[k] <= 0) : passes<kind, Math<A>>(z[k]);
      bits |= (one ? 1u : 0u) << k;
    }
    return bits;
  }

 private:
  // Elements that are computed at once: with much arithmetic, more would not fit into registers.
  static constexpr bool kLong = kind == ActivationKind::other;
  static constexpr int kForward = !kLong ? vector : vector < 4 ? 1 : 4;
  static constexpr int kBackward = !kLong ? vector : vector < 4 ? 1 : 2;

  // Calls body(k) for k < count, and rotates the arrays, until all elements had their turn.
  template <int count, class Body>
  FUSED_BN_DEVICE static void in_turns(Body body, A (&first)[vector], A (&second)[vector]) {
    FUSED_BN_ROLLED
    for (int i = 0; i < vector; i += count) {
      FUSED_BN_UNROLL
      for (int k = 0; k < count; ++k) body(k);
      if constexpr (count < vector) {
        rotate<count>(first);
        if (&first != &second) rotate<count>(second);
      }
    }
  }

  // Moves the first `count` values to the end.
  template <int count>
  FUSED_BN_DEVICE static void rotate(A (&values)[vector]) {
    A first[count];
    FUSED_BN_UNROLL
    for (int k = 0; k < count; ++k) first[k] = values[k];
    FUSED_BN_UNROLL
    for (int k = count; k < vector; ++k) values[k - count] = values[k];
    FUSED_BN_UNROLL
    for (int k = 0; k < count; ++k) values[vector - count + k] = first[k];
  }

  const Activated<A> f_;
};

}  // namespace fused_bn::cuda
