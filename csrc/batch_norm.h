// What the device kernels' torch side shares: the operators' signatures and arguments, their checks, and the
// [N, C, S] view.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/activation.h"
#include "common/view.h"

namespace fused_bn {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The arguments of the operators, in the order of their schemas.
struct ForwardArguments {
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& running_mean;
  const OptionalTensor& running_var;
  const OptionalTensor& num_batches_tracked;
  bool training;
  std::optional<double> momentum;
  double eps;
  std::string_view activation;
  double activation_param;
  bool save_mask = false;
};

// Evaluation: forward with the running statistics, which stay as they are.
struct InferenceArguments {
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& running_mean;
  const OptionalTensor& running_var;
  double eps;
  std::string_view activation;
  double activation_param;

  ForwardArguments as_forward() const;
};

// Forward with statistics that are known, [3, C], as forward returns them.
struct ElementwiseArguments {
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const Tensor& statistics;
  std::string_view activation;
  double activation_param;
  bool save_mask = false;

  // Evaluation without running statistics, which leaves statistics that are there as they are.
  ForwardArguments as_forward() const;
};

// Which gradients are wanted: of input, residual, weight and bias.
using OutputMask = std::array<bool, 4>;

// What backward reads, the gradient and what forward saved.
struct BackwardTensors {
  const Tensor& grad_output;
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const Tensor& statistics;
  const OptionalTensor& mask;
};

struct BackwardArguments : BackwardTensors {
  bool training;
  std::string_view activation;
  double activation_param;
  OutputMask output_mask;
};

// As operators take and return them: one by one.
template <class Result, class... More>
using ForwardSignature = Result(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                const OptionalTensor&, bool, std::optional<double>, double, std::string_view,
                                double, More...);
using InferenceOperator = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, double,
                                 std::string_view, double);
template <class Result, class... More>
using ElementwiseSignature = Result(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                    const OptionalTensor&, const Tensor&, std::string_view, double, More...);
template <class Result>
using BackwardSignature = Result(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 const OptionalTensor&, const Tensor&, const OptionalTensor&, bool,
                                 std::string_view, double, OutputMask);

// Of the operators that devices have kernels for: output, statistics, mask; output, mask; the gradients.
using ForwardOperator = ForwardSignature<std::tuple<Tensor, Tensor, Tensor>, /*save_mask*/ bool>;
using ElementwiseOperator = ElementwiseSignature<std::tuple<Tensor, Tensor>, /*save_mask*/ bool>;
using BackwardOperator = BackwardSignature<std::tuple<Tensor, Tensor, Tensor, Tensor>>;

// From a function that takes a struct of arguments to one that takes them one by one.
template <class Signature, auto function>
struct OneByOne;
template <class Result, class... Args, auto function>
struct OneByOne<Result(Args...), function> {
  static Result call(Args... args) { return function({args...}); }
};

// The operator, from the keys on that the dispatcher is at.
std::tuple<Tensor, Tensor, Tensor, Tensor> call_backward(const BackwardArguments& arguments);

// Raise what nn.BatchNorm raises for the same misuse, before anything is written.
void check(const ForwardArguments& arguments);
void check(const ElementwiseArguments& arguments);
// Of check(ForwardArguments), what concerns the running statistics and their counter.
void check_buffers(const ForwardArguments& arguments);
void check(const BackwardArguments& arguments);

// ValueError for a name that is no activation.
Activation activation_from_name(std::string_view name);
std::string_view activation_name(Activation activation);

// input is contiguous in the memory format that suggest_memory_format() gives.
View view_of(const Tensor& input);

// float32 for half types, else the input's own: of the statistics, [3, C].
at::ScalarType statistics_type(const Tensor& input);

// Elements of a mask, uint8; symbolic, for the fake kernels.
c10::SymInt mask_size(const Tensor& input);

inline bool present(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

// Whether forward writes a mask: not without need.
bool writes_mask(const OptionalTensor& residual, std::string_view activation, bool save_mask);

}  // namespace fused_bn
