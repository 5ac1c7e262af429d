#include "differentiable.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

namespace fused_bn {
namespace {

using at::Tensor;
using torch::autograd::variable_list;

// A per-channel vector, shaped to broadcast over (N, C, *).
Tensor over_channels(const Tensor& vector, const Tensor& input) {
  std::vector<int64_t> shape(input.dim(), 1);
  shape[1] = vector.numel();
  return vector.view(shape);
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

// grad_input, grad_weight and grad_bias as functions of grad_output, input and weight, in the statistics'
// type. Ioffe and Szegedy 2015, section 3.
variable_list formulas_of_backward(const BackwardArguments& a) {
  const auto type = statistics_type(a.input);
  const Tensor x = a.input.to(type);
  std::vector<int64_t> dims{0};
  for (int64_t d = 2; d < x.dim(); ++d) dims.push_back(d);

  const auto [xhat, invstd] = normalise(a, x, dims);
  const Tensor weight = present(a.weight) ? over_channels(a.weight->to(type), x) : at::ones_like(invstd);

  Tensor g = a.grad_output.to(type);
  if (activation_from_name(a.activation) == Activation::relu) {
    Tensor z = (xhat * weight).detach();
    if (present(a.bias)) z = z + over_channels(a.bias->detach().to(type), x);
    g = at::where(z <= 0, at::zeros({}, g.options()), g);
  }
  Tensor grad_input = g;
  if (a.training) {
    grad_input = g - g.mean(dims, true) - xhat * (g * xhat).mean(dims, true);
  }
  return {grad_input * weight * invstd, (g * xhat).sum(dims), g.sum(dims)};
}

// The same values behind a node of their own: gradients asked for them stop here, rather than run on through
// what grad_output or the weight was computed from, which may be the input itself.
Tensor own_node(const Tensor& tensor) { return tensor.defined() ? tensor.view_as(tensor) : tensor; }

}  // namespace

Tensor differentiable_forward(const ForwardArguments& a) {
  check(a);
  const bool counts = a.training && present(a.num_batches_tracked);
  double momentum = a.momentum.value_or(0.0);
  if (!a.momentum.has_value() && counts) {
    momentum = 1.0 / static_cast<double>(a.num_batches_tracked->item<int64_t>() + 1);
  }
  Tensor z = at::batch_norm(a.input, a.weight, a.bias, a.running_mean, a.running_var, a.training, momentum,
                            a.eps, at::globalContext().userEnabledCuDNN());
  if (counts) Tensor(*a.num_batches_tracked).add_(1);  // last: what is refused above is not counted
  return activation_from_name(a.activation) == Activation::relu ? at::relu(z) : z;
}

std::tuple<Tensor, Tensor, Tensor> differentiable_backward(const BackwardArguments& a,
                                                           std::array<bool, 3> mask) {
  check(a);
  const variable_list found = formulas_of_backward(a);
  const auto finished = [&](size_t i, const Tensor& like) {
    return mask[i] ? found[i].to(like.scalar_type()) : at::empty({0}, like.options());
  };
  return {finished(0, a.input), finished(1, a.weight.value_or(a.statistics)),
          finished(2, a.bias.value_or(a.statistics))};
}

variable_list double_backward(const BackwardArguments& arguments, const variable_list& grads) {
  const bool differentiable_again = c10::GradMode::is_enabled();
  c10::AutoGradMode enable(true);

  const variable_list candidates{own_node(arguments.grad_output), own_node(arguments.input),
                                 own_node(arguments.weight.value_or(Tensor()))};
  const OptionalTensor weight = present(arguments.weight) ? OptionalTensor(candidates[2]) : std::nullopt;
  const variable_list outputs =
      formulas_of_backward({candidates[0], candidates[1], weight, arguments.bias, arguments.statistics,
                            arguments.training, arguments.activation});
  variable_list roots, root_grads;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!grads[i].defined() || !outputs[i].requires_grad()) continue;
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
