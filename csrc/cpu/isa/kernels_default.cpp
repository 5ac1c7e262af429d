// The kernels for any processor: SSE2 on x86-64, NEON on aarch64.
#define FUSED_BN_VECTOR_BYTES 16
#include "cpu/isa/begin.h"

namespace fused_bn::cpu {

const Kernels* kernels_default() { return compiled_kernels("default"); }

}  // namespace fused_bn::cpu

#include "cpu/isa/end.h"
