#include "tensors.h"

#include <ATen/ATen.h>

namespace fused_bn {

DType dtype_of(const at::Tensor& tensor) {
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

ChannelVector channel_vector(const at::Tensor& tensor) {
  return {tensor.data_ptr(), dtype_of(tensor), tensor.stride(0)};
}

ChannelVector channel_vector(const OptionalTensor& tensor) {
  return present(tensor) ? channel_vector(*tensor) : ChannelVector{};
}

Gradients::Gradients(const BackwardArguments& a, std::array<bool, 3> output_mask) {
  const auto empty = [&](const OptionalTensor& parameter, bool wanted) {
    const auto options = present(parameter) ? parameter->options() : a.statistics.options();
    return at::empty({wanted ? a.input.size(1) : 0}, options);
  };
  weight = empty(a.weight, output_mask[1]);
  bias = empty(a.bias, output_mask[2]);
}

}  // namespace fused_bn
