// Views that are negated when read (Tensor._neg_view()). PyTorch's own fallback gives an operator a copy of a
// buffer that it writes, and asserts when the result does not come back: here that is refused before anything
// is written.
#include <ATen/ATen.h>
#include <torch/library.h>

namespace fused_bn {
namespace {

bool writes(const c10::FunctionSchema& schema, at::ArrayRef<c10::IValue> values) {
  const auto training = schema.argumentIndexWithName("training");
  return !training.has_value() || values[*training].toBool();
}

void resolve(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  c10::IValue* const values = stack->data() + (stack->size() - arguments.size());
  const bool training = writes(op.schema(), at::ArrayRef<c10::IValue>(values, arguments.size()));
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!values[i].isTensor() || !values[i].toTensor().is_neg()) continue;
    const bool written =
        training && arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite();
    TORCH_CHECK(!written, "fused_bn: ", arguments[i].name(),
                " is a view that is negated when read, and training writes to it: resolve_neg() it");
    values[i] = values[i].toTensor().resolve_neg();
  }
  constexpr c10::DispatchKeySet after(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Negative);
  op.redispatchBoxed(keys & after, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(fused_bn, Negative, m) {
  for (const char* op : {"batch_norm", "batch_norm_inference", "batch_norm_forward", "batch_norm_merge"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&resolve>());
  }
}

}  // namespace fused_bn
