// The autograd node of backward, for double backward: its gradient runs autograd over the same formulas in
// plain torch calls.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "autograd/derivatives.h"
#include "autograd/differentiable.h"
#include "autograd/saved.h"
#include "ops.h"

namespace fused_bn {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Profiles and error texts name the node by its type.
class BatchNormBackward : public torch::autograd::Function<BatchNormBackward> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& grad_output, const Tensor& input,
                               const OptionalTensor& residual, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& negative_slope,
                               const BackwardArguments& arguments) {
    at::AutoDispatchBelowAutograd guard;
    auto [grad_input, grad_residual, grad_weight, grad_bias, grad_slope] = call_backward(arguments);
    context->save_for_backward({grad_output, input, residual.value_or(Tensor()), weight.value_or(Tensor()),
                                bias.value_or(Tensor()), negative_slope.value_or(Tensor()),
                                arguments.statistics, arguments.mask.value_or(Tensor())});
    SavedOptions::save(*context, arguments);
    const OutputMask& mask = arguments.output_mask;
    context->saved_data["output_mask"] = c10::List<bool>({mask[0], mask[1], mask[2], mask[3], mask[4]});
    if (!grad_slope.defined())
      grad_slope = at::empty({0}, input.options());  // a node has no undefined output
    return {grad_input, grad_residual, grad_weight, grad_bias, grad_slope};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const SavedOptions options(*context);
    const c10::List<bool> output_mask = context->saved_data["output_mask"].toBoolList();
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!output_mask[i]) grads[i] = Tensor();
    }
    const OptionalTensor residual = optional_from(saved[2]), weight = optional_from(saved[3]),
                         bias = optional_from(saved[4]), negative_slope = optional_from(saved[5]),
                         mask = optional_from(saved[7]);
    const Tensor input = options.in_order_of(saved[7], saved[1]);
    const BackwardArguments arguments{
        {saved[0], input, residual, weight, bias, negative_slope, saved[6], mask},
        options.packed.training,
        activation_name(options.packed.activation),
        options.activation_param,
        {}};
    variable_list result = double_backward(arguments, grads);
    result.emplace_back();  // nothing flows to what is no tensor
    return result;
  }
};

namespace {

BackwardResult backward_autograd(const BackwardArguments& a) {
  if (any_has_tangent(a.grad_output, a.input, a.residual, a.weight, a.bias, a.negative_slope))
    return differentiable_backward(a);
  if (any_requires_grad(a.grad_output, a.input, a.residual, a.weight, a.bias, a.negative_slope)) {
    const variable_list grads =
        BatchNormBackward::apply(a.grad_output, a.input, a.residual, a.weight, a.bias, a.negative_slope, a);
    return {grads[0], grads[1], grads[2], grads[3], present(a.negative_slope) ? grads[4] : Tensor()};
  }
  at::AutoDispatchBelowAutograd guard;
  return call_backward(a);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, Autograd, m) {
  m.impl("batch_norm_backward", OneByOne<BackwardOperator, backward_autograd>::call);
}

}  // namespace fused_bn
