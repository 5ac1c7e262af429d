// Forward and backward in pieces, for statistics over several processes: what each of them computes by
// itself, before and behind what they tell each other.
//
//   forward:  moments of the own input -> gathered from all -> merge -> statistics -> elementwise
//   backward: sums over the own input -> added over all -> elementwise
//
// Elementwise forward is that of batch_norm.h. What processes tell each other is float64, two numbers a
// channel, and forward how many values of a channel there are.
#pragma once

#include "batch_norm.h"

namespace fused_bn {

// Moments of all processes, [P, 2 * C + 1]: mean, sum of squared deviations, count. Statistics and running
// statistics follow from them as from one batch.
struct MergeArguments {
  const Tensor& input;  // for its channels, dtype and device
  const Tensor& moments;
  const OptionalTensor& running_mean;
  const OptionalTensor& running_var;
  const OptionalTensor& num_batches_tracked;
  std::optional<double> momentum;
  double eps;

  // Training, which writes the same buffers.
  ForwardArguments as_forward() const;
};

// Which are wanted: of the sums' operator the gradients of weight, bias and negative_slope, of the
// elementwise one those of input and residual.
using SumsMask = std::array<bool, 3>;
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
  const Tensor& count;  // of values of a channel in all processes
  std::string_view activation;
  double activation_param;
  ElementwiseMask output_mask;

  BackwardArguments as_backward() const {
    return {*this, true, activation, activation_param, {output_mask[0], output_mask[1], false, false, false}};
  }
};

template <class Result>
using MergeSignature = Result(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                              const OptionalTensor&, std::optional<double>, double);
using MomentsOperator = Tensor(const Tensor&);
using MergeOperator = MergeSignature<std::tuple<Tensor, Tensor>>;  // statistics, count
// Sums, grad_weight, grad_bias, grad_negative_slope.
using BackwardSumsOperator = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const Tensor&, const OptionalTensor&, std::string_view, double, SumsMask);
// grad_input, grad_residual.
using BackwardElementwiseOperator = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&,
                                                               const OptionalTensor&, const OptionalTensor&,
                                                               const OptionalTensor&, const OptionalTensor&,
                                                               const Tensor&, const OptionalTensor&,
                                                               const Tensor&, const Tensor&, std::string_view,
                                                               double, ElementwiseMask);

void check_moments(const Tensor& input);
void check_sums(const Tensor& input, const Tensor& sums, const Tensor& count);
void check(const MergeArguments& arguments);
void check(const BackwardElementwiseArguments& arguments);

}  // namespace fused_bn
