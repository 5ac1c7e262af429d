#include "cuda/host/kernels.cuh"

template const void* fused_bn::cuda::kernel_of<double>(Kernel, const Problem&, const Tiling&);
