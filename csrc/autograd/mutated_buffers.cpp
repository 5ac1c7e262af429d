#include "autograd/mutated_buffers.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "autograd/derivatives.h"
#include "ops.h"

namespace fused_bn {
namespace {

template <class Function>
void for_each_written(const ForwardArguments& a, Function function) {
  if (!a.training) return;
  for (const OptionalTensor* buffer : {&a.running_mean, &a.running_var, &a.num_batches_tracked}) {
    if (present(*buffer)) function(**buffer);
  }
}

void bump_versions(const ForwardArguments& a) { for_each_written(a, torch::autograd::impl::bump_version); }

ForwardResult forward_inplace(const ForwardArguments& a) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !any_has_tangent(a.input, a.residual, a.weight, a.bias, a.negative_slope),
      "fused_bn::batch_norm_forward has no forward-mode derivative; fused_bn::batch_norm has one");
  check_buffers_can_be_written(a);
  return forward_and_bump_versions(a);
}

MergeResult merge_inplace(const MergeArguments& a) {
  check_buffers_can_be_written(a.as_forward());
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_merge(a);
  }();
  bump_versions(a.as_forward());
  return result;
}

}  // namespace

void check_buffers_can_be_written(const ForwardArguments& a) {
  for_each_written(a, [](const Tensor& buffer) {
    TORCH_CHECK(
        !buffer.is_inference() || c10::InferenceMode::is_enabled(),
        "Inplace update to inference tensor outside InferenceMode is not allowed. You can make a clone "
        "to get a normal tensor before doing inplace update.");
  });
}

ForwardResult forward_and_bump_versions(const ForwardArguments& a) {
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(a);
  }();
  bump_versions(a);
  return result;
}

TORCH_LIBRARY_IMPL(fused_bn, ADInplaceOrView, m) {
  m.impl("batch_norm_forward", OneByOne<ForwardOperator, forward_inplace>::call);
  m.impl("batch_norm_merge", OneByOne<MergeOperator, merge_inplace>::call);
}

}  // namespace fused_bn
