// The kernels for x86-64 processors with AVX-512.
#define FUSED_BN_VECTOR_BYTES 64
#define FUSED_BN_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fused_bn::cpu {

const Kernels* kernels_avx512() { return compiled_kernels("avx512"); }

}  // namespace fused_bn::cpu

#include "cpu/isa/end.h"
