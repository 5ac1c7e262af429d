// What the device kernels' torch side shares: the operators' arguments, their checks, and the [N, C, S] view.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "common/activation.h"
#include "common/view.h"

namespace fused_bn {

using OptionalTensor = std::optional<at::Tensor>;

struct ForwardArguments {
  const at::Tensor& input;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& running_mean;
  const OptionalTensor& running_var;
  const OptionalTensor& num_batches_tracked;
  bool training;
  std::optional<double> momentum;
  double eps;
  std::string_view activation;
};

struct BackwardArguments {
  const at::Tensor& grad_output;
  const at::Tensor& input;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const at::Tensor& statistics;
  bool training;
  std::string_view activation;
};

// Raise what nn.BatchNorm raises for the same misuse, before anything is written.
void check(const ForwardArguments& arguments);
void check(const BackwardArguments& arguments);

// ValueError for a name that is no activation.
Activation activation_from_name(std::string_view name);
std::string_view activation_name(Activation activation);

// input is contiguous in the memory format that suggest_memory_format() gives.
View view_of(const at::Tensor& input);

// float32 for half types, else the input's own: of the statistics, [3, C].
at::ScalarType statistics_type(const at::Tensor& input);

inline bool present(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

}  // namespace fused_bn
