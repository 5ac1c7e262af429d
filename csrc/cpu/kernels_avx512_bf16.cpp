// The kernels for x86-64 processors with AVX-512 that round to bfloat16 themselves.
//
// The shared headers come before the target is set: what they define must stay runnable on every processor.
#include "common/moments.h"
#include "cpu/kernels.h"
#include "cpu/standard_headers.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define FUSED_BN_VECTOR_BYTES 64
#define FUSED_BN_NATIVE_BF16 1
#include "cpu/kernels_impl.h"

namespace fused_bn::cpu {
namespace {

// Other dtypes gain nothing from the instruction.
void forward(const ForwardParams& p) {
  p.dtype == DType::bf16 ? run<BFloat16>(p) : kernels_avx512()->forward(p);
}

void backward(const BackwardParams& p) {
  p.dtype == DType::bf16 ? run<BFloat16>(p) : kernels_avx512()->backward(p);
}

void merge(const MergeParams& p) { kernels_avx512()->merge(p); }

}  // namespace

const Kernels* kernels_avx512_bf16() {
  static const Kernels kernels{"avx512_bf16", forward, backward, merge};
  return &kernels;
}

}  // namespace fused_bn::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

namespace fused_bn::cpu {

const Kernels* kernels_avx512_bf16() { return nullptr; }

}  // namespace fused_bn::cpu

#endif
