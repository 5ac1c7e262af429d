// What an output of batch_norm was computed from. A node can save the recipe instead of the output, and
// compute the output again in backward. This takes one more pass over memory for each such output. See Pleiss
// et al. 2017, "Memory-efficient implementation of DenseNets", https://arxiv.org/abs/1707.06990.
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
  // Holds weak references to the input and the residual; keep() returns a recipe that keeps them alive.
  // Copies the parameters, because they may be written before the output is needed. Sharded parameters may be
  // freed and gathered again in that time.
  Recipe(const Tensor& input, const OptionalTensor& residual, const Tensor& weight, const Tensor& bias,
         const Tensor& negative_slope, const Tensor& statistics, Activation activation,
         double activation_param);

  // Returns a recipe that keeps the input and the residual alive. Returns nullopt if one of them was freed or
  // written since, or if hooks decide how tensors are saved.
  std::optional<c10::intrusive_ptr<Recipe>> keep() const;

  // Computes the output again, bit for bit. The recipe must come from keep(). Raises what backward raises if
  // the input or the residual was written since.
  Tensor compute() const;

  // Used by keep().
  Recipe(const Recipe& other, const Tensor& input, const Tensor& residual);

 private:
  // A weak reference to a tensor.
  struct Weak {
    explicit Weak(const Tensor& tensor);
    // Returns the tensor, or an undefined one if it was freed or written since.
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

// Returns the recipe of an output of batch_norm. Returns nullopt if the tensor is not such an output or was
// written since, or if hooks decide how tensors are saved.
std::optional<c10::intrusive_ptr<Recipe>> recipe_of(const Tensor& output, const OptionalTensor& residual);

}  // namespace fused_bn
