// The activations on vectors, see common/activation.h.
#pragma once

#include "common/activation.h"
#include "cpu/vector_math.h"

namespace fused_bn::cpu {
namespace {

// What kernels are compiled for. Plain ones have no residual and no mask: for data in cache, a test for these
// at each vector took up to 20% longer, and a multiplication by a slope of 1 as much again (Xeon, AVX-512).
enum class Path : int8_t { plain_none, plain_relu, relu, leaky_relu, prelu, other };
constexpr int8_t kPaths = 6;

constexpr bool is_plain(Path path) { return path <= Path::plain_relu; }

FUSED_BN_INLINE Path path_of(Activation activation, bool plain) {
  if (plain && activation == Activation::none) return Path::plain_none;
  if (activation == Activation::prelu) return Path::prelu;
  switch (kind_of(activation)) {
    case ActivationKind::relu:
      return plain ? Path::plain_relu : Path::relu;
    case ActivationKind::leaky_relu:
      return Path::leaky_relu;
    default:
      return Path::other;
  }
}

constexpr ActivationKind kind_of(Path path) {
  return path >= Path::prelu        ? ActivationKind::other
         : path == Path::leaky_relu ? ActivationKind::leaky_relu
                                    : ActivationKind::relu;
}

// Not inlined: the code is long, and its arithmetic outweighs a call.
template <class A>
__attribute__((noinline)) Vec<A> activate_by_call(Vec<A> z, const Activated<A>& f) {
  return fused_bn::activate<ActivationKind::other, VectorMath<A>>(z, f);
}

template <class A>
__attribute__((noinline)) Vec<A> activate_backward_by_call(Vec<A> z, Vec<A> grad, const Activated<A>& f) {
  return fused_bn::activate_backward<ActivationKind::other, VectorMath<A>>(z, grad, f);
}

// negative_slope: prelu's.
template <Path path, class A>
FUSED_BN_INLINE Vec<A> activate(Vec<A> z, Vec<A> negative_slope, const Activated<A>& f) {
  if constexpr (path == Path::plain_none) {
    return z;
  } else if constexpr (path == Path::prelu) {
    return prelu(z, negative_slope);
  } else if constexpr (path == Path::other) {
    return activate_by_call<A>(z, f);
  } else {
    return fused_bn::activate<kind_of(path), VectorMath<A>>(z, f);
  }
}

template <Path path, class A>
FUSED_BN_INLINE Vec<A> activate_backward(Vec<A> z, Vec<A> grad, Vec<A> negative_slope,
                                         const Activated<A>& f) {
  if constexpr (path == Path::plain_none) {
    return grad;
  } else if constexpr (path == Path::prelu) {
    return prelu_backward(z, grad, negative_slope);
  } else if constexpr (path == Path::other) {
    return activate_backward_by_call<A>(z, grad, f);
  } else {
    return fused_bn::activate_backward<kind_of(path), VectorMath<A>>(z, grad, f);
  }
}

}  // namespace
}  // namespace fused_bn::cpu
