#include "cuda/launch_one_type.cuh"

namespace fused_bn::cuda {

template cudaError_t launch_one_type<BFloat16>(const Plan&, const ForwardParams&, cudaStream_t);
template cudaError_t launch_one_type<BFloat16>(const Plan&, const BackwardParams&, cudaStream_t);

}  // namespace fused_bn::cuda
