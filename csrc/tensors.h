// From torch's tensors to what the device kernels take.
#pragma once

#include "activation_names.h"
#include "args.h"
#include "common/dtype.h"

namespace fused_bn {

DType dtype_of(const Tensor& tensor);

// Raise where the storage of a tensor with elements has no memory, as that of a sharded parameter may have: a
// null pointer would mean to kernels that there is no such tensor. Not asked of fake tensors, which have
// none.
void check_allocated(const ForwardArguments& arguments);
void check_allocated(const ElementwiseArguments& arguments);
void check_allocated(const BackwardTensors& tensors);
void check_allocated(const char* name, const Tensor& tensor);

ChannelVector channel_vector(const Tensor& tensor);
// Absent where the tensor is.
ChannelVector channel_vector(const OptionalTensor& tensor);

// Null where the tensor is undefined.
const void* data_or_null(const Tensor& tensor);

// Not filled. Past the dispatcher on the CPU, where a call of at::empty takes as many instructions as the
// allocation.
Tensor empty_tensor(at::IntArrayRef sizes, const at::TensorOptions& options);

// What forward writes the statistics to, [3, C]; zero where there is no input.
Tensor empty_statistics(const Tensor& input);

// What forward writes the mask to: empty where none is written.
Tensor empty_mask(const ForwardArguments& arguments);

// What backward reads, dense and in the input's memory format; undefined where absent.
struct DenseBackward {
  Tensor grad_output, input, residual, mask, statistics;

  DenseBackward(const BackwardArguments& arguments, at::MemoryFormat format);
};

// What backward returns of the parameters: not yet filled, or zero where there is no input; empty where the
// mask does not want it. That of the slope is undefined where there is no slope.
struct Gradients {
  Tensor weight;
  Tensor bias;
  Tensor negative_slope;

  // Of the parameters' types, or the statistics' where a parameter is absent.
  explicit Gradients(const BackwardArguments& arguments);
  Gradients(Tensor weight_, Tensor bias_) : weight(std::move(weight_)), bias(std::move(bias_)) {}
};

// What backward is told of several processes; undefined where it is not.
struct Totals {
  Tensor sums, count;
};

// What the kernels of every device take: the fields that their params share.
template <class Params>
Params forward_params(const ForwardArguments& a, const Tensor& input, const Tensor& residual,
                      const Tensor& output, const Tensor& statistics, const Tensor& mask) {
  Params p{};
  p.input = input.const_data_ptr();
  p.residual = data_or_null(residual);
  p.output = output.defined() ? output.data_ptr() : nullptr;
  p.mask = mask.defined() && mask.numel() > 0 ? mask.data_ptr<uint8_t>() : nullptr;
  p.weight = channel_vector(a.weight);
  p.bias = channel_vector(a.bias);
  p.negative_slope = channel_vector(a.negative_slope);
  p.running_mean = channel_vector(a.running_mean);
  p.running_var = channel_vector(a.running_var);
  p.statistics = statistics.defined() ? statistics.data_ptr() : nullptr;
  p.eps = a.eps;
  p.activation = activation_from_name(a.activation);
  p.activation_param = a.activation_param;
  return p;
}

template <class Params>
Params merge_params(const MergeArguments& a, const Tensor& moments, const Tensor& statistics,
                    const Tensor& count) {
  Params p{};
  p.C = a.input.size(1);
  p.processes = moments.size(0);
  p.moments = moments.const_data_ptr<double>();
  p.running_mean = channel_vector(a.running_mean);
  p.running_var = channel_vector(a.running_var);
  p.dtype = dtype_of(a.input);
  p.statistics = statistics.data_ptr();
  p.count = count.data_ptr<double>();
  p.eps = a.eps;
  return p;
}

template <class Params>
Params backward_params(const BackwardArguments& a, const DenseBackward& dense, const Tensor& grad_input,
                       const Tensor& grad_residual, const Gradients& gradients) {
  Params p{};
  p.grad_output = dense.grad_output.const_data_ptr();
  p.input = dense.input.const_data_ptr();
  p.residual = data_or_null(dense.residual);
  p.mask = static_cast<const uint8_t*>(data_or_null(dense.mask));
  p.weight = channel_vector(a.weight);
  p.bias = channel_vector(a.bias);
  p.negative_slope = channel_vector(a.negative_slope);
  p.statistics = dense.statistics.const_data_ptr();
  p.grad_input = a.output_mask[0] ? grad_input.data_ptr() : nullptr;
  p.grad_residual = a.output_mask[1] ? grad_residual.data_ptr() : nullptr;
  if (a.output_mask[2]) p.grad_weight = channel_vector(gradients.weight);
  if (a.output_mask[3]) p.grad_bias = channel_vector(gradients.bias);
  p.training = a.training;
  p.activation = a.by_negative_slope ? Activation::prelu_by_slope : activation_from_name(a.activation);
  p.activation_param = a.activation_param;
  return p;
}

}  // namespace fused_bn
