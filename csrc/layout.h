// The [N, C, S] view of a tensor, and the sizes and dtypes of what forward saves.
#pragma once

#include "args.h"
#include "common/view.h"

namespace fused_bn {

// The input is contiguous in the memory format that suggest_memory_format() returns.
View view_of(const Tensor& input);

// The dtype of the statistics, [3, C]: float32 for half types, else the input's.
at::ScalarType statistics_type(const Tensor& input);

// Whether forward writes a mask. Only backward with a residual needs one.
bool writes_mask(const OptionalTensor& residual, std::string_view activation, bool save_mask);
// The number of bytes of a mask that is written. It may be symbolic.
c10::SymInt mask_size(const Tensor& input);

// Whether forward copies the bias: where backward reads it only to compute the activation's mask again. The
// bias may then be written before backward, as with PyTorch's ReLU, which keeps its output.
bool copies_bias(const OptionalTensor& residual, const OptionalTensor& bias, std::string_view activation,
                 bool save_for_backward);

}  // namespace fused_bn
