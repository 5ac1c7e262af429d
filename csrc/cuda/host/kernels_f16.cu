#include "cuda/host/kernels.cuh"

namespace fused_bn::cuda {

template Entry* entry_of<Float16>(Kernel, Direction, const Tiling&, Activation);

}  // namespace fused_bn::cuda
