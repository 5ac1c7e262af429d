#include "double_backward.h"

#include <ATen/ATen.h>
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

// grad_input, grad_weight and grad_bias in plain torch calls, as functions of grad_output, input and weight.
// Ioffe and Szegedy 2015, section 3.
variable_list differentiable_backward(const BackwardArguments& a) {
  const auto type = statistics_type(a.input);
  const Tensor x = a.input.to(type);
  std::vector<int64_t> dims{0};
  for (int64_t d = 2; d < x.dim(); ++d) dims.push_back(d);

  Tensor mean = over_channels(a.statistics[0] + a.statistics[1], x);
  Tensor invstd = over_channels(a.statistics[2], x);
  if (a.training) {
    mean = x.mean(dims, /*keepdim=*/true);
    const Tensor variance = (x - mean).square().mean(dims, /*keepdim=*/true);
    // The saved value, with the variance's derivative: what is added is eps, and a constant.
    invstd = (variance + (invstd.square().reciprocal() - variance).detach()).rsqrt();
  }
  const Tensor xhat = (x - mean) * invstd;
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

variable_list double_backward(const BackwardArguments& arguments, const variable_list& grads) {
  const bool differentiable_again = c10::GradMode::is_enabled();
  c10::AutoGradMode enable(true);

  const variable_list candidates{own_node(arguments.grad_output), own_node(arguments.input),
                                 own_node(arguments.weight.value_or(Tensor()))};
  const OptionalTensor weight = present(arguments.weight) ? OptionalTensor(candidates[2]) : std::nullopt;
  const variable_list outputs =
      differentiable_backward({candidates[0], candidates[1], weight, arguments.bias, arguments.statistics,
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
