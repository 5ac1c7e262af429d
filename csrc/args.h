// The arguments of the operators, as structs and as the signatures that torch calls.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace fused_bn {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline const OptionalTensor kAbsent;

inline bool present(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

// The fields of a struct are in the order of the operator's schema in ops.cpp.
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
  const OptionalTensor& negative_slope = kAbsent;  // prelu's, [C]
  bool save_for_backward = false;                  // the mask, and a copy of the bias

  // The same call, for a caller that increments the counter.
  ForwardArguments without_counter(std::optional<double> momentum_) const {
    return {input,    residual,  weight, bias,       running_mean,     running_var,    kAbsent,
            training, momentum_, eps,    activation, activation_param, negative_slope, save_for_backward};
  }
};

// Evaluation: forward with the running statistics, which are not written.
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
  const OptionalTensor& negative_slope;

  ForwardArguments as_forward() const {
    return {input, residual,     weight, bias,       running_mean,     running_var,   kAbsent,
            false, std::nullopt, eps,    activation, activation_param, negative_slope};
  }
};

// Forward with given statistics, [3, C], as forward returns them.
struct ElementwiseArguments {
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const Tensor& statistics;
  std::string_view activation;
  double activation_param;
  const OptionalTensor& negative_slope;
  bool save_mask = false;

  // Evaluation without running statistics: kernels then read the statistics that they are given.
  ForwardArguments as_forward() const {
    return {input, residual,     weight,      bias,       kAbsent,          kAbsent,        kAbsent,
            false, std::nullopt, /*eps=*/0.0, activation, activation_param, negative_slope, save_mask};
  }
};

// Which gradients are wanted: of input, residual, weight, bias and negative_slope.
using OutputMask = std::array<bool, 5>;

// The gradient, and what forward saved.
struct BackwardTensors {
  const Tensor& grad_output;
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& weight;
  const OptionalTensor& bias;
  const OptionalTensor& negative_slope;
  const Tensor& statistics;
  const OptionalTensor& mask;
};

struct BackwardArguments : BackwardTensors {
  bool training;
  std::string_view activation;
  double activation_param;
  OutputMask output_mask;
  bool by_negative_slope = false;  // the sum of g is the slope's gradient; see Activation::prelu_by_slope
};

// Several processes share their statistics. Each computes a part of forward and of backward before it hears
// from the others, and a part after:
//
//   forward:  moments of its own input -> all-gather -> merge -> statistics -> elementwise
//   backward: sums over its own input -> all-reduce -> elementwise
//
// Processes exchange float64 values: two per channel, and in forward the count of values per channel.

// moments, [P, 2 * C + 1], has a row per process: mean, sum of squared deviations, count.
struct MergeArguments {
  const Tensor& input;  // for its channels, dtype and device
  const Tensor& moments;
  const OptionalTensor& running_mean;
  const OptionalTensor& running_var;
  const OptionalTensor& num_batches_tracked;
  std::optional<double> momentum;
  double eps;

  // Training, which writes the same buffers.
  ForwardArguments as_forward() const {
    return {input, kAbsent,  kAbsent, kAbsent, running_mean, running_var, num_batches_tracked,
            true,  momentum, eps,     "none",  0.0};
  }
};

// Which gradients are wanted: of weight, bias and negative_slope.
using SumsMask = std::array<bool, 3>;
// Which gradients are wanted: of input and residual.
using ElementwiseMask = std::array<bool, 2>;

struct BackwardSumsArguments : BackwardTensors {
  std::string_view activation;
  double activation_param;
  SumsMask output_mask;

  BackwardArguments as_backward() const {
    return {*this,
            true,
            activation,
            activation_param,
            {false, false, output_mask[0], output_mask[1], output_mask[2]}};
  }
};

struct BackwardElementwiseArguments : BackwardTensors {
  const Tensor& sums;   // over all processes, [2 * C]: of g, of g * xhat
  const Tensor& count;  // of values per channel in all processes
  std::string_view activation;
  double activation_param;
  ElementwiseMask output_mask;

  BackwardArguments as_backward() const {
    return {*this, true, activation, activation_param, {output_mask[0], output_mask[1], false, false, false}};
  }
};

// The signatures of the operators.
template <class Result, class... More>
using ForwardSignature = Result(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                const OptionalTensor&, bool, std::optional<double>, double, std::string_view,
                                double, const OptionalTensor&, More...);
using UserOperator = ForwardSignature<Tensor>;
// output, statistics, mask, and a copy of the bias, which is undefined where none is needed.
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using ForwardOperator = ForwardSignature<ForwardResult, /*save_for_backward*/ bool>;
using InferenceOperator = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, double,
                                 std::string_view, double, const OptionalTensor&);
// output and mask.
using ElementwiseResult = std::tuple<Tensor, Tensor>;
using ElementwiseOperator = ElementwiseResult(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                              const OptionalTensor&, const Tensor&, std::string_view, double,
                                              const OptionalTensor&, /*save_mask*/ bool);
// The gradients of input, residual, weight, bias and negative_slope. The last is undefined where there is no
// slope.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardOperator = BackwardResult(const Tensor&, const Tensor&, const OptionalTensor&,
                                        const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                        const Tensor&, const OptionalTensor&, bool, std::string_view, double,
                                        OutputMask);
// statistics and count.
using MergeResult = std::tuple<Tensor, Tensor>;
using MergeOperator = MergeResult(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                  const OptionalTensor&, std::optional<double>, double);
// sums, grad_weight, grad_bias and grad_negative_slope.
using BackwardSumsResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using BackwardSumsOperator = BackwardSumsResult(const Tensor&, const Tensor&, const OptionalTensor&,
                                                const OptionalTensor&, const OptionalTensor&,
                                                const OptionalTensor&, const Tensor&, const OptionalTensor&,
                                                std::string_view, double, SumsMask);
// grad_input and grad_residual.
using BackwardElementwiseResult = std::tuple<Tensor, Tensor>;
using BackwardElementwiseOperator = BackwardElementwiseResult(const Tensor&, const Tensor&,
                                                              const OptionalTensor&, const OptionalTensor&,
                                                              const OptionalTensor&, const OptionalTensor&,
                                                              const Tensor&, const OptionalTensor&,
                                                              const Tensor&, const Tensor&, std::string_view,
                                                              double, ElementwiseMask);

// Makes an operator's signature out of a function that takes a struct of arguments.
template <class Signature, auto function>
struct OneByOne;
template <class Result, class... Args, auto function>
struct OneByOne<Result(Args...), function> {
  static Result call(Args... args) { return function({args...}); }
};

}  // namespace fused_bn
