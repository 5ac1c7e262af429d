// The operators of one device, around its kernels: checks, what is written to, and registration.
//
// A Device has
//   Guard            makes a device the current one while it lives
//   forward          gives output and mask; writes the statistics where they are the batch's or the running
//                    ones, and else reads them; copies the bias into bias_copy where that is defined
//   moments          writes mean and sum of squared deviations, [2 * C] in float64
//   merge            writes statistics and count from the moments of several processes
//   backward         gives grad_input and grad_residual; writes the parameters' gradients
//   backward_sums    writes the sums of g and of g * xhat, [2 * C] in float64, and the parameters' gradients
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "layout.h"
#include "tensors.h"

namespace fused_bn {

template <class Device>
struct Operators {
  using Guard = typename Device::Guard;

  static ForwardResult forward(const ForwardArguments& a) {
    check(a);
    check_allocated(a);
    const Guard guard(a.input.device());
    const Tensor statistics = empty_statistics(a.input);
    const bool copies = copies_bias(a.residual, a.bias, a.activation, a.save_for_backward);
    const Tensor bias_copy = copies ? empty_tensor({a.input.size(1)}, a.bias->options()) : Tensor();
    const auto [output, mask] = Device::forward(a, statistics, bias_copy);
    return {output, statistics, mask, bias_copy};
  }

  static Tensor inference(const InferenceArguments& a) { return std::get<0>(forward(a.as_forward())); }

  static ElementwiseResult elementwise(const ElementwiseArguments& a) {
    check(a);
    check_allocated(a);
    const Guard guard(a.input.device());
    return Device::forward(a.as_forward(), a.statistics.contiguous(), {});
  }

  static Tensor moments(const Tensor& input) {
    check(input);
    check_allocated("the input", input);
    const Guard guard(input.device());
    const int64_t C = input.size(1), count = C == 0 ? 0 : input.numel() / C;
    const Tensor result = at::full({2 * C + 1}, count, input.options().dtype(at::kDouble));
    if (count > 0) Device::moments(input, result);
    return result;
  }

  static MergeResult merge(const MergeArguments& a) {
    check(a);
    check_allocated(a.as_forward());
    check_allocated("moments", a.moments);
    const Guard guard(a.input.device());
    const Tensor statistics =
        at::empty({3, a.input.size(1)}, a.input.options().dtype(statistics_type(a.input)));
    const Tensor count = at::empty({}, a.moments.options());
    Device::merge(a, a.moments.contiguous(), statistics, count);
    return {statistics, count};
  }

  static BackwardResult backward(const BackwardArguments& a) {
    check(a);
    check_allocated(a);
    const Guard guard(a.input.device());
    const Gradients gradients(a);
    const bool slope_alone = a.output_mask == OutputMask{false, false, false, false, true};
    const auto [grad_input, grad_residual] =
        slope_alone ? std::tuple{at::empty({0}, a.input.options()), at::empty({0}, a.input.options())}
                    : Device::backward(a, gradients, {});
    write_slope_gradient(a, gradients);
    return {grad_input, grad_residual, gradients.weight, gradients.bias, gradients.negative_slope};
  }

  static BackwardSumsResult backward_sums(const BackwardSumsArguments& a) {
    check(a.as_backward());
    check_allocated(a);
    const Guard guard(a.input.device());
    const Gradients gradients(a.as_backward());
    const Tensor sums = at::empty({2 * a.input.size(1)}, a.input.options().dtype(at::kDouble));
    if (a.input.numel() == 0) {
      sums.zero_();
    } else {
      Device::backward_sums(a.as_backward(), gradients, sums);
    }
    write_slope_gradient(a.as_backward(), gradients);
    return {sums, gradients.weight, gradients.bias, gradients.negative_slope};
  }

  static BackwardElementwiseResult backward_elementwise(const BackwardElementwiseArguments& a) {
    check(a);
    check_allocated(a);
    check_allocated("sums", a.sums);
    check_allocated("count", a.count);
    const Guard guard(a.input.device());
    return Device::backward(a.as_backward(), Gradients(a.as_backward()), {a.sums.contiguous(), a.count});
  }

  static void add_to(torch::Library& m) {
    m.impl("batch_norm_forward", OneByOne<ForwardOperator, forward>::call);
    m.impl("batch_norm_inference", OneByOne<InferenceOperator, inference>::call);
    m.impl("batch_norm_elementwise", OneByOne<ElementwiseOperator, elementwise>::call);
    m.impl("batch_norm_moments", moments);
    m.impl("batch_norm_merge", OneByOne<MergeOperator, merge>::call);
    m.impl("batch_norm_backward", OneByOne<BackwardOperator, backward>::call);
    m.impl("batch_norm_backward_sums", OneByOne<BackwardSumsOperator, backward_sums>::call);
    m.impl("batch_norm_backward_elementwise",
           OneByOne<BackwardElementwiseOperator, backward_elementwise>::call);
  }

 private:
  // By a pass of its own, with the sums' kernel: a third sum would take registers from all other activations.
  static void write_slope_gradient(const BackwardArguments& a, const Gradients& gradients) {
    if (!gradients.negative_slope.defined() || !a.output_mask[4] || a.input.numel() == 0) return;
    BackwardArguments of_slope = a;
    of_slope.by_negative_slope = true;
    of_slope.output_mask = {false, false, false, true, false};
    const Tensor sums = at::empty({2 * a.input.size(1)}, a.input.options().dtype(at::kDouble));
    Device::backward_sums(of_slope, {{}, gradients.negative_slope}, sums);
  }
};

}  // namespace fused_bn
