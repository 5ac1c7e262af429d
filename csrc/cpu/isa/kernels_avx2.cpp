// The kernels for x86-64 processors with AVX2.
#define FUSED_BN_VECTOR_BYTES 32
#define FUSED_BN_TARGET "avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fused_bn::cpu {

const Kernels* kernels_avx2() { return compiled_kernels("avx2"); }

}  // namespace fused_bn::cpu

#include "cpu/isa/end.h"
