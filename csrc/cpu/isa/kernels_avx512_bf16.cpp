// The kernels for x86-64 processors with AVX-512 that round to bfloat16 themselves.
#define FUSED_BN_VECTOR_BYTES 64
#define FUSED_BN_TARGET "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define FUSED_BN_NATIVE_BF16 1
#include "cpu/isa/begin.h"

namespace fused_bn::cpu {

const Kernels* kernels_avx512_bf16() { return compiled_kernels("avx512_bf16"); }

}  // namespace fused_bn::cpu

#include "cpu/isa/end.h"
