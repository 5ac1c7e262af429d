// The kernels for any processor: SSE2 on x86-64, NEON on aarch64.
#define FUSED_BN_VECTOR_BYTES 16
#include "cpu/kernels_impl.h"

namespace fused_bn::cpu {

const Kernels* kernels_default() {
  static const Kernels kernels{"default", run_any<ForwardParams>, run_any<BackwardParams>, merge_any};
  return &kernels;
}

}  // namespace fused_bn::cpu
