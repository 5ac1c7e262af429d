#include "autograd/recipe.h"

#include <ATen/ATen.h>
#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/variable.h>

#include "activation_names.h"
#include "autograd/batch_norm.h"
#include "autograd/saved.h"
#include "ops.h"

namespace fused_bn {
namespace {

OptionalTensor copy_of(const Tensor& parameter) {
  return parameter.defined() ? OptionalTensor(parameter.detach().clone()) : std::nullopt;
}

// Whether hooks (torch.utils.checkpoint, save_on_cpu, ...) take what is saved for backward.
bool saved_tensors_are_hooked() { return at::SavedTensorDefaultHooks::get_hooks().has_value(); }

}  // namespace

Recipe::Weak::Weak(const Tensor& tensor)
    : impl(tensor.getIntrusivePtr()),
      version(torch::autograd::impl::version_counter(tensor).current_version()) {}

Tensor Recipe::Weak::lock() const {
  auto strong = impl.lock();
  if (!strong) return {};
  Tensor tensor(std::move(strong));
  return torch::autograd::impl::version_counter(tensor).current_version() == version ? tensor : Tensor();
}

Recipe::Recipe(const Tensor& input, const OptionalTensor& residual, const Tensor& weight, const Tensor& bias,
               const Tensor& negative_slope, const Tensor& statistics, Activation activation,
               double activation_param)
    : input_(input),
      residual_(present(residual) ? std::optional<Weak>(*residual) : std::nullopt),
      weight_(copy_of(weight)),
      bias_(copy_of(bias)),
      negative_slope_(copy_of(negative_slope)),
      statistics_(statistics),
      activation_(activation_name(activation)),
      activation_param_(activation_param) {}

Recipe::Recipe(const Recipe& other, const Tensor& input, const Tensor& residual)
    : input_(other.input_),
      residual_(other.residual_),
      kept_input_(input, /*is_output=*/false),
      kept_residual_(residual, /*is_output=*/false),
      weight_(other.weight_),
      bias_(other.bias_),
      negative_slope_(other.negative_slope_),
      statistics_(other.statistics_),
      activation_(other.activation_),
      activation_param_(other.activation_param_) {}

std::optional<c10::intrusive_ptr<Recipe>> Recipe::keep() const {
  const Tensor input = input_.lock();
  const Tensor residual = residual_ ? residual_->lock() : Tensor();
  if (!input.defined() || (residual_ && !residual.defined()) || saved_tensors_are_hooked()) {
    return std::nullopt;
  }
  return c10::make_intrusive<Recipe>(*this, input, residual);
}

Tensor Recipe::compute() const {
  const Tensor input = kept_input_.unpack(), residual = kept_residual_.unpack();
  at::AutoDispatchBelowAutograd guard;
  return std::get<0>(call_elementwise({input, optional_from(residual), weight_, bias_, statistics_,
                                       activation_, activation_param_, negative_slope_}));
}

std::optional<c10::intrusive_ptr<Recipe>> recipe_of(const Tensor& output, const OptionalTensor& residual) {
  const auto grad_fn = output.grad_fn();
  auto* node = dynamic_cast<torch::autograd::CppNode<BatchNorm>*>(grad_fn.get());
  if (node == nullptr || output._version() != 0 || saved_tensors_are_hooked()) return std::nullopt;
  const auto saved = node->ctx_.get_saved_variables();
  const SavedOptions options(node->ctx_);
  TORCH_CHECK(options.packed.residual == present(residual), "fused_bn: the output was computed ",
              options.packed.residual ? "with" : "without", " a residual");
  return c10::make_intrusive<Recipe>(saved[BatchNorm::kInput], residual, saved[BatchNorm::kWeight],
                                     saved[BatchNorm::kBias], saved[BatchNorm::kNegativeSlope],
                                     saved[BatchNorm::kStatistics], options.packed.activation,
                                     options.activation_param);
}

}  // namespace fused_bn
