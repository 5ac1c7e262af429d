// The kernels for x86-64 processors with AVX-512.
//
// The shared headers come before the target is set: what they define must stay runnable on every processor.
#include "common/moments.h"
#include "cpu/kernels.h"
#include "cpu/standard_headers.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define FUSED_BN_VECTOR_BYTES 64
#include "cpu/kernels_impl.h"

namespace fused_bn::cpu {

const Kernels* kernels_avx512() {
  static const Kernels kernels{"avx512", run_any<ForwardParams>, run_any<BackwardParams>, merge_any};
  return &kernels;
}

}  // namespace fused_bn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace fused_bn::cpu {

const Kernels* kernels_avx512() { return nullptr; }

}  // namespace fused_bn::cpu

#endif
