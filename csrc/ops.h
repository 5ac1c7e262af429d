// Calls of the operators through the dispatcher, from the dispatch key that the caller has reached.
#pragma once

#include "args.h"

namespace fused_bn {

ForwardResult call_forward(const ForwardArguments& arguments);
Tensor call_inference(const InferenceArguments& arguments);
ElementwiseResult call_elementwise(const ElementwiseArguments& arguments);
BackwardResult call_backward(const BackwardArguments& arguments);
MergeResult call_merge(const MergeArguments& arguments);

}  // namespace fused_bn
