// Sizes are read as SymInts, so that the Meta kernels can check too.
#include "checks.h"

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>

#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include "activation_names.h"
#include "layout.h"

namespace fused_bn {
namespace {

struct Named {
  const char* name;
  const OptionalTensor& tensor;
};

// Not isReducedFloatingType, which 8-bit types satisfy too.
bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

void check_channel_vector(const Tensor& input, const Named& vector) {
  if (!present(vector.tensor)) return;
  const Tensor& tensor = *vector.tensor;
  const c10::SymInt C = input.sym_size(1);
  TORCH_SYM_CHECK(tensor.sym_numel().sym_eq(C), vector.name, " should contain ", C, " elements not ",
                  tensor.sym_numel());
  TORCH_CHECK(tensor.dim() == 1, "fused_bn: expected ", vector.name, " of shape (", C, "), but got ",
              tensor.sym_sizes());
  TORCH_CHECK(tensor.device() == input.device(), "fused_bn: ", vector.name, " is on ", tensor.device(),
              ", but the input is on ", input.device());
  const auto type = tensor.scalar_type();
  TORCH_CHECK(type == input.scalar_type() || type == statistics_type(input),
              "fused_bn: mixed dtype: an input of ", toString(input.scalar_type()), " takes ", vector.name,
              " of ", toString(statistics_type(input)),
              is_half(input.scalar_type()) ? " or of its own dtype" : "", ", but got ", toString(type));
}

// False for the tensors of a Meta kernel.
bool has_memory(const Tensor& tensor) {
  return !tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides() && tensor.has_storage() &&
         tensor.storage().data() != nullptr;
}

// As Python prints it: the shortest digits that give the same double, never without a point or an exponent.
std::string python_float(double value) {
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.begin(), digits.end(), value).ptr;
  const std::string text(digits.begin(), end);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

void check_training_eps(double eps) {
  TORCH_CHECK_VALUE(eps > 0, "batch_norm eps must be positive during training, but got ", python_float(eps));
}

void check_scalars(const ForwardArguments& a) {
  const auto& input = a.input;
  if (a.training) {
    c10::SymInt values = input.sym_size(0);
    for (int64_t d = 2; d < input.dim(); ++d) values = values * input.sym_size(d);
    TORCH_CHECK_VALUE(values != 1,
                      "Expected more than 1 value per channel when training, got input size torch.Size(",
                      input.sym_sizes(), ")");
    check_training_eps(a.eps);
  } else {
    TORCH_CHECK_VALUE(a.eps >= 0, "batch_norm eps must be non-negative, but got ", python_float(a.eps));
  }
}

// Of the input's shape, dtype and device.
void check_like_input(const Tensor& input, const char* name, const Tensor& tensor) {
  TORCH_CHECK(tensor.layout() == at::kStrided, "fused_bn: expected a strided ", name, ", but got layout ",
              tensor.layout());
  TORCH_CHECK(tensor.sym_sizes() == input.sym_sizes(), "fused_bn: ", name, " has shape ", tensor.sym_sizes(),
              ", but the input has ", input.sym_sizes());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "fused_bn: ", name, " is of ",
              toString(tensor.scalar_type()), ", but the input is of ", toString(input.scalar_type()));
  TORCH_CHECK(tensor.device() == input.device(), "fused_bn: ", name, " is on ", tensor.device(),
              ", but the input is on ", input.device());
}

// Half types compute in float.
void check_activation(const Tensor& input, std::string_view activation, double param,
                      const OptionalTensor& negative_slope) {
  const Activation known = activation_from_name(activation);
  TORCH_CHECK(present(negative_slope) == (known == Activation::prelu),
              "fused_bn: negative_slope must be given with prelu and with no other activation, but got ",
              activation, present(negative_slope) ? " with" : " without", " one");
  check_channel_vector(input, {"negative_slope", negative_slope});
  TORCH_CHECK_VALUE(std::isfinite(param), "activation_param must be a finite number, but got ",
                    python_float(param));
  TORCH_CHECK(input.scalar_type() == at::kDouble || std::isfinite(static_cast<float>(param)),
              "activation_param cannot be converted to type float without overflow: it is ",
              python_float(param));
  const bool zero = input.scalar_type() == at::kDouble ? param == 0 : static_cast<float>(param) == 0;
  TORCH_CHECK_VALUE(known != Activation::softplus || !zero,
                    "activation_param of softplus is divided by and must not be 0, but got ",
                    python_float(param));
}

// The buffers are written while threads read the other tensors, each value once: none may share memory.
void check_written_memory(const ForwardArguments& a) {
  const OptionalTensor input(a.input);
  const std::array<Named, 7> all{Named{"running_mean", a.running_mean},
                                 Named{"running_var", a.running_var},
                                 Named{"weight", a.weight},
                                 Named{"bias", a.bias},
                                 Named{"negative_slope", a.negative_slope},
                                 Named{"the input", input},
                                 Named{"the residual", a.residual}};
  for (size_t written = 0; written < 2; ++written) {
    const auto& [name, buffer] = all[written];
    if (!present(buffer) || !has_memory(*buffer)) continue;
    TORCH_CHECK(at::has_internal_overlap(*buffer) != at::MemOverlap::Yes, "fused_bn: elements of ", name,
                " share memory, and training writes to them: clone() it");
    for (size_t other = written + 1; other < all.size(); ++other) {
      if (!present(all[other].tensor) || !has_memory(*all[other].tensor)) continue;
      const auto overlap = at::get_overlap_status(*buffer, *all[other].tensor);
      TORCH_CHECK(overlap != at::MemOverlapStatus::Full && overlap != at::MemOverlapStatus::Partial,
                  "fused_bn: ", name, " and ", all[other].name,
                  " share memory, and training writes to the first: clone() one of them");
    }
  }
}

// The running statistics and their counter.
void check_buffers(const ForwardArguments& a) {
  TORCH_CHECK_VALUE(present(a.running_mean) == present(a.running_var) || !a.training,
                    "running_mean and running_var must either both be None or neither be None");
  TORCH_CHECK(a.training || present(a.running_mean), "running_mean must be defined in evaluation mode");
  TORCH_CHECK(a.training || present(a.running_var), "running_var must be defined in evaluation mode");
  check_channel_vector(a.input, {"running_mean", a.running_mean});
  check_channel_vector(a.input, {"running_var", a.running_var});
  if (present(a.num_batches_tracked)) {
    const Tensor& counter = *a.num_batches_tracked;
    TORCH_CHECK(counter.scalar_type() == at::kLong && counter.sym_numel() == 1,
                "fused_bn: num_batches_tracked should be one int64, but got ", counter.sym_numel(),
                " element(s) of ", toString(counter.scalar_type()));
    TORCH_CHECK(counter.device() == a.input.device(), "fused_bn: num_batches_tracked is on ",
                counter.device(), ", but the input is on ", a.input.device());
  }
  if (a.training) check_written_memory(a);
}

// [3, C], as forward returns them.
void check_statistics(const Tensor& input, const Tensor& statistics) {
  const std::array<c10::SymInt, 2> expected{3, input.sym_size(1)};
  TORCH_CHECK(statistics.sym_sizes() == c10::SymIntArrayRef(expected),
              "fused_bn: statistics should have shape ", c10::SymIntArrayRef(expected), ", but have ",
              statistics.sym_sizes());
  TORCH_CHECK(statistics.scalar_type() == statistics_type(input), "fused_bn: statistics should be of ",
              toString(statistics_type(input)), ", but are of ", toString(statistics.scalar_type()));
  TORCH_CHECK(statistics.device() == input.device(), "fused_bn: statistics are on ", statistics.device(),
              ", but the input is on ", input.device());
}

// What processes tell each other: float64, its last dimension of this length.
void check_message(const Tensor& input, const char* name, const Tensor& message, int64_t dimensions,
                   const c10::SymInt& length) {
  TORCH_CHECK(message.dim() == dimensions && (dimensions == 0 || message.sym_size(-1) == length),
              "fused_bn: ", name, " should have ", dimensions, " dimensions, the last of ", length,
              ", but have shape ", message.sym_sizes());
  TORCH_CHECK(message.scalar_type() == at::kDouble, "fused_bn: ", name, " should be of Double, but are of ",
              toString(message.scalar_type()));
  TORCH_CHECK(message.device() == input.device(), "fused_bn: ", name, " are on ", message.device(),
              ", but the input is on ", input.device());
}

}  // namespace

void check(const Tensor& input) {
  const auto type = input.scalar_type();
  TORCH_CHECK(input.layout() == at::kStrided, "fused_bn: expected a strided input, but got layout ",
              input.layout());
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kFloat || type == at::kDouble || is_half(type),
                              "\"batch_norm\" not implemented for '", toString(type), "'");
  TORCH_CHECK(input.dim() >= 2, "fused_bn: expected an input of shape (N, C, *), but got ", input.dim(),
              " dimension(s)");
}

void check(const ForwardArguments& a) {
  check(a.input);
  check_activation(a.input, a.activation, a.activation_param, a.negative_slope);
  if (present(a.residual)) check_like_input(a.input, "the residual", *a.residual);
  check_scalars(a);
  check_buffers(a);
  check_channel_vector(a.input, {"weight", a.weight});
  check_channel_vector(a.input, {"bias", a.bias});
}

void check_elementwise(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
                       const OptionalTensor& bias, std::string_view activation, double activation_param,
                       const OptionalTensor& negative_slope) {
  check(input);
  check_activation(input, activation, activation_param, negative_slope);
  if (present(residual)) check_like_input(input, "the residual", *residual);
  check_channel_vector(input, {"weight", weight});
  check_channel_vector(input, {"bias", bias});
}

void check(const ElementwiseArguments& a) {
  check_elementwise(a.input, a.residual, a.weight, a.bias, a.activation, a.activation_param,
                    a.negative_slope);
  check_statistics(a.input, a.statistics);
}

void check(const BackwardArguments& a) {
  check(a.input);
  check_activation(a.input, a.activation, a.activation_param, a.negative_slope);
  check_like_input(a.input, "grad_output", a.grad_output);
  check_channel_vector(a.input, {"weight", a.weight});
  check_channel_vector(a.input, {"bias", a.bias});
  check_statistics(a.input, a.statistics);
  const bool by_mask = has_two_slopes(activation_from_name(a.activation));
  if (present(a.residual)) {
    TORCH_CHECK(!by_mask, "fused_bn: backward of '", a.activation,
                "' takes forward's mask, not the residual");
    check_like_input(a.input, "the residual", *a.residual);
  }
  if (present(a.mask)) {
    TORCH_CHECK(by_mask, "fused_bn: backward of '", a.activation, "' takes the residual, not a mask");
    TORCH_CHECK(
        a.mask->scalar_type() == at::kByte && a.mask->dim() == 1 && a.mask->sym_numel() == mask_size(a.input),
        "fused_bn: the mask should be uint8 of shape [", mask_size(a.input), "], but is of ",
        toString(a.mask->scalar_type()), " and shape ", a.mask->sym_sizes());
    TORCH_CHECK(a.mask->device() == a.input.device(), "fused_bn: the mask is on ", a.mask->device(),
                ", but the input is on ", a.input.device());
  }
}

void check(const MergeArguments& a) {
  check(a.input);
  check_training_eps(a.eps);
  check_buffers(a.as_forward());
  check_message(a.input, "moments", a.moments, 2, 2 * a.input.sym_size(1) + 1);
}

void check(const BackwardElementwiseArguments& a) {
  check(a.as_backward());
  check_message(a.input, "sums", a.sums, 1, 2 * a.input.sym_size(1));
  check_message(a.input, "count", a.count, 0, 1);
}

}  // namespace fused_bn
