#include "cuda/host/kernels.cuh"

namespace fused_bn::cuda {

template Entry* entry_of<float>(Kernel, Direction, const Tiling&, Activation);

}  // namespace fused_bn::cuda
