#include "autograd/batch_norm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "autograd/counter.h"
#include "autograd/derivatives.h"
#include "autograd/differentiable.h"
#include "autograd/mutated_buffers.h"
#include "autograd/saved.h"
#include "layout.h"
#include "ops.h"

namespace fused_bn {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// Raises what F.batch_norm raises if the buffer requires a gradient.
void check_not_differentiable(const OptionalTensor& buffer, const char* name) {
  TORCH_CHECK(!requires_grad(buffer),
              "The function 'native_batch_norm' is not differentiable with respect to "
              "argument '",
              name, "'. This input cannot have requires_grad True.");
}

// Raises what autograd would raise for an inference tensor. Autograd would raise it after the buffers are
// written.
void check_can_be_saved(const Tensor& tensor) {
  TORCH_CHECK(
      !tensor.is_inference(),
      "Inference tensors cannot be saved for backward. Please do not use Tensors created in inference "
      "mode in computation tracked by autograd. To work around this, you can make a clone to get a "
      "normal tensor and use it in autograd, or use `torch.no_grad()` instead of "
      "`torch.inference_mode()`.");
}
void check_can_be_saved(const OptionalTensor& tensor) {
  if (present(tensor)) check_can_be_saved(*tensor);
}

// Returns what the node saves for the bias: the bias itself if `value_is_read`, and otherwise forward's copy
// if there is one. Without a copy, backward reads only the dtype. The result is then an alias with a version
// counter of its own, so that the bias may be written before backward.
Tensor bias_to_save(const OptionalTensor& bias, const Tensor& copy, bool value_is_read) {
  if (value_is_read || !present(bias)) return bias.value_or(Tensor());
  if (copy.defined()) return copy;
  return bias->is_inference() ? bias->clone() : bias->variable_data();
}

// Returns which tensors need a gradient. An absent tensor has no edge, so `edge` does not count it.
template <class... Present>
std::array<bool, sizeof...(Present)> wanted(AutogradContext& context, const Present&... present) {
  size_t edge = 0;
  return {(present && context.needs_input_grad(edge++))...};
}

}  // namespace

Tensor BatchNorm::forward(AutogradContext* context, const Tensor& input, const OptionalTensor& residual,
                          const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& negative_slope, const ForwardArguments& arguments) {
  auto [output, statistics, mask, bias_copy] = forward_and_bump_versions(arguments);
  const bool reads_z = !has_two_slopes(activation_from_name(arguments.activation));
  const bool has_mask = writes_mask(residual, arguments.activation, true);
  context->save_for_backward({input, reads_z ? residual.value_or(Tensor()) : Tensor(),
                              weight.value_or(Tensor()), bias_to_save(bias, bias_copy, reads_z),
                              negative_slope.value_or(Tensor()), statistics, has_mask ? mask : Tensor()});
  SavedOptions::save(*context, arguments);
  return output;
}

variable_list BatchNorm::backward(AutogradContext* context, variable_list grads) {
  const variable_list saved = context->get_saved_variables();
  const SavedOptions options(*context);
  const auto [activation, format, has_residual, training, _] = options.packed;
  const Tensor input = options.in_order_of(saved[kMask], saved[kInput]);
  OutputMask wants = wanted(*context, true, has_residual, saved[kWeight].defined(), saved[kBias].defined(),
                            saved[kNegativeSlope].defined());
  variable_list result(6);
  if (activation == Activation::none && wants[1]) {
    result[1] = grads[0];
    wants[1] = false;
  }
  if (std::find(wants.begin(), wants.end(), true) != wants.end()) {
    const auto found =
        call_backward({grads[0], input, optional_from(saved[kResidual]), optional_from(saved[kWeight]),
                       optional_from(saved[kBias]), optional_from(saved[kNegativeSlope]), saved[kStatistics],
                       optional_from(saved[kMask]), training, activation_name(activation),
                       options.activation_param, wants});
    if (wants[0]) result[0] = std::get<0>(found);
    if (wants[1]) result[1] = std::get<1>(found);
    if (wants[2]) result[2] = std::get<2>(found);
    if (wants[3]) result[3] = std::get<3>(found);
    if (wants[4]) result[4] = std::get<4>(found);
  }
  return result;
}

namespace {

// Returns the output through a BatchNorm node. Function transforms, forward-mode derivatives and mkldnn
// inputs use PyTorch's own operators instead. Returns an undefined tensor if no derivative is needed.
Tensor differentiable_output(const ForwardArguments& a) {
  if (c10::GradMode::is_enabled()) {
    check_not_differentiable(a.running_mean, "running_mean");
    check_not_differentiable(a.running_var, "running_var");
  }
  if (within_function_transform() ||
      any_has_tangent(a.input, a.residual, a.weight, a.bias, a.negative_slope) || a.input.is_mkldnn()) {
    return differentiable_forward(a);
  }
  if (!any_requires_grad(a.input, a.residual, a.weight, a.bias, a.negative_slope)) return {};
  check_buffers_can_be_written(a);  // before the checks below, so that its error comes first
  check_can_be_saved(a.input);
  check_can_be_saved(a.weight);
  check_can_be_saved(a.negative_slope);
  if (!has_two_slopes(activation_from_name(a.activation))) {
    check_can_be_saved(a.residual);
    check_can_be_saved(a.bias);
  }
  ForwardArguments saving = a;
  saving.save_for_backward = true;
  return BatchNorm::apply(a.input, a.residual, a.weight, a.bias, a.negative_slope, saving);
}

Tensor forward_autograd(const ForwardArguments& a) {
  Tensor output = differentiable_output(a);
  if (output.defined()) return output;
  check_buffers_can_be_written(a);
  return std::get<0>(forward_and_bump_versions(a));
}
constexpr auto batch_norm_autograd = with_any_counter<forward_autograd>;

Tensor inference_autograd(const InferenceArguments& a) {
  Tensor output = differentiable_output(a.as_forward());
  if (output.defined()) return output;
  at::AutoDispatchBelowAutograd guard;
  return call_inference(a);
}

Tensor forward_without_autograd(const ForwardArguments& a) {
  return a.input.is_mkldnn() ? differentiable_forward(a) : std::get<0>(call_forward(a));
}
constexpr auto batch_norm = with_any_counter<forward_without_autograd>;

Tensor inference(const InferenceArguments& a) { return forward_without_autograd(a.as_forward()); }

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, Autograd, m) {
  m.impl("batch_norm", OneByOne<UserOperator, batch_norm_autograd>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, inference_autograd>::call);
}

TORCH_LIBRARY_IMPL(fused_bn, CompositeExplicitAutograd, m) {
  m.impl("batch_norm", OneByOne<UserOperator, batch_norm>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, inference>::call);
}

}  // namespace fused_bn
