// The schemas of all operators. Kernels register themselves: autograd/ for autograd's keys, meta.cpp for
// shapes, operators.h for each device.
#include "ops.h"

#include <torch/library.h>

#include "autograd/recipe.h"
#include "checks.h"

namespace fused_bn {
namespace {

template <class Operator>
c10::TypedOperatorHandle<Operator> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Operator>();
}

}  // namespace

ForwardResult call_forward(const ForwardArguments& a) {
  static const auto op = find<ForwardOperator>("fused_bn::batch_norm_forward");
  return op.call(a.input, a.residual, a.weight, a.bias, a.running_mean, a.running_var, a.num_batches_tracked,
                 a.training, a.momentum, a.eps, a.activation, a.activation_param, a.negative_slope,
                 a.save_for_backward);
}

Tensor call_inference(const InferenceArguments& a) {
  static const auto op = find<InferenceOperator>("fused_bn::batch_norm_inference");
  return op.call(a.input, a.residual, a.weight, a.bias, a.running_mean, a.running_var, a.eps, a.activation,
                 a.activation_param, a.negative_slope);
}

ElementwiseResult call_elementwise(const ElementwiseArguments& a) {
  static const auto op = find<ElementwiseOperator>("fused_bn::batch_norm_elementwise");
  return op.call(a.input, a.residual, a.weight, a.bias, a.statistics, a.activation, a.activation_param,
                 a.negative_slope, a.save_mask);
}

BackwardResult call_backward(const BackwardArguments& a) {
  static const auto op = find<BackwardOperator>("fused_bn::batch_norm_backward");
  return op.call(a.grad_output, a.input, a.residual, a.weight, a.bias, a.negative_slope, a.statistics, a.mask,
                 a.training, a.activation, a.activation_param, a.output_mask);
}

MergeResult call_merge(const MergeArguments& a) {
  static const auto op = find<MergeOperator>("fused_bn::batch_norm_merge");
  return op.call(a.input, a.moments, a.running_mean, a.running_var, a.num_batches_tracked, a.momentum, a.eps);
}

TORCH_LIBRARY(fused_bn, m) {
  // Compilers must keep the exact strides, because the bits of a mask lie in the order of the input's memory.
  // needs_fixed_stride_order is not enough: inductor of torch 2.14 takes the order that it must keep from the
  // layout that it has chosen for the saved input.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};

  m.def(
      "batch_norm(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, "
      "bool training, float? momentum, float eps, str activation, float activation_param, "
      "Tensor? negative_slope=None) -> Tensor",
      tags);
  m.def(
      "batch_norm_inference(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor? running_mean, Tensor? running_var, float eps, str activation, float activation_param, "
      "Tensor? negative_slope=None) -> Tensor",
      tags);
  m.def(
      "batch_norm_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, "
      "bool training, float? momentum, float eps, str activation, float activation_param, "
      "Tensor? negative_slope, bool save_for_backward) -> "
      "(Tensor output, Tensor statistics, Tensor mask, Tensor bias_copy)",
      tags);
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, "
      "Tensor? bias, Tensor? negative_slope, Tensor statistics, Tensor? mask, bool training, "
      "str activation, float activation_param, bool[5] output_mask) -> "
      "(Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias, "
      "Tensor grad_negative_slope)",
      tags);

  // For statistics over several processes; see args.h.
  m.def("batch_norm_moments(Tensor input) -> Tensor", tags);
  m.def(
      "batch_norm_merge(Tensor input, Tensor moments, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, float? momentum, float eps) -> (Tensor statistics, Tensor count)",
      tags);
  m.def(
      "batch_norm_elementwise(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor statistics, str activation, float activation_param, Tensor? negative_slope, "
      "bool save_mask) -> (Tensor output, Tensor mask)",
      tags);
  m.def(
      "batch_norm_backward_sums(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, "
      "Tensor? bias, Tensor? negative_slope, Tensor statistics, Tensor? mask, str activation, "
      "float activation_param, bool[3] output_mask) -> "
      "(Tensor sums, Tensor grad_weight, Tensor grad_bias, Tensor grad_negative_slope)",
      tags);
  m.def(
      "batch_norm_backward_elementwise(Tensor grad_output, Tensor input, Tensor? residual, "
      "Tensor? weight, Tensor? bias, Tensor? negative_slope, Tensor statistics, Tensor? mask, "
      "Tensor sums, Tensor count, str activation, float activation_param, bool[2] output_mask) -> "
      "(Tensor grad_input, Tensor grad_residual)",
      tags);
  m.def(
      "check_elementwise(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, str activation, "
      "float activation_param, Tensor? negative_slope) -> ()",
      tags);

  // Recomputation. The schema names the class, which must be registered first.
  m.class_<Recipe>("Recipe").def("keep", &Recipe::keep).def("compute", &Recipe::compute);
  m.def("recipe(Tensor output, Tensor? residual) -> __torch__.torch.classes.fused_bn.Recipe?");
}

TORCH_LIBRARY_IMPL(fused_bn, CompositeImplicitAutograd, m) {
  m.impl("check_elementwise", check_elementwise);
  m.impl("recipe", recipe_of);
}

}  // namespace fused_bn
