// The CUDA kernels as torch operators: tensors in, plans and launches out.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "batch_norm.h"
#include "cuda/launch.h"
#include "cuda/plans.h"
#include "cuda/scratch.h"
#include "tensors.h"

namespace fused_bn::cuda {
namespace {

using at::Tensor;

// The largest power of two up to 16 that divides all addresses.
int64_t alignment_of(std::initializer_list<const void*> addresses) {
  uintptr_t bits = 16;
  for (const void* address : addresses) bits |= reinterpret_cast<uintptr_t>(address);
  return static_cast<int64_t>(bits & (~bits + 1));
}

// 1 / n as the kernels multiply by it.
double inverse_count(const View& view) { return 1.0 / static_cast<double>(view.values_per_channel()); }

// None is the leaky ReLU of slope 1.
float negative_slope(Activation activation) { return activation == Activation::none ? 1.0F : 0.0F; }

template <class Params>
void run(const Plan& plan, DType dtype, Activation activation, const Params& params) {
  const cudaError_t error =
      launch(plan, dtype, activation, params, c10::cuda::getCurrentCUDAStream().stream());
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not find it
  TORCH_CHECK(false, "fused_bn: the launch failed: ", cudaGetErrorString(error), "; the plan was\n",
              describe(plan));
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const OptionalTensor& weight,
                                   const OptionalTensor& bias, const OptionalTensor& running_mean,
                                   const OptionalTensor& running_var,
                                   const OptionalTensor& num_batches_tracked, bool training,
                                   std::optional<double> momentum, double eps, std::string_view activation) {
  check({input, weight, bias, running_mean, running_var, num_batches_tracked, training, momentum, eps,
         activation});
  const c10::cuda::CUDAGuard guard(input.device());
  const auto format = input.suggest_memory_format();
  const Tensor x = input.contiguous(format);
  Tensor output = at::empty_like(x, x.options(), format);
  Tensor statistics = at::empty({3, x.size(1)}, x.options().dtype(statistics_type(x)));
  const bool counts = training && present(num_batches_tracked);
  if (x.numel() == 0) {
    if (counts) Tensor(*num_batches_tracked).add_(1);
    return {output, statistics.zero_()};
  }
  const View view = view_of(x);
  const double n = static_cast<double>(view.values_per_channel());
  const Plan plan = plan_for({view, dtype_of(x), training ? Direction::forward : Direction::evaluation, false,
                              alignment_of({x.const_data_ptr(), output.data_ptr()})});
  const bool cumulative = training && !momentum.has_value();
  const Activation act = activation_from_name(activation);
  const Scratch scratch(plan, cumulative);
  ForwardParams params{};
  params.input = x.const_data_ptr();
  params.output = output.data_ptr();
  params.weight = channel_vector(weight);
  params.bias = channel_vector(bias);
  params.running_mean = channel_vector(running_mean);
  params.running_var = channel_vector(running_var);
  params.num_batches_tracked = counts ? num_batches_tracked->data_ptr<int64_t>() : nullptr;
  params.statistics = statistics.data_ptr();
  params.training = training;
  params.cumulative = cumulative;
  params.momentum = momentum.value_or(0);
  params.eps = eps;
  params.inverse_count = inverse_count(view);
  params.unbiased = n / (n - 1);
  params.negative_slope = negative_slope(act);
  params.workspace = scratch.workspace();
  run(plan, dtype_of(x), act, params);
  return {output, statistics};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                            const OptionalTensor& weight, const OptionalTensor& bias,
                                            const Tensor& statistics, bool training,
                                            std::string_view activation, std::array<bool, 3> output_mask) {
  const BackwardArguments arguments{grad_output, input, weight, bias, statistics, training, activation};
  check(arguments);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto format = input.suggest_memory_format();
  const Tensor x = input.contiguous(format), dy = grad_output.contiguous(format);
  const Tensor saved = statistics.contiguous();
  Tensor grad_input = output_mask[0] ? at::empty_like(x, x.options(), format) : at::empty({0}, x.options());
  const Gradients gradients(arguments, output_mask);
  if (x.numel() == 0) return {grad_input, gradients.weight.zero_(), gradients.bias.zero_()};
  const View view = view_of(x);
  const void* dx = output_mask[0] ? grad_input.data_ptr() : nullptr;
  const Plan plan = plan_for({view, dtype_of(x), Direction::backward, false,
                              alignment_of({x.const_data_ptr(), dy.const_data_ptr(), dx})});
  const Activation act = activation_from_name(activation);
  const Scratch scratch(plan, false);
  BackwardParams params{};
  params.grad_output = dy.const_data_ptr();
  params.input = x.const_data_ptr();
  params.weight = channel_vector(weight);
  params.bias = channel_vector(bias);
  params.statistics = saved.const_data_ptr();
  params.grad_input = output_mask[0] ? grad_input.data_ptr() : nullptr;
  params.grad_weight = output_mask[1] ? channel_vector(gradients.weight) : ChannelVector{};
  params.grad_bias = output_mask[2] ? channel_vector(gradients.bias) : ChannelVector{};
  params.training = training;
  params.inverse_count = inverse_count(view);
  params.negative_slope = negative_slope(act);
  params.workspace = scratch.workspace();
  run(plan, dtype_of(x), act, params);
  return {grad_input, gradients.weight, gradients.bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, CUDA, m) {
  m.impl("batch_norm_forward", forward);
  m.impl("batch_norm_backward", backward);
}

}  // namespace fused_bn::cuda
