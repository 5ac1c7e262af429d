#include "cuda/host/kernels.cuh"

template const void* fused_bn::cuda::kernel_of<fused_bn::BFloat16>(Kernel, const Problem&, const Tiling&);
