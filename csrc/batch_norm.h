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

inline const OptionalTensor kAbsent;

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
  const OptionalTensor& negative_slope = kAbsent;  // prelu's, [C]
  bool save_for_backward = false;                  // the mask, and a copy of the bias
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
  const OptionalTensor& negative_slope;

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
  const OptionalTensor& negative_slope;
  bool save_mask = false;

  // Evaluation without running statistics, which leaves statistics that are there as they are.
  ForwardArguments as_forward() const;
};

// Which gradients are wanted: of input, residual, weight, bias and negative_slope.
using OutputMask = std::array<bool, 5>;

// What backward reads, the gradient and what forward saved.
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

// As operators take and return them: one by one.
template <class Result, class... More>
using ForwardSignature = Result(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                const OptionalTensor&, bool, std::optional<double>, double, std::string_view,
                                double, const OptionalTensor&, More...);
using InferenceOperator = Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, double,
                                 std::string_view, double, const OptionalTensor&);
template <class Result, class... More>
using ElementwiseSignature = Result(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                    const OptionalTensor&, const Tensor&, std::string_view, double,
                                    const OptionalTensor&, More...);
template <class Result>
using BackwardSignature = Result(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 const OptionalTensor&, const OptionalTensor&, const Tensor&,
                                 const OptionalTensor&, bool, std::string_view, double, OutputMask);

// Of the operators that devices have kernels for. Forward returns output, statistics, mask and the copy of
// the bias, which is undefined where none is needed; elementwise forward output and mask.
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using ForwardOperator = ForwardSignature<ForwardResult, /*save_for_backward*/ bool>;
using ElementwiseOperator = ElementwiseSignature<std::tuple<Tensor, Tensor>, /*save_mask*/ bool>;
// The gradients of input, residual, weight, bias and negative_slope. The last is undefined where there is no
// slope.
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardOperator = BackwardSignature<BackwardResult>;

// From a function that takes a struct of arguments to one that takes them one by one.
template <class Signature, auto function>
struct OneByOne;
template <class Result, class... Args, auto function>
struct OneByOne<Result(Args...), function> {
  static Result call(Args... args) { return function({args...}); }
};

// The operators, from the keys on that the dispatcher is at.
Tensor call_inference(const InferenceArguments& arguments);
BackwardResult call_backward(const BackwardArguments& arguments);

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
// Whether forward copies the bias: where backward needs it only to find again which elements passed. The bias
// may then be written before backward, as with PyTorch's ReLU, which keeps its output.
bool copies_bias(const OptionalTensor& residual, const OptionalTensor& bias, std::string_view activation,
                 bool save_for_backward);

}  // namespace fused_bn
