#include "pieces.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "written.h"

namespace fused_bn {
namespace {

std::tuple<Tensor, Tensor> merge_inplace(const MergeArguments& a) {
  const WrittenBuffers buffers(a.as_forward());
  auto result = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("fused_bn::batch_norm_merge", "")
                               .typed<MergeOperator>();
    return op.call(a.input, a.moments, a.running_mean, a.running_var, a.num_batches_tracked, a.momentum,
                   a.eps);
  }();
  buffers.bump_versions();
  return result;
}

void check_merge(const MergeArguments& arguments) { check(arguments); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(fused_bn, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  const auto define = [&](const std::string& schema) { m.def(schema.c_str(), tags); };
  const std::string backward =
      "Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor? negative_slope, Tensor statistics, Tensor? mask, ";
  const std::string options = "str activation, float activation_param, ";
  define("batch_norm_moments(Tensor input) -> Tensor");
  define(
      "batch_norm_merge(Tensor input, Tensor moments, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, float? momentum, float eps) -> (Tensor statistics, Tensor count)");
  define("batch_norm_backward_sums(" + backward + options +
         "bool[3] output_mask) -> (Tensor sums, Tensor grad_weight, Tensor grad_bias, Tensor "
         "grad_negative_slope)");
  define("batch_norm_backward_elementwise(" + backward + "Tensor sums, Tensor count, " + options +
         "bool[2] output_mask) -> (Tensor grad_input, Tensor grad_residual)");
  define("check_moments(Tensor input) -> ()");
  define(
      "check_merge(Tensor input, Tensor moments, Tensor? running_mean, Tensor? running_var, "
      "Tensor? num_batches_tracked, float? momentum, float eps) -> ()");
  define("check_sums(Tensor input, Tensor sums, Tensor count) -> ()");
}

TORCH_LIBRARY_IMPL(fused_bn, CompositeImplicitAutograd, m) {
  m.impl("check_moments", check_moments);
  m.impl("check_merge", OneByOne<MergeSignature<void>, check_merge>::call);
  m.impl("check_sums", check_sums);
}

TORCH_LIBRARY_IMPL(fused_bn, ADInplaceOrView, m) {
  m.impl("batch_norm_merge", OneByOne<MergeOperator, merge_inplace>::call);
}

}  // namespace fused_bn
