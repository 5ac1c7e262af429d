// From torch's tensors to what the device kernels take.
#pragma once

#include "batch_norm.h"
#include "common/dtype.h"

namespace fused_bn {

DType dtype_of(const Tensor& tensor);

ChannelVector channel_vector(const Tensor& tensor);
// Absent where the tensor is.
ChannelVector channel_vector(const OptionalTensor& tensor);

// Null where the tensor is undefined.
const void* data_or_null(const Tensor& tensor);

// What forward writes the mask to: empty where none is written.
Tensor empty_mask(const ForwardArguments& arguments);

// What backward reads, dense and in the input's memory format; undefined where absent.
struct DenseBackward {
  Tensor grad_output, input, residual, mask, statistics;

  DenseBackward(const BackwardArguments& arguments, at::MemoryFormat format);
};

// What backward returns of the parameters, not yet filled; empty where the mask does not want it.
struct Gradients {
  Tensor weight;
  Tensor bias;

  // Of the parameters' types, or the statistics' where a parameter is absent.
  explicit Gradients(const BackwardArguments& arguments);
};

}  // namespace fused_bn
