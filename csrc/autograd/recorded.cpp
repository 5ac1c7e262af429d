// Calls that PyTorch records or transforms rather than computes, in PyTorch's own operators. A saved trace
// then runs without this library, and passes that know batch_norm find it.
#include <ATen/FunctionalTensorWrapper.h>
#include <torch/library.h>

#include "autograd/counter.h"
#include "autograd/differentiable.h"
#include "ops.h"

namespace fused_bn {
namespace {

constexpr auto any_counter = with_any_counter<differentiable_forward>;
Tensor differentiable_inference(const InferenceArguments& a) {
  return differentiable_forward(a.as_forward());
}

void register_plain(torch::Library& m) {
  m.impl("batch_norm", OneByOne<UserOperator, any_counter>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, differentiable_inference>::call);
}

// Keeps the operator in a program that was exported with it, when a compiler functionalizes the program.
Tensor functional_inference(const InferenceArguments& a) {
  namespace impl = at::functionalization::impl;
  if (within_function_transform()) return differentiable_inference(a);
  const auto unwrapped = [](const auto& tensor) {
    impl::sync(tensor);
    return impl::from_functional_tensor(tensor, /*assert_functional=*/false);
  };
  const Tensor input = unwrapped(a.input);
  const OptionalTensor residual = unwrapped(a.residual), weight = unwrapped(a.weight),
                       bias = unwrapped(a.bias), mean = unwrapped(a.running_mean),
                       variance = unwrapped(a.running_var), slope = unwrapped(a.negative_slope);
  at::AutoDispatchSkipFunctionalize guard;
  return impl::to_functional_tensor(call_inference(
      {input, residual, weight, bias, mean, variance, a.eps, a.activation, a.activation_param, slope}));
}

}  // namespace

// torch.func.vmap
TORCH_LIBRARY_IMPL(fused_bn, FuncTorchBatchedDecomposition, m) { register_plain(m); }
// torch.func.functionalize
TORCH_LIBRARY_IMPL(fused_bn, Functionalize, m) {
  m.impl("batch_norm", OneByOne<UserOperator, any_counter>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, functional_inference>::call);
}
// torch.jit.trace, and torch.onnx.export(dynamo=False)
TORCH_LIBRARY_IMPL(fused_bn, Tracer, m) { register_plain(m); }

}  // namespace fused_bn
