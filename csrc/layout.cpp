#include "layout.h"

#include "activation_names.h"

namespace fused_bn {
namespace {

// The layout of the dense copy that kernels read. Where both layouts describe the same memory, the one with
// longer rows is returned.
Layout layout_of(const Tensor& input) {
  if (input.sym_numel() == input.sym_size(0) * input.sym_size(1)) return Layout::channels_last;
  if (input.sym_size(1) == 1) return Layout::channels_first;
  const bool first = input.suggest_memory_format() == at::MemoryFormat::Contiguous;
  return first ? Layout::channels_first : Layout::channels_last;
}

}  // namespace

View view_of(const Tensor& input) {
  const auto N = input.size(0), C = input.size(1);
  const auto S = input.numel() == 0 ? 0 : input.numel() / (N * C);
  return {N, C, S, layout_of(input)};
}

at::ScalarType statistics_type(const Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

bool writes_mask(const OptionalTensor& residual, std::string_view activation, bool save_mask) {
  return save_mask && present(residual) && needs_mask(activation_from_name(activation));
}

c10::SymInt mask_size(const Tensor& input) { return mask_bytes(input.sym_numel()); }

bool copies_bias(const OptionalTensor& residual, const OptionalTensor& bias, std::string_view activation,
                 bool save_for_backward) {
  return save_for_backward && present(bias) && !present(residual) &&
         needs_mask(activation_from_name(activation));
}

}  // namespace fused_bn
