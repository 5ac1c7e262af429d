#include "autograd/plain_activations.h"

#include <ATen/ATen.h>

namespace fused_bn {

using at::Tensor;

Tensor plain_activation(Activation activation, double param, const Tensor& negative_slope, const Tensor& z) {
  switch (activation) {
    case Activation::none:
      return z;
    case Activation::relu:
      return at::relu(z);
    case Activation::leaky_relu:
      return at::leaky_relu(z, param);
    case Activation::relu6:
      return at::hardtanh(z, 0, 6);
    case Activation::prelu:
      return at::prelu(z, negative_slope.to(z.scalar_type()));
    case Activation::hardswish:
      return at::hardswish(z);
    case Activation::hardsigmoid:
      return at::hardtanh(z + 3, 0, 6) / 6;  // at::hardsigmoid has no second derivative
    case Activation::elu:
      return at::elu(z, param);
    case Activation::silu:
      return at::silu(z);
    case Activation::gelu:
      return at::gelu(z);
    case Activation::gelu_tanh:
      return at::gelu(z, "tanh");
    case Activation::tanh:
      return at::tanh(z);
    case Activation::sigmoid:
      return at::sigmoid(z);
    case Activation::selu:
      return at::selu(z);
    case Activation::softplus:
      return at::softplus(z, param, kSoftplusThreshold);
    case Activation::mish:
      return at::mish(z);
    case Activation::prelu_by_slope:
      break;
  }
  TORCH_CHECK(false, "fused_bn: no activation has the number ", static_cast<int>(activation));
}

Tensor plain_derivative(Activation activation, double param, const Tensor& z) {
  const Tensor zero = at::zeros({}, z.options()), one = at::ones({}, z.options());
  switch (activation) {
    case Activation::hardswish:
      return at::where(z < -3, zero, at::where(z <= 3, z / 3 + 0.5, one));
    case Activation::hardsigmoid:
      return at::where((z > -3) & (z < 3), one / 6, zero);
    case Activation::elu:
      // Clamped, because where() gives the branch not taken a gradient of 0 * exp(z).
      return at::where(z <= 0, param * at::exp(at::clamp_max(z, 0)), one);
    case Activation::silu: {
      const Tensor s = at::sigmoid(z);
      return s * (1 + z * at::sigmoid(-z));
    }
    case Activation::gelu: {
      constexpr double sqrt_half = 0.7071067811865476, sqrt_half_pi = 0.3989422804014327;
      return at::erfc(-z * sqrt_half) * 0.5 + z * at::exp(z.square() * -0.5) * sqrt_half_pi;
    }
    case Activation::gelu_tanh: {
      const Tensor y = at::clamp(z, -GeluTanh<double>::last, GeluTanh<double>::last);
      const Tensor inner = y * (GeluTanh<double>::first + GeluTanh<double>::second * y.square());
      const Tensor slope = GeluTanh<double>::first + 3 * GeluTanh<double>::second * y.square();
      return at::sigmoid(inner) * (1 + y * at::sigmoid(-inner) * slope);
    }
    case Activation::tanh:
      return 4 * at::sigmoid(2 * z) * at::sigmoid(-2 * z);
    case Activation::sigmoid:
      return at::sigmoid(z) * at::sigmoid(-z);
    case Activation::selu:
      return at::where(z <= 0, Selu::scaled_alpha * at::exp(at::clamp_max(z, 0)), Selu::scale * one);
    case Activation::softplus:
      return at::where(param * z > kSoftplusThreshold, one, at::sigmoid(param * z));
    case Activation::mish: {
      const Tensor s = at::sigmoid(z), c = at::sigmoid(-z), inverse = 1 / (1 + c.square());
      return s * ((1 + c) * inverse + z * (2 * c * inverse).square());
    }
    default:
      TORCH_CHECK(false, "fused_bn: the derivative of activation ", static_cast<int>(activation),
                  " is one of two numbers");
  }
}

}  // namespace fused_bn
