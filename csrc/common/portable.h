// Marks functions that both g++ and nvcc compile.
#pragma once

#if defined(__CUDACC__)
#define FUSED_BN_HOST_DEVICE __host__ __device__
#else
#define FUSED_BN_HOST_DEVICE
#endif
