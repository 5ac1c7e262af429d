// From torch's tensors to what the device kernels take.
#pragma once

#include "batch_norm.h"
#include "common/dtype.h"

namespace fused_bn {

DType dtype_of(const at::Tensor& tensor);

ChannelVector channel_vector(const at::Tensor& tensor);
// Absent where the tensor is.
ChannelVector channel_vector(const OptionalTensor& tensor);

// What backward returns, not yet filled; empty where the mask does not want it.
struct Gradients {
  at::Tensor weight;
  at::Tensor bias;

  // Of the parameters' types, or the statistics' where a parameter is absent.
  Gradients(const BackwardArguments& arguments, std::array<bool, 3> output_mask);
};

}  // namespace fused_bn
