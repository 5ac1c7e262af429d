#include "tensors.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>

#include "layout.h"

namespace fused_bn {
namespace {

void check_allocated(const char* name, const OptionalTensor& tensor) {
  if (present(tensor)) fused_bn::check_allocated(name, *tensor);
}

}  // namespace

void check_allocated(const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.unsafeGetTensorImpl()->storage_initialized(), "fused_bn: ", name, " has ",
              tensor.numel(), " element(s), but its data is not allocated yet");
}

void check_allocated(const ForwardArguments& a) {
  check_allocated("the input", a.input);
  check_allocated("the residual", a.residual);
  check_allocated("weight", a.weight);
  check_allocated("bias", a.bias);
  check_allocated("negative_slope", a.negative_slope);
  check_allocated("running_mean", a.running_mean);
  check_allocated("running_var", a.running_var);
  check_allocated("num_batches_tracked", a.num_batches_tracked);
}

void check_allocated(const ElementwiseArguments& a) {
  check_allocated(a.as_forward());
  check_allocated("statistics", a.statistics);
}

void check_allocated(const BackwardTensors& a) {
  check_allocated("grad_output", a.grad_output);
  check_allocated("the input", a.input);
  check_allocated("the residual", a.residual);
  check_allocated("weight", a.weight);
  check_allocated("bias", a.bias);
  check_allocated("negative_slope", a.negative_slope);
  check_allocated("statistics", a.statistics);
  check_allocated("the mask", a.mask);
}

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::f64;
    case at::kBFloat16:
      return DType::bf16;
    case at::kHalf:
      return DType::f16;
    default:
      return DType::f32;
  }
}

ChannelVector channel_vector(const Tensor& tensor) {
  return {tensor.data_ptr(), dtype_of(tensor), tensor.stride(0)};
}

ChannelVector channel_vector(const OptionalTensor& tensor) {
  return present(tensor) ? channel_vector(*tensor) : ChannelVector{};
}

const void* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

Tensor empty_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!options.device().is_cpu()) return at::empty(sizes, options);
  return at::detail::empty_cpu(sizes, c10::typeMetaToScalarType(options.dtype()));
}

Tensor empty_statistics(const Tensor& input) {
  const auto options = input.options().dtype(statistics_type(input));
  if (input.numel() == 0) return at::zeros({3, input.size(1)}, options);
  return empty_tensor({3, input.size(1)}, options);
}

Tensor empty_mask(const ForwardArguments& a) {
  const bool wanted = writes_mask(a.residual, a.activation, a.save_for_backward);
  const int64_t size = wanted ? mask_size(a.input).expect_int() : 0;
  return empty_tensor({size}, a.input.options().dtype(at::kByte));
}

DenseBackward::DenseBackward(const BackwardArguments& a, at::MemoryFormat format)
    : grad_output(a.grad_output.contiguous(format)),
      input(a.input.contiguous(format)),
      residual(present(a.residual) ? a.residual->contiguous(format) : Tensor()),
      mask(present(a.mask) ? a.mask->contiguous() : Tensor()),
      statistics(a.statistics.contiguous()) {}

Gradients::Gradients(const BackwardArguments& a) {
  const auto empty = [&](const OptionalTensor& parameter, bool wanted) {
    const auto options = present(parameter) ? parameter->options() : a.statistics.options();
    return at::empty({wanted ? a.input.size(1) : 0}, options);
  };
  weight = empty(a.weight, a.output_mask[2]);
  bias = empty(a.bias, a.output_mask[3]);
  if (present(a.negative_slope)) negative_slope = empty(a.negative_slope, a.output_mask[4]);
  if (a.input.numel() > 0) return;
  weight.zero_();
  bias.zero_();
  if (negative_slope.defined()) negative_slope.zero_();
}

}  // namespace fused_bn
