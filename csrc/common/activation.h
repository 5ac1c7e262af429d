// The activations that follow a batch norm. Forward and backward share them on every device, so that the
// masks of both agree bit for bit. A new one needs a name in Activation and a case in activate_other() and
// derivative_other().
#pragma once

#include <cstdint>

#include "common/portable.h"

#define FUSED_BN_ANY_DEVICE FUSED_BN_HOST_DEVICE inline __attribute__((always_inline))

namespace fused_bn {

// Ordered: activations with two slopes (up to relu6), other piecewise polynomials, then those that take an
// exponential.
enum class Activation : int8_t {
  none,
  relu,
  leaky_relu,
  relu6,
  prelu,
  prelu_by_slope,  // backward only: its derivative is prelu's with respect to the slope
  hardswish,
  hardsigmoid,
  elu,
  silu,
  gelu,
  gelu_tanh,
  tanh,
  sigmoid,
  selu,
  softplus,
  mish,
};
constexpr Activation kFirstOther = Activation::relu6;  // the first whose kind_of() is other
constexpr Activation kLastActivation = Activation::mish;

// What kernels are compiled for. No activation is leaky_relu with slope 1, which changes no bit of z. `other`
// ones branch at run time, because their arithmetic outweighs a branch.
enum class ActivationKind : int8_t { relu, leaky_relu, other };

FUSED_BN_ANY_DEVICE constexpr ActivationKind kind_of(Activation activation) {
  if (activation == Activation::relu) return ActivationKind::relu;
  if (activation == Activation::none || activation == Activation::leaky_relu)
    return ActivationKind::leaky_relu;
  return ActivationKind::other;
}

// Whether one bit per element determines the derivative. hardsigmoid has two slopes too, but backward reads a
// cleared bit as z = 0, where hardsigmoid rises.
FUSED_BN_ANY_DEVICE constexpr bool has_two_slopes(Activation activation) {
  return activation <= Activation::relu6;
}

// Whether forward with a residual saves a mask for backward. Otherwise backward reads the residual; without
// an activation it needs neither.
FUSED_BN_ANY_DEVICE constexpr bool needs_mask(Activation activation) {
  return activation != Activation::none && has_two_slopes(activation);
}

// Whether it is cheaper to keep the gradient with respect to z than to compute it twice.
FUSED_BN_ANY_DEVICE constexpr bool takes_an_exponential(Activation activation) {
  return activation >= Activation::elu;
}

// prelu's slope depends on the channel: He et al. 2015, "Delving deep into rectifiers", section 2.1. NaN
// takes the slope, as in PyTorch.
template <class V>
FUSED_BN_ANY_DEVICE V prelu(V z, V slope) {
  return z > V{} ? z : z * slope;
}
template <class V>
FUSED_BN_ANY_DEVICE V prelu_backward(V z, V grad, V slope) {
  return z > V{} ? grad : grad * slope;
}

// An activation and its parameter: leaky_relu's negative slope, elu's alpha, softplus' beta. A is the compute
// type.
template <class A>
struct Activated {
  Activation activation;
  A param;

  FUSED_BN_ANY_DEVICE Activated(Activation activation_, double param_)
      : activation(activation_), param(activation_ == Activation::none ? A{1} : static_cast<A>(param_)) {}
};

// Below, V is a scalar or a vector of A whose comparisons give a lane mask for ?:. Math provides the type A
// and exp, expm1, normal_cdf and log1p (for arguments from 0 to 1). Comparisons let NaN pass, as in PyTorch:
// !(z <= 0) rather than z > 0.

// 1 / (1 + exp(-z)) and 1 / (1 + exp(z)), without cancellation or overflow.
template <class Math, class V>
struct Logistic {
  V value, complement;

  FUSED_BN_ANY_DEVICE explicit Logistic(V z) {
    const V small = Math::exp(z <= V{} ? z : -z);
    const V larger = typename Math::A{1} / (small + typename Math::A{1});
    value = z <= V{} ? small * larger : larger;
    complement = z <= V{} ? larger : small * larger;
  }
};

// tanh(|z|) = -expm1(-2|z|) / (2 + expm1(-2|z|)): exact near 0, where it is about z.
template <class Math, class V>
FUSED_BN_ANY_DEVICE V hyperbolic_tangent(V z) {
  using A = typename Math::A;
  const V shrunk = Math::expm1(z <= V{} ? z * A{2} : z * A{-2});
  const V magnitude = -shrunk / (shrunk + A{2});
  return z <= V{} ? -magnitude : magnitude;
}

// log(1 + exp(z)).
template <class Math, class V>
FUSED_BN_ANY_DEVICE V log_one_plus_exp(V z) {
  return (z <= V{} ? V{} : z) + Math::log1p(Math::exp(z <= V{} ? z : -z));
}

// softplus is z where beta * z exceeds this, as in PyTorch.
constexpr double kSoftplusThreshold = 20;

// PyTorch's digits of Klambauer et al. 2017, "Self-normalizing neural networks".
struct Selu {
  static constexpr double scale = 1.0507009873554804934193349852946;
  static constexpr double scaled_alpha = scale * 1.6732632423543772848170429916717;
};

// mish is z * tanh(log(1 + exp(z))): Misra 2019, "Mish: a self regularized non-monotonic activation
// function". With e = exp(z) the hyperbolic tangent is e * (e + 2) / (e * (e + 2) + 2), and its derivative is
// 4 * e * (e + 1) / (e * (e + 2) + 2)^2. For positive z both are divided by e^2, so that nothing overflows.
template <class Math, class V>
struct Mish {
  V small, scale, numerator, denominator;

  FUSED_BN_ANY_DEVICE explicit Mish(V z) {
    using A = typename Math::A;
    small = Math::exp(z <= V{} ? z : -z);
    scale = z <= V{} ? V{} + A{1} : small;
    numerator = z <= V{} ? small * (small + A{2}) : small * A{2} + A{1};
    denominator = scale * scale * A{2} + numerator;
  }

  FUSED_BN_ANY_DEVICE V value(V z) const { return z * (numerator / denominator); }

  FUSED_BN_ANY_DEVICE V derivative(V z) const {
    using A = typename Math::A;
    const V inverse = A{1} / denominator;
    const V bend = small * scale * (small * A{4} + A{4}) * inverse * inverse;  // 0 where z is large
    return numerator * inverse + z * bend;
  }
};

// gelu's approximation is z * logistic(z * (first + second * z * z)): Hendrycks and Gimpel 2016, "Gaussian
// error linear units", with (1 + tanh(a)) / 2 = logistic(2 a).
template <class A>
struct GeluTanh {
  static constexpr double scale = 1.5957691216057308;  // 2 * sqrt(2 / pi)
  static constexpr A first = static_cast<A>(scale);
  static constexpr A second = static_cast<A>(scale * 0.044715);
  static constexpr A last = 64;  // beyond it the derivative is 0 or 1 in every type, but its terms overflow
};

template <class Math, class V>
FUSED_BN_ANY_DEVICE V activate_other(V z, const Activated<typename Math::A>& f) {
  using A = typename Math::A;
  switch (f.activation) {
    case Activation::relu6:
      return z <= V{} ? V{} : (z >= A{6} ? V{} + A{6} : z);
    case Activation::hardswish:
      return z <= A{-3} ? V{} : (z >= A{3} ? z : z * (z + A{3}) / A{6});
    case Activation::hardsigmoid:
      return z <= A{-3} ? V{} : (z >= A{3} ? V{} + A{1} : (z + A{3}) / A{6});
    case Activation::elu:
      return z <= V{} ? Math::expm1(z) * f.param : z;
    case Activation::silu:
      return z * Logistic<Math, V>(z).value;
    case Activation::gelu:
      return z * Math::normal_cdf(z);
    case Activation::gelu_tanh:
      return z * Logistic<Math, V>(z * (z * z * GeluTanh<A>::second + GeluTanh<A>::first)).value;
    case Activation::tanh:
      return hyperbolic_tangent<Math>(z);
    case Activation::sigmoid:
      return Logistic<Math, V>(z).value;
    case Activation::selu:
      return z <= V{} ? Math::expm1(z) * static_cast<A>(Selu::scaled_alpha) : z * static_cast<A>(Selu::scale);
    case Activation::softplus: {
      const V scaled = z * f.param;
      return scaled > A{kSoftplusThreshold} ? z : log_one_plus_exp<Math>(scaled) / f.param;
    }
    case Activation::mish:
      return Mish<Math, V>(z).value(z);
    default:
      return z;
  }
}

template <class Math, class V>
FUSED_BN_ANY_DEVICE V derivative_other(V z, const Activated<typename Math::A>& f) {
  using A = typename Math::A;
  const V one = V{} + A{1};
  switch (f.activation) {
    case Activation::relu6:
      return z <= V{} ? V{} : (z >= A{6} ? V{} : one);
    case Activation::prelu_by_slope:
      return z > V{} ? V{} : z;
    case Activation::hardswish:
      return z < A{-3} ? V{} : (z <= A{3} ? z / A{3} + static_cast<A>(0.5) : one);
    case Activation::hardsigmoid:  // 0 where z is NaN, as in PyTorch
      return z > A{-3} ? (z < A{3} ? one / A{6} : V{}) : V{};
    case Activation::elu:
      return z <= V{} ? Math::exp(z) * f.param : one;
    case Activation::silu: {
      const Logistic<Math, V> s(z);
      return s.value * (z * s.complement + A{1});
    }
    case Activation::gelu: {
      const V density = Math::exp(z * z * static_cast<A>(-0.5)) * static_cast<A>(0.3989422804014327);
      return Math::normal_cdf(z) + z * density;
    }
    case Activation::gelu_tanh: {
      constexpr A last = GeluTanh<A>::last;
      const V y = z <= -last ? V{} - last : (z >= last ? V{} + last : z);
      const Logistic<Math, V> s(y * (y * y * GeluTanh<A>::second + GeluTanh<A>::first));
      const V slope = y * y * (A{3} * GeluTanh<A>::second) + GeluTanh<A>::first;
      return s.value * (y * s.complement * slope + A{1});
    }
    case Activation::tanh: {
      const Logistic<Math, V> s(z * A{2});
      return s.value * s.complement * A{4};
    }
    case Activation::sigmoid: {
      const Logistic<Math, V> s(z);
      return s.value * s.complement;
    }
    case Activation::selu:
      return z <= V{} ? Math::exp(z) * static_cast<A>(Selu::scaled_alpha) : one * static_cast<A>(Selu::scale);
    case Activation::softplus: {
      const V scaled = z * f.param;
      return scaled > A{kSoftplusThreshold} ? one : Logistic<Math, V>(scaled).value;
    }
    case Activation::mish:
      return Mish<Math, V>(z).derivative(z);
    default:
      return one;
  }
}

template <ActivationKind kind, class Math, class V>
FUSED_BN_ANY_DEVICE V activate(V z, const Activated<typename Math::A>& f) {
  if constexpr (kind == ActivationKind::relu) {
    return z <= V{} ? V{} : z;
  } else if constexpr (kind == ActivationKind::leaky_relu) {
    return z <= V{} ? z * f.param : z;
  } else {
    return activate_other<Math>(z, f);
  }
}

// Returns the gradient with respect to z, given the gradient with respect to activate(z).
template <ActivationKind kind, class Math, class V>
FUSED_BN_ANY_DEVICE V activate_backward(V z, V grad, const Activated<typename Math::A>& f) {
  if constexpr (kind == ActivationKind::relu) {
    return z <= V{} ? V{} : grad;
  } else if constexpr (kind == ActivationKind::leaky_relu) {
    return z <= V{} ? grad * f.param : grad;
  } else {
    const V derivative = derivative_other<Math>(z, f);
    const bool cuts = !takes_an_exponential(f.activation);
    return cuts ? (derivative == V{} ? V{} : grad * derivative) : grad * derivative;
  }
}

// Whether the slope at z is 1: the bit of the mask where has_two_slopes(). activate_backward() gets z = 1 for
// a set bit and z = 0 for a cleared one.
template <ActivationKind kind, class Math, class V>
FUSED_BN_ANY_DEVICE auto passes(V z) {
  if constexpr (kind == ActivationKind::other) {
    return !(z <= V{} || z >= V{} + typename Math::A{6});  // relu6
  } else {
    return !(z <= V{});
  }
}

}  // namespace fused_bn
