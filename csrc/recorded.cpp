// Calls that PyTorch records or transforms rather than computes, in PyTorch's own operators. A saved trace
// then runs without this library, and passes that know batch_norm find it.
#include <torch/library.h>

#include "counter.h"
#include "differentiable.h"

namespace fused_bn {
namespace {

constexpr auto any_counter = with_any_counter<differentiable_forward>;
Tensor differentiable_inference(const InferenceArguments& a) {
  return differentiable_forward(a.as_forward());
}

void register_plain(torch::Library& m) {
  m.impl("batch_norm", OneByOne<ForwardSignature<Tensor>, any_counter>::call);
  m.impl("batch_norm_inference", OneByOne<InferenceOperator, differentiable_inference>::call);
}

}  // namespace

// torch.func.vmap
TORCH_LIBRARY_IMPL(fused_bn, FuncTorchBatchedDecomposition, m) { register_plain(m); }
// torch.func.functionalize
TORCH_LIBRARY_IMPL(fused_bn, Functionalize, m) { register_plain(m); }
// torch.jit.trace, and torch.onnx.export(dynamo=False)
TORCH_LIBRARY_IMPL(fused_bn, Tracer, m) { register_plain(m); }

}  // namespace fused_bn
