#include "tensors.h"

#include <ATen/ATen.h>

namespace fused_bn {

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

Tensor empty_statistics(const Tensor& input) {
  const auto options = input.options().dtype(statistics_type(input));
  return input.numel() == 0 ? at::zeros({3, input.size(1)}, options) : at::empty({3, input.size(1)}, options);
}

Tensor empty_mask(const ForwardArguments& a) {
  const bool wanted = writes_mask(a.residual, a.activation, a.save_mask);
  const int64_t size = wanted ? mask_size(a.input).expect_int() : 0;
  return at::empty({size}, a.input.options().dtype(at::kByte));
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
  if (a.input.numel() > 0) return;
  weight.zero_();
  bias.zero_();
}

}  // namespace fused_bn
