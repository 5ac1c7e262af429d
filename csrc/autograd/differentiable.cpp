#include "autograd/differentiable.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "activation_names.h"
#include "autograd/plain_activations.h"
#include "checks.h"
#include "layout.h"
#include "ops.h"

namespace fused_bn {
namespace {

using torch::autograd::variable_list;

// A per-channel vector, shaped to broadcast over (N, C, *).
Tensor over_channels(const Tensor& vector, const Tensor& input) {
  std::vector<c10::SymInt> shape(input.dim(), 1);
  shape[1] = vector.sym_numel();
  return vector.view_symint(shape);
}

// The value of `tensor` less itself: zero, with the derivative of `tensor`.
Tensor derivative_alone(const Tensor& tensor) { return tensor - tensor.detach(); }

struct Normalised {
  Tensor xhat, invstd;
};

// From the saved statistics, which are closer to the truth than what float32 calls would compute again: a
// mean of 1e5 in one float is off by 4e-3 of a deviation of 1. Of the batch's mean and variance only the
// derivatives are added.
Normalised normalise(const BackwardArguments& a, const Tensor& x, at::IntArrayRef dims) {
  const Tensor saved = over_channels(a.statistics[2], x);
  const Tensor centred = x - over_channels(a.statistics[0], x) - over_channels(a.statistics[1], x);
  if (!a.training) return {centred * saved, saved};
  const Tensor moving = centred - derivative_alone(centred.mean(dims, /*keepdim=*/true));
  const Tensor ratio = (moving * saved).square().mean(dims, /*keepdim=*/true);
  const Tensor invstd = saved * (1 + derivative_alone(ratio)).rsqrt();
  return {moving * invstd, invstd};
}

// Whether the slope at an element is 1 rather than the activation's other one: as the kernels decide it, bit
// for bit, by the gradient that they let through.
Tensor passes(const BackwardArguments& a, Activation activation) {
  const at::NoGradGuard no_grad;
  const auto constant = [](const OptionalTensor& tensor) {
    return present(tensor) ? OptionalTensor(tensor->detach()) : std::nullopt;
  };
  const Tensor input = a.input.detach();
  // Of leaky_relu as well: a slope may round to 1, or be 1.
  const auto name = activation_name(activation == Activation::relu6 ? activation : Activation::relu);
  const auto found = call_backward({at::ones_like(input), input, std::nullopt, constant(a.weight),
                                    constant(a.bias), kAbsent, a.statistics.detach(), a.mask, a.training,
                                    name, 0.0, OutputMask{false, true, false, false, false}});
  return std::get<1>(found) != 0;
}

// The gradient behind the activation, from that of the output. z: what the activation was given, as a
// function.
template <class Z>
Tensor behind_activation(const BackwardArguments& a, const Tensor& grad, Z z) {
  const Activation activation = activation_from_name(a.activation);
  if (activation == Activation::none) return grad;
  if (has_two_slopes(activation)) {
    const bool leaks = activation == Activation::leaky_relu;
    return at::where(passes(a, activation), grad,
                     leaks ? grad * a.activation_param : at::zeros({}, grad.options()));
  }
  if (activation == Activation::prelu) {
    const Tensor slope = over_channels(a.negative_slope->to(grad.scalar_type()), grad);
    return at::where(z() > 0, grad, grad * slope);
  }
  return grad * plain_derivative(activation, a.activation_param, z());
}

// grad_input, grad_residual, grad_weight, grad_bias and grad_negative_slope as functions of the tensors in
// the arguments, in the statistics' type; the last is undefined where there is no slope. Ioffe and Szegedy
// 2015, section 3.
variable_list formulas_of_backward(const BackwardArguments& a) {
  const auto type = statistics_type(a.input);
  const Tensor x = a.input.to(type);
  std::vector<int64_t> dims{0};
  for (int64_t d = 2; d < x.dim(); ++d) dims.push_back(d);

  const auto [xhat, invstd] = normalise(a, x, dims);
  const Tensor weight = present(a.weight) ? over_channels(a.weight->to(type), x) : at::ones_like(invstd);

  const auto z = [&, xhat = xhat] {
    Tensor sum = xhat * weight;
    if (present(a.bias)) sum = sum + over_channels(a.bias->to(type), x);
    return present(a.residual) ? sum + a.residual->to(type) : sum;
  };
  const Tensor grad_output = a.grad_output.to(type), g = behind_activation(a, grad_output, z);
  Tensor grad_slope;
  if (present(a.negative_slope)) {
    const Tensor own = z();
    grad_slope = at::where(own > 0, at::zeros({}, own.options()), grad_output * own).sum(dims);
  }
  Tensor grad_input = g;
  if (a.training) {
    grad_input = g - g.mean(dims, true) - xhat * (g * xhat).mean(dims, true);
  }
  return {grad_input * weight * invstd, g, (g * xhat).sum(dims), g.sum(dims), grad_slope};
}

// The same values behind a node of their own: gradients asked for them stop here, rather than run on through
// what grad_output or the weight was computed from, which may be the input itself.
Tensor own_node(const Tensor& tensor) { return tensor.defined() ? tensor.view_as(tensor) : tensor; }

}  // namespace

Tensor differentiable_forward(const ForwardArguments& a) {
  if (!a.input.is_mkldnn()) {
    check(a);
  } else if (a.training) {  // check() reads strides, which MKLDNN tensors lack
    const Activation activation = activation_from_name(a.activation);
    TORCH_CHECK(!present(a.residual) && (activation == Activation::none || activation == Activation::relu),
                "fused_bn: in training MKLDNN tensors take no residual and no activation but relu, but got ",
                a.activation);
  }
  const bool counts = a.training && present(a.num_batches_tracked);
  double momentum = a.momentum.value_or(0.0);
  if (!a.momentum.has_value() && counts) {
    momentum = 1.0 / static_cast<double>(a.num_batches_tracked->item<int64_t>() + 1);
  }
  // Within two transforms torch refuses to write the counter, though not the statistics: here, before either.
  if (counts) Tensor(*a.num_batches_tracked).add_(0);
  Tensor z = at::batch_norm(a.input, a.weight, a.bias, a.running_mean, a.running_var, a.training, momentum,
                            a.eps, at::globalContext().userEnabledCuDNN());
  if (counts) Tensor(*a.num_batches_tracked).add_(1);  // last: what is refused above is not counted
  if (present(a.residual)) z = z + *a.residual;
  return plain_activation(activation_from_name(a.activation), a.activation_param,
                          a.negative_slope.value_or(Tensor()), z);
}

BackwardResult differentiable_backward(const BackwardArguments& a) {
  check(a);
  const variable_list found = formulas_of_backward(a);
  const auto finished = [&](size_t i, const Tensor& like) {
    return a.output_mask[i] ? found[i].to(like.scalar_type()) : at::empty({0}, like.options());
  };
  return {finished(0, a.input), finished(1, a.input), finished(2, a.weight.value_or(a.statistics)),
          finished(3, a.bias.value_or(a.statistics)),
          present(a.negative_slope) ? finished(4, *a.negative_slope) : Tensor()};
}

variable_list double_backward(const BackwardArguments& a, const variable_list& grads) {
  const bool differentiable_again = c10::GradMode::is_enabled();
  c10::AutoGradMode enable(true);

  const variable_list candidates{own_node(a.grad_output),
                                 own_node(a.input),
                                 own_node(a.residual.value_or(Tensor())),
                                 own_node(a.weight.value_or(Tensor())),
                                 own_node(a.bias.value_or(Tensor())),
                                 own_node(a.negative_slope.value_or(Tensor()))};
  const auto own = [&](size_t i) {
    return candidates[i].defined() ? OptionalTensor(candidates[i]) : std::nullopt;
  };
  const OptionalTensor residual = own(2), weight = own(3), bias = own(4), negative_slope = own(5);
  const variable_list outputs = formulas_of_backward({candidates[0], candidates[1], residual, weight, bias,
                                                      negative_slope, a.statistics, a.mask, a.training,
                                                      a.activation, a.activation_param, a.output_mask});
  variable_list roots, root_grads;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!grads[i].defined() || !outputs[i].defined() || !outputs[i].requires_grad()) continue;
    roots.push_back(outputs[i]);
    root_grads.push_back(grads[i].to(outputs[i].scalar_type()));
  }
  variable_list inputs;
  for (const Tensor& candidate : candidates) {
    if (candidate.defined() && candidate.requires_grad()) inputs.push_back(candidate);
  }
  variable_list result(candidates.size());
  if (roots.empty() || inputs.empty()) return result;
  const variable_list found =
      torch::autograd::grad(roots, inputs, root_grads, /*retain_graph=*/std::nullopt,
                            /*create_graph=*/differentiable_again, /*allow_unused=*/true);
  for (size_t i = 0, next = 0; i < candidates.size(); ++i) {
    if (candidates[i].defined() && candidates[i].requires_grad()) result[i] = found[next++];
  }
  return result;
}

}  // namespace fused_bn
