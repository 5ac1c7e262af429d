// What an output of batch_norm was computed from. Whoever would keep the output for backward can keep this
// instead, and compute it again: one read and one write of a tensor for each that is not kept. Pleiss et al.
// 2017, "Memory-efficient implementation of DenseNets", https://arxiv.org/abs/1707.06990.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/custom_class.h>

#include <optional>
#include <string>

#include "args.h"
#include "common/activation.h"

namespace fused_bn {

class Recipe final : public torch::CustomClassHolder {
 public:
  // Input and residual are not kept alive until keep() says so. The parameters may be written, or freed and
  // gathered again as sharded ones are, before the output is needed: of their values there are copies.
  Recipe(const Tensor& input, const OptionalTensor& residual, const Tensor& weight, const Tensor& bias,
         const Tensor& negative_slope, const Tensor& statistics, Activation activation,
         double activation_param);

  // The same, but keeping what the output is computed from. None where that cannot be done: it is gone, or
  // was written since, or hooks decide how tensors are saved.
  std::optional<c10::intrusive_ptr<Recipe>> keep() const;

  // The output, bit for bit, of one that keeps what it needs. Raises, as backward does, where the input or
  // the residual was written since.
  Tensor compute() const;

  // Used by keep().
  Recipe(const Recipe& other, const Tensor& input, const Tensor& residual);

 private:
  // A tensor that is there as long as somebody else keeps it.
  struct Weak {
    explicit Weak(const Tensor& tensor);
    // Undefined where it is gone or was written.
    Tensor lock() const;

    c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl> impl;
    uint32_t version;
  };

  Weak input_;
  std::optional<Weak> residual_;
  torch::autograd::SavedVariable kept_input_, kept_residual_;
  OptionalTensor weight_, bias_, negative_slope_;
  Tensor statistics_;
  std::string activation_;
  double activation_param_;
};

// The recipe of an output of batch_norm. None where the tensor is no such output, was written since, or its
// node's saved tensors went to hooks.
std::optional<c10::intrusive_ptr<Recipe>> recipe_of(const Tensor& output, const OptionalTensor& residual);

}  // namespace fused_bn
