#include "cuda/launch_one_type.cuh"

namespace fused_bn::cuda {

template cudaError_t launch_one_type<float>(const Plan&, const ForwardParams&, cudaStream_t);
template cudaError_t launch_one_type<float>(const Plan&, const BackwardParams&, cudaStream_t);

int most_blocks_of_cluster(int limit) { return largest_cluster<float>(limit); }

}  // namespace fused_bn::cuda
