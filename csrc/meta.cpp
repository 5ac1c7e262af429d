// The operators on tensors without data, for torch.compile, torch.export and the meta device: the checks of
// the kernels, and outputs of their shapes, strides and dtypes. Sizes may be symbolic.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "layout.h"

namespace fused_bn {
namespace {

// Raises the same text as RuntimeError. FakeTensorMode takes NotImplementedError for a missing Meta kernel.
template <class Arguments>
void check_meta(const Arguments& arguments) {
  try {
    check(arguments);
  } catch (const c10::NotImplementedError& error) {
    TORCH_CHECK(false, error.what_without_backtrace());
  }
}

Tensor empty_like_output(const Tensor& input) {
  return at::empty_like(input, input.options(), input.suggest_memory_format());
}

Tensor empty_vector(const Tensor& like, c10::SymInt size) {
  return at::empty_symint({std::move(size)}, like.options());
}

Tensor empty_statistics_of(const Tensor& input) {
  return at::empty_symint({3, input.sym_size(1)}, input.options().dtype(statistics_type(input)));
}

Tensor empty_mask_of(const Tensor& input, bool written) {
  return at::empty_symint({written ? mask_size(input) : c10::SymInt(0)}, input.options().dtype(at::kByte));
}

ForwardResult forward(const ForwardArguments& a) {
  check_meta(a);
  const bool copies = copies_bias(a.residual, a.bias, a.activation, a.save_for_backward);
  return {empty_like_output(a.input), empty_statistics_of(a.input),
          empty_mask_of(a.input, writes_mask(a.residual, a.activation, a.save_for_backward)),
          copies ? empty_vector(*a.bias, a.input.sym_size(1)) : Tensor()};
}

Tensor inference(const InferenceArguments& a) {
  check_meta(a.as_forward());
  return empty_like_output(a.input);
}

ElementwiseResult elementwise(const ElementwiseArguments& a) {
  check_meta(a);
  return {empty_like_output(a.input),
          empty_mask_of(a.input, writes_mask(a.residual, a.activation, a.save_mask))};
}

BackwardResult backward_outputs(const BackwardArguments& a) {
  const auto like_input = [&](bool wanted) {
    return wanted ? empty_like_output(a.input) : empty_vector(a.input, 0);
  };
  const auto like_parameter = [&](bool wanted, const Tensor& parameter) {
    return empty_vector(parameter, wanted ? a.input.sym_size(1) : c10::SymInt(0));
  };
  return {like_input(a.output_mask[0]), like_input(a.output_mask[1]),
          like_parameter(a.output_mask[2], present(a.weight) ? *a.weight : a.statistics),
          like_parameter(a.output_mask[3], present(a.bias) ? *a.bias : a.statistics),
          present(a.negative_slope) ? like_parameter(a.output_mask[4], *a.negative_slope) : Tensor()};
}

BackwardResult backward(const BackwardArguments& a) {
  check_meta(a);
  return backward_outputs(a);
}

Tensor moments(const Tensor& input) {
  check_meta(input);
  return at::empty_symint({2 * input.sym_size(1) + 1}, input.options().dtype(at::kDouble));
}

MergeResult merge(const MergeArguments& a) {
  check_meta(a);
  return {empty_statistics_of(a.input), at::empty({}, a.moments.options())};
}

BackwardSumsResult backward_sums(const BackwardSumsArguments& a) {
  check_meta(a.as_backward());
  auto [grad_input, grad_residual, grad_weight, grad_bias, grad_slope] = backward_outputs(a.as_backward());
  return {at::empty_symint({2 * a.input.sym_size(1)}, a.input.options().dtype(at::kDouble)), grad_weight,
          grad_bias, grad_slope};
}

BackwardElementwiseResult backward_elementwise(const BackwardElementwiseArguments& a) {
  check_meta(a);
  auto [grad_input, grad_residual, grad_weight, grad_bias, grad_slope] = backward_outputs(a.as_backward());
  return {grad_input, grad_residual};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, Meta, m) {
  m.impl("batch_norm_forward", OneByOne<ForwardOperator, forward>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, inference>::call);
  m.impl("batch_norm_backward", OneByOne<BackwardOperator, backward>::call);
  m.impl("batch_norm_moments", moments);
  m.impl("batch_norm_merge", OneByOne<MergeOperator, merge>::call);
  m.impl("batch_norm_elementwise", OneByOne<ElementwiseOperator, elementwise>::call);
  m.impl("batch_norm_backward_sums", OneByOne<BackwardSumsOperator, backward_sums>::call);
  m.impl("batch_norm_backward_elementwise",
         OneByOne<BackwardElementwiseOperator, backward_elementwise>::call);
}

}  // namespace fused_bn
