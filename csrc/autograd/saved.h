// What the autograd nodes of forward and of backward save besides tensors.
#pragma once

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>

#include "activation_names.h"
#include "args.h"

namespace fused_bn {

inline OptionalTensor optional_from(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

struct SavedOptions {
  // One integer for all of them, because each entry of saved_data takes an insertion into a hash map.
  struct Packed {
    Activation activation;
    at::MemoryFormat format;  // of the input
    bool residual;
    bool training;
    int32_t unused;
  } packed;
  double activation_param;

  template <class Arguments>
  static void save(torch::autograd::AutogradContext& context, const Arguments& a) {
    const Packed packed{activation_from_name(a.activation), a.input.suggest_memory_format(),
                        present(a.residual), a.training, 0};
    int64_t integer;
    static_assert(sizeof packed == sizeof integer);
    std::memcpy(&integer, &packed, sizeof integer);
    context.saved_data["options"] = integer;
    context.saved_data["activation_param"] = a.activation_param;
  }

  explicit SavedOptions(torch::autograd::AutogradContext& context) {
    const int64_t integer = context.saved_data["options"].toInt();
    std::memcpy(&packed, &integer, sizeof packed);
    activation_param = context.saved_data["activation_param"].toDouble();
  }

  // Returns the input, through which gradients flow, in the memory format that forward saw: the bits of a
  // mask lie in that order, and hooks on saved tensors may have changed it.
  Tensor in_order_of(const Tensor& mask, const Tensor& input) const {
    const c10::AutoGradMode enable(true);
    return mask.defined() ? input.contiguous(packed.format) : input;
  }
};

}  // namespace fused_bn
