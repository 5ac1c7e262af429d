// The operators: schemas and autograd. Kernels register themselves beside their device's code.
#include "batch_norm.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "counter.h"
#include "differentiable.h"
#include "recipe.h"
#include "written.h"

namespace fused_bn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

ForwardResult call_forward(const ForwardArguments& a) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fused_bn::batch_norm_forward", "")
                             .typed<ForwardOperator>();
  return op.call(a.input, a.residual, a.weight, a.bias, a.running_mean, a.running_var, a.num_batches_tracked,
                 a.training, a.momentum, a.eps, a.activation, a.activation_param, a.negative_slope,
                 a.save_for_backward);
}

bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
bool requires_grad(const OptionalTensor& tensor) { return tensor.has_value() && requires_grad(*tensor); }

// The tangent of forward mode; torch.func.jvp has its own levels, of which this is the innermost.
bool has_tangent(const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(/*level=*/0).defined(); }
bool has_tangent(const OptionalTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

template <class... Tensors>
bool any_requires_grad(const Tensors&... tensors) {
  return c10::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}
template <class... Tensors>
bool any_has_tangent(const Tensors&... tensors) {
  return (has_tangent(tensors) || ...);
}

// As F.batch_norm says it.
void check_not_differentiable(const OptionalTensor& buffer, const char* name) {
  TORCH_CHECK(!requires_grad(buffer),
              "The function 'native_batch_norm' is not differentiable with respect to "
              "argument '",
              name, "'. This input cannot have requires_grad True.");
}

OptionalTensor optional_from(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// What is no tensor of the arguments, in the two entries of an autograd node.
struct Options {
  bool training;
  bool residual;
  at::MemoryFormat format;  // of the input
  Activation activation;
  double activation_param;

  template <class Arguments>
  static void save(AutogradContext& context, const Arguments& a) {
    const auto activation = static_cast<int64_t>(activation_from_name(a.activation));
    const auto format = static_cast<int64_t>(a.input.suggest_memory_format());
    context.saved_data["options"] = activation * 32 + format * 4 + present(a.residual) * 2 + a.training;
    context.saved_data["activation_param"] = a.activation_param;
  }
  explicit Options(AutogradContext& context) {
    const int64_t options = context.saved_data["options"].toInt();
    training = options % 2 != 0;
    residual = options / 2 % 2 != 0;
    format = static_cast<at::MemoryFormat>(options / 4 % 8);
    activation = static_cast<Activation>(options / 32);
    activation_param = context.saved_data["activation_param"].toDouble();
  }

  // The saved input, a gradient of which reaches what was saved. The bits of a mask lie in the order of its
  // memory, which hooks on saved tensors may have changed.
  Tensor in_order_of(const Tensor& mask, const Tensor& input) const {
    const c10::AutoGradMode enable(true);
    return mask.defined() ? input.contiguous(format) : input;
  }
};

// Which gradients an autograd node wants, whose edges are counted without the absent tensors.
template <class... Present>
std::array<bool, sizeof...(Present)> wanted(AutogradContext& context, const Present&... present) {
  size_t edge = 0;
  return {(present && context.needs_input_grad(edge++))...};
}

}  // namespace

// The autograd nodes are named by their types, in profiles and error texts.

// Saved for backward: the input, the parameters and [3, C] statistics; not the running buffers, which later
// forwards change. The mask of the activation is computed anew from them. With a residual a bit an element is
// saved where that is enough, and else the residual itself, never a copy. Forward may have copied the bias,
// see copies_bias().
class BatchNorm : public torch::autograd::Function<BatchNorm> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& negative_slope, const ForwardArguments& arguments) {
    at::AutoDispatchBelowAutograd guard;
    auto [output, statistics, mask, bias_copy] = call_forward(arguments);
    const Activation activation = activation_from_name(arguments.activation);
    const bool takes_z = !has_two_slopes(activation),
               has_mask = writes_mask(residual, arguments.activation, true);
    const Tensor kept = takes_z || !present(bias) ? bias.value_or(Tensor())
                        : bias_copy.defined()     ? bias_copy
                        : bias->is_inference()
                            ? bias->clone()
                            : bias->variable_data();  // of no version: its dtype is asked for
    context->save_for_backward({input, takes_z ? residual.value_or(Tensor()) : Tensor(),
                                weight.value_or(Tensor()), kept, negative_slope.value_or(Tensor()),
                                statistics, has_mask ? mask : Tensor()});
    Options::save(*context, arguments);
    return output;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const Options options(*context);
    const Tensor input = options.in_order_of(saved[6], saved[0]);
    OutputMask wants =
        wanted(*context, true, options.residual, saved[2].defined(), saved[3].defined(), saved[4].defined());
    variable_list result(6);
    if (options.activation == Activation::none && wants[1]) {
      result[1] = grads[0];
      wants[1] = false;
    }
    if (std::find(wants.begin(), wants.end(), true) != wants.end()) {
      const auto found = call_backward(
          {grads[0], input, optional_from(saved[1]), optional_from(saved[2]), optional_from(saved[3]),
           optional_from(saved[4]), saved[5], optional_from(saved[6]), options.training,
           activation_name(options.activation), options.activation_param, wants});
      if (wants[0]) result[0] = std::get<0>(found);
      if (wants[1]) result[1] = std::get<1>(found);
      if (wants[2]) result[2] = std::get<2>(found);
      if (wants[3]) result[3] = std::get<3>(found);
      if (wants[4]) result[4] = std::get<4>(found);
    }
    return result;
  }
};

// Backward is differentiable too: its own gradient runs autograd over the same formulas in plain torch calls.
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
    Options::save(*context, arguments);
    const OutputMask& mask = arguments.output_mask;
    context->saved_data["output_mask"] = c10::List<bool>({mask[0], mask[1], mask[2], mask[3], mask[4]});
    if (!grad_slope.defined())
      grad_slope = at::empty({0}, input.options());  // a node has no undefined output
    return {grad_input, grad_residual, grad_weight, grad_bias, grad_slope};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const Options options(*context);
    const c10::List<bool> mask = context->saved_data["output_mask"].toBoolList();
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!mask[i]) grads[i] = Tensor();
    }
    const OptionalTensor residual = optional_from(saved[2]), weight = optional_from(saved[3]),
                         bias = optional_from(saved[4]), negative_slope = optional_from(saved[5]),
                         bits = optional_from(saved[7]);
    const Tensor input = options.in_order_of(saved[7], saved[1]);
    variable_list result = double_backward({saved[0],
                                            input,
                                            residual,
                                            weight,
                                            bias,
                                            negative_slope,
                                            saved[6],
                                            bits,
                                            options.training,
                                            activation_name(options.activation),
                                            options.activation_param,
                                            {}},
                                           grads);
    result.emplace_back();  // nothing flows to what is no tensor
    return result;
  }
};

namespace {

// As autograd says it, but before anything is written.
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

Tensor forward_output(const ForwardArguments& a) {
  return a.input.is_mkldnn() ? differentiable_forward(a) : std::get<0>(call_forward(a));
}
constexpr auto batch_norm = with_any_counter<forward_output>;

// Through a node, or in PyTorch's own operators; undefined where no derivative is asked for.
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
  WrittenBuffers{a};  // refuses in its own words, and first
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
  at::AutoDispatchBelowAutograd guard;
  return forward_output(a);
}
constexpr auto batch_norm_autograd = with_any_counter<forward_autograd>;

Tensor inference(const InferenceArguments& a) { return forward_output(a.as_forward()); }
Tensor inference_autograd(const InferenceArguments& a) {
  Tensor output = differentiable_output(a.as_forward());
  if (output.defined()) return output;
  at::AutoDispatchBelowAutograd guard;
  return call_inference(a);
}

BackwardResult batch_norm_backward_autograd(const BackwardArguments& a) {
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

ForwardResult batch_norm_forward_inplace(const ForwardArguments& a) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !any_has_tangent(a.input, a.residual, a.weight, a.bias, a.negative_slope),
      "fused_bn::batch_norm_forward has no forward-mode derivative; fused_bn::batch_norm has one");
  const WrittenBuffers buffers(a);
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(a);
  }();
  buffers.bump_versions();
  return result;
}

// Of an output of batch_norm; null where it is none, was written since, or its node saved nothing itself.
std::optional<c10::intrusive_ptr<Recipe>> recipe_of(const Tensor& output, const OptionalTensor& residual) {
  const auto grad_fn = output.grad_fn();
  auto* node = dynamic_cast<torch::autograd::CppNode<BatchNorm>*>(grad_fn.get());
  if (node == nullptr || output._version() != 0 || saved_tensors_are_hooked()) return std::nullopt;
  const variable_list saved = node->ctx_.get_saved_variables();
  const Options options(node->ctx_);
  TORCH_CHECK(options.residual == present(residual), "fused_bn: the output was computed ",
              options.residual ? "with" : "without", " a residual");
  return c10::make_intrusive<Recipe>(saved[0], residual, saved[2], saved[3], saved[4], saved[5],
                                     options.activation, options.activation_param);
}

// What the fake kernels ask, so that they refuse what the real ones do, in the same words.
void check_forward(const ForwardArguments& arguments) { check(arguments); }
void check_elementwise(const ElementwiseArguments& arguments) { check(arguments); }
void check_backward(const BackwardArguments& arguments) { check(arguments); }
c10::SymInt forward_mask_size(const Tensor& input, const OptionalTensor& residual,
                              std::string_view activation, bool save_mask) {
  return writes_mask(residual, activation, save_mask) ? mask_size(input) : c10::SymInt(0);
}

}  // namespace

Tensor call_inference(const InferenceArguments& a) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fused_bn::batch_norm_inference", "")
                             .typed<InferenceOperator>();
  return op.call(a.input, a.residual, a.weight, a.bias, a.running_mean, a.running_var, a.eps, a.activation,
                 a.activation_param, a.negative_slope);
}

BackwardResult call_backward(const BackwardArguments& a) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fused_bn::batch_norm_backward", "")
                             .typed<BackwardOperator>();
  return op.call(a.grad_output, a.input, a.residual, a.weight, a.bias, a.negative_slope, a.statistics, a.mask,
                 a.training, a.activation, a.activation_param, a.output_mask);
}

TORCH_LIBRARY(fused_bn, m) {
  m.set_python_module("fused_bn._fake");
  // The bits of a mask lie in the order of the input's memory, which no compiler may change in between. A
  // fixed order of strides is not enough: inductor of torch 2.14 takes for it what it made of the saved
  // input.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  const std::string tensors = "Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, ";
  const std::string written =
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, ";
  const std::string read = "Tensor? running_mean, Tensor? running_var, Tensor? num_batches_tracked, ";
  const std::string options =
      "bool training, float? momentum, float eps, str activation, float activation_param";
  const std::string known =
      "Tensor statistics, str activation, float activation_param, Tensor? negative_slope";
  const std::string backward =
      "(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor? negative_slope, Tensor statistics, Tensor? mask, bool training, str activation, "
      "float activation_param, bool[5] output_mask) -> ";
  const std::string slope = ", Tensor? negative_slope";
  const auto define = [&](const std::string& schema) { m.def(schema.c_str(), tags); };
  define("batch_norm(" + tensors + written + options + slope + "=None) -> Tensor");
  define("batch_norm_inference(" + tensors +
         "Tensor? running_mean, Tensor? running_var, float eps, str activation, float activation_param, "
         "Tensor? negative_slope=None) -> Tensor");
  define("batch_norm_forward(" + tensors + written + options + slope +
         ", bool save_for_backward) -> (Tensor output, Tensor statistics, Tensor mask, Tensor bias_copy)");
  define("batch_norm_elementwise(" + tensors + known + ", bool save_mask) -> (Tensor output, Tensor mask)");
  define("batch_norm_backward" + backward +
         "(Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias, "
         "Tensor grad_negative_slope)");
  define("check_forward(" + tensors + read + options + slope + ") -> ()");
  define("check_elementwise(" + tensors + known + ") -> ()");
  define("check_backward" + backward + "()");
  define("copies_bias(Tensor? residual, Tensor? bias, str activation, bool save_for_backward) -> bool");
  define("mask_size(Tensor input, Tensor? residual, str activation, bool save_mask) -> SymInt");
  m.class_<Recipe>("Recipe").def("keep", &Recipe::keep).def("compute", &Recipe::compute);
  m.def("recipe", recipe_of);
}

TORCH_LIBRARY_IMPL(fused_bn, CompositeExplicitAutograd, m) {
  m.impl("batch_norm", OneByOne<ForwardSignature<Tensor>, batch_norm>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, inference>::call);
}

TORCH_LIBRARY_IMPL(fused_bn, CompositeImplicitAutograd, m) {
  m.impl("check_forward", OneByOne<ForwardSignature<void>, check_forward>::call);
  m.impl("check_elementwise", OneByOne<ElementwiseSignature<void>, check_elementwise>::call);
  m.impl("check_backward", OneByOne<BackwardSignature<void>, check_backward>::call);
  m.impl("copies_bias", copies_bias);
  m.impl("mask_size", forward_mask_size);
}

TORCH_LIBRARY_IMPL(fused_bn, Autograd, m) {
  m.impl("batch_norm", OneByOne<ForwardSignature<Tensor>, batch_norm_autograd>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, inference_autograd>::call);
  m.impl("batch_norm_backward", OneByOne<BackwardOperator, batch_norm_backward_autograd>::call);
}

TORCH_LIBRARY_IMPL(fused_bn, ADInplaceOrView, m) {
  m.impl("batch_norm_forward", OneByOne<ForwardOperator, batch_norm_forward_inplace>::call);
}

}  // namespace fused_bn
