// The operators: schemas and autograd. Kernels register themselves beside their device's code.
#include "batch_norm.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "differentiable.h"

namespace fused_bn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Mask = std::array<bool, 3>;

using ForwardSignature = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                                    const OptionalTensor&, const OptionalTensor&,
                                                    const OptionalTensor&, const OptionalTensor&, bool,
                                                    std::optional<double>, double, std::string_view);
using BackwardSignature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                             const OptionalTensor&, const OptionalTensor&,
                                                             const Tensor&, bool, std::string_view, Mask);

std::tuple<Tensor, Tensor> call_forward(const ForwardArguments& a) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fused_bn::batch_norm_forward", "")
                             .typed<ForwardSignature>();
  return op.call(a.input, a.weight, a.bias, a.running_mean, a.running_var, a.num_batches_tracked, a.training,
                 a.momentum, a.eps, a.activation);
}

std::tuple<Tensor, Tensor, Tensor> call_backward(const BackwardArguments& a, Mask mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fused_bn::batch_norm_backward", "")
                             .typed<BackwardSignature>();
  return op.call(a.grad_output, a.input, a.weight, a.bias, a.statistics, a.training, a.activation, mask);
}

bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
bool requires_grad(const OptionalTensor& tensor) { return tensor.has_value() && requires_grad(*tensor); }

// The tangent of forward mode; torch.func.jvp has its own levels, of which this is the innermost.
bool has_tangent(const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(/*level=*/0).defined(); }
bool has_tangent(const OptionalTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

// As F.batch_norm says it.
void check_not_differentiable(const OptionalTensor& buffer, const char* name) {
  TORCH_CHECK(!requires_grad(buffer),
              "The function 'native_batch_norm' is not differentiable with respect to "
              "argument '",
              name, "'. This input cannot have requires_grad True.");
}

Tensor tensor_or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

OptionalTensor optional_from(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// Saved for backward: the input, the parameters and [3, C] statistics; not the running buffers, which later
// forwards change. The mask of the activation is recomputed from them.
class ForwardFunction : public torch::autograd::Function<ForwardFunction> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& input, const OptionalTensor& weight,
                        const OptionalTensor& bias, const ForwardArguments& arguments) {
    at::AutoDispatchBelowAutograd guard;
    auto [output, statistics] = call_forward(arguments);
    context->save_for_backward({input, tensor_or_undefined(weight), tensor_or_undefined(bias), statistics});
    context->saved_data["training"] = arguments.training;
    context->saved_data["activation"] = static_cast<int64_t>(activation_from_name(arguments.activation));
    return output;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const auto activation =
        activation_name(static_cast<Activation>(context->saved_data["activation"].toInt()));
    // Edges are counted without the absent parameters.
    const bool weight = saved[1].defined(), bias = saved[2].defined();
    const Mask mask = {context->needs_input_grad(0), weight && context->needs_input_grad(1),
                       bias && context->needs_input_grad(1 + weight)};
    auto [grad_input, grad_weight, grad_bias] =
        call_backward({grads[0], saved[0], optional_from(saved[1]), optional_from(saved[2]), saved[3],
                       context->saved_data["training"].toBool(), activation},
                      mask);
    return {mask[0] ? grad_input : Tensor(), mask[1] ? grad_weight : Tensor(), mask[2] ? grad_bias : Tensor(),
            Tensor()};
  }
};

// Backward is differentiable too: its own gradient runs autograd over the same formulas in plain torch calls.
class BackwardFunction : public torch::autograd::Function<BackwardFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& grad_output, const Tensor& input,
                               const OptionalTensor& weight, const OptionalTensor& bias,
                               const BackwardArguments& arguments, Mask mask) {
    at::AutoDispatchBelowAutograd guard;
    auto [grad_input, grad_weight, grad_bias] = call_backward(arguments, mask);
    context->save_for_backward(
        {grad_output, input, tensor_or_undefined(weight), tensor_or_undefined(bias), arguments.statistics});
    context->saved_data["training"] = arguments.training;
    context->saved_data["activation"] = static_cast<int64_t>(activation_from_name(arguments.activation));
    context->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2]});
    return {grad_input, grad_weight, grad_bias};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const auto activation =
        activation_name(static_cast<Activation>(context->saved_data["activation"].toInt()));
    const c10::List<bool> mask = context->saved_data["mask"].toBoolList();
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!mask[i]) grads[i] = Tensor();
    }
    const OptionalTensor weight = optional_from(saved[2]), bias = optional_from(saved[3]);
    variable_list result = double_backward(
        {saved[0], saved[1], weight, bias, saved[4], context->saved_data["training"].toBool(), activation},
        grads);
    result.resize(6);  // nothing flows to the bias (it only moves the mask) nor to what is no tensor
    return result;
  }
};

Tensor batch_norm(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& running_mean, const OptionalTensor& running_var,
                  const OptionalTensor& num_batches_tracked, bool training, std::optional<double> momentum,
                  double eps, std::string_view activation) {
  return std::get<0>(call_forward({input, weight, bias, running_mean, running_var, num_batches_tracked,
                                   training, momentum, eps, activation}));
}

Tensor batch_norm_autograd(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& running_mean, const OptionalTensor& running_var,
                           const OptionalTensor& num_batches_tracked, bool training,
                           std::optional<double> momentum, double eps, std::string_view activation) {
  const ForwardArguments arguments{input,    weight,   bias, running_mean, running_var, num_batches_tracked,
                                   training, momentum, eps,  activation};
  if (c10::GradMode::is_enabled()) {
    check_not_differentiable(running_mean, "running_mean");
    check_not_differentiable(running_var, "running_var");
  }
  if (has_tangent(input) || has_tangent(weight) || has_tangent(bias))
    return differentiable_forward(arguments);
  if (c10::GradMode::is_enabled() && (requires_grad(input) || requires_grad(weight) || requires_grad(bias))) {
    return ForwardFunction::apply(input, weight, bias, arguments);
  }
  at::AutoDispatchBelowAutograd guard;
  return std::get<0>(call_forward(arguments));
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward_autograd(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const Tensor& statistics, bool training, std::string_view activation, Mask mask) {
  const BackwardArguments arguments{grad_output, input, weight, bias, statistics, training, activation};
  if (has_tangent(grad_output) || has_tangent(input) || has_tangent(weight)) {
    return differentiable_backward(arguments, mask);
  }
  if (c10::GradMode::is_enabled() &&
      (requires_grad(grad_output) || requires_grad(input) || requires_grad(weight))) {
    const variable_list grads = BackwardFunction::apply(grad_output, input, weight, bias, arguments, mask);
    return {grads[0], grads[1], grads[2]};
  }
  at::AutoDispatchBelowAutograd guard;
  return call_backward(arguments, mask);
}

// Counts as an in-place change of the buffers, so that autograd sees one that somebody else saved.
std::tuple<Tensor, Tensor> batch_norm_forward_inplace(const Tensor& input, const OptionalTensor& weight,
                                                      const OptionalTensor& bias,
                                                      const OptionalTensor& running_mean,
                                                      const OptionalTensor& running_var,
                                                      const OptionalTensor& num_batches_tracked,
                                                      bool training, std::optional<double> momentum,
                                                      double eps, std::string_view activation) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(input) && !has_tangent(weight) && !has_tangent(bias),
      "fused_bn::batch_norm_forward has no forward-mode derivative; fused_bn::batch_norm has one");
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward({input, weight, bias, running_mean, running_var, num_batches_tracked, training,
                         momentum, eps, activation});
  }();
  if (training) {
    for (const OptionalTensor* buffer : {&running_mean, &running_var, &num_batches_tracked}) {
      if (present(*buffer)) torch::autograd::impl::bump_version(**buffer);
    }
  }
  return result;
}

// What the fake kernels ask, so that they refuse what the real ones do, in the same words.
void check_forward(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var,
                   const OptionalTensor& num_batches_tracked, bool training, std::optional<double> momentum,
                   double eps, std::string_view activation) {
  check({input, weight, bias, running_mean, running_var, num_batches_tracked, training, momentum, eps,
         activation});
}

void check_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                    const OptionalTensor& bias, const Tensor& statistics, bool training,
                    std::string_view activation) {
  check({grad_output, input, weight, bias, statistics, training, activation});
}

}  // namespace

TORCH_LIBRARY(fused_bn, m) {
  m.set_python_module("fused_bn._fake");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  const std::string forward_arguments =
      "(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, bool training, float? momentum, float eps, str activation)";
  m.def(("batch_norm" + forward_arguments + " -> Tensor").c_str(), tags);
  m.def(("batch_norm_forward" + forward_arguments + " -> (Tensor output, Tensor statistics)").c_str(), tags);
  m.def(
      "check_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
      "Tensor? num_batches_tracked, bool training, float? momentum, float eps, str activation) -> ()",
      tags);
  m.def(
      "check_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor statistics, "
      "bool training, str activation) -> ()",
      tags);
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor statistics, "
      "bool training, str activation, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
      tags);
}

TORCH_LIBRARY_IMPL(fused_bn, CompositeExplicitAutograd, m) { m.impl("batch_norm", batch_norm); }

TORCH_LIBRARY_IMPL(fused_bn, CompositeImplicitAutograd, m) {
  m.impl("check_forward", check_forward);
  m.impl("check_backward", check_backward);
}

TORCH_LIBRARY_IMPL(fused_bn, Autograd, m) {
  m.impl("batch_norm", batch_norm_autograd);
  m.impl("batch_norm_backward", batch_norm_backward_autograd);
}

TORCH_LIBRARY_IMPL(fused_bn, ADInplaceOrView, m) { m.impl("batch_norm_forward", batch_norm_forward_inplace); }

}  // namespace fused_bn
