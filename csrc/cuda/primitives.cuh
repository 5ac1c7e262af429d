// Everything that only a GPU can do: indices, shuffles, barriers, clusters, cache-hinted loads, PTX. The
// kernels are written against this file alone, and tests/simt has its twin for the host, under the same path.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/dtype.h"

#define FUSED_BN_DEVICE __device__ __forceinline__
#define FUSED_BN_UNROLL _Pragma("unroll")
#define FUSED_BN_ROLLED _Pragma("unroll 1")

namespace fused_bn::cuda {

struct alignas(16) Pack {
  uint32_t words[4];
};

FUSED_BN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FUSED_BN_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
FUSED_BN_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }

// The block's dynamic shared memory.
FUSED_BN_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

FUSED_BN_DEVICE void sync_block() { __syncthreads(); }
FUSED_BN_DEVICE bool any_in_block(bool condition) { return __syncthreads_or(condition) != 0; }

// All 32 lanes of the warp take part.
template <class A>
FUSED_BN_DEVICE A shuffle_xor(A value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

// Hides from the compiler that a value is still the same: else it keeps what it has computed from it,
// unpacked elements or addresses, in registers that are needed for better things, rather than compute it
// again.
FUSED_BN_DEVICE void forget(Pack& p) {
  asm volatile("" : "+r"(p.words[0]), "+r"(p.words[1]), "+r"(p.words[2]), "+r"(p.words[3]));
}
FUSED_BN_DEVICE void forget(int& value) { asm volatile("" : "+r"(value)); }

// ---- loads and stores. `last`: nobody reads these bytes again, so that they need not stay in a cache.

template <bool last>
FUSED_BN_DEVICE Pack load_pack(const void* address) {
  Pack p;
  if constexpr (last) {
#if __CUDA_ARCH__ >= 800
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(p.words[0]), "=r"(p.words[1]), "=r"(p.words[2]), "=r"(p.words[3])
        : "l"(address), "l"(policy));
#else
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(p.words[0]), "=r"(p.words[1]), "=r"(p.words[2]), "=r"(p.words[3])
        : "l"(address));
#endif
  } else {
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(p.words[0]), "=r"(p.words[1]), "=r"(p.words[2]), "=r"(p.words[3])
        : "l"(address));
  }
  return p;
}

// Evicted first: the output has no second reader here.
FUSED_BN_DEVICE void store_pack(void* address, const Pack& p) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(address), "r"(p.words[0]), "r"(p.words[1]), "r"(p.words[2]), "r"(p.words[3])
               : "memory");
}

// Starts a copy into shared memory that wait_copies() waits for; only the calling thread may read it.
FUSED_BN_DEVICE void copy_async(Pack* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(global)
               : "memory");
#else
  *shared = load_pack<true>(global);
#endif
}

FUSED_BN_DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

// ---- across blocks

// What another block wrote: past the first-level cache, which is not coherent.
template <class A>
FUSED_BN_DEVICE A load_shared_result(const A* address) {
  return __ldcg(address);
}
template <class A>
FUSED_BN_DEVICE void store_shared_result(A* address, A value) {
  __stcg(address, value);
}

// Adds and returns what was there. All that the calling thread has seen happens before it, for whoever sees
// the sum.
FUSED_BN_DEVICE uint32_t add_release(uint32_t* word, uint32_t value) {
  __threadfence();
  return atomicAdd(word, value);
}

// Waits until the word's highest bit differs from that of `before`; what its writers have seen is seen then.
FUSED_BN_DEVICE void wait_flip(const uint32_t* word, uint32_t before) {
  uint32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word) : "memory");
  } while (((now ^ before) & 0x80000000u) == 0);
}

// Counts up to limit, then starts again from 0; returns the count before. What those who counted earlier have
// read and written lies before what the calling thread does next.
FUSED_BN_DEVICE uint32_t count_around(uint32_t* word, uint32_t limit) {
  __threadfence();
  const uint32_t before = atomicInc(word, limit);
  __threadfence();
  return before;
}

// A barrier of all threads of a cluster; shared memory written before it is seen after it.
FUSED_BN_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;"
      :
      :
      : "memory");
#else
  __trap();  // no launch asks for clusters here
#endif
}

// The value at the same place in the shared memory of another block of the cluster.
template <class A>
FUSED_BN_DEVICE A load_from_cluster(const A* shared, int rank) {
  A value{};
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(rank));
  if constexpr (sizeof(A) == 4) {
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  } else {
    asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(value) : "r"(address) : "memory");
  }
#else
  __trap();
#endif
  return value;
}

// ---- arithmetic, rounded to nearest and never contracted

FUSED_BN_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FUSED_BN_DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
FUSED_BN_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
FUSED_BN_DEVICE double multiply(double a, double b) { return __dmul_rn(a, b); }
FUSED_BN_DEVICE float subtract(float a, float b) { return __fsub_rn(a, b); }
FUSED_BN_DEVICE double subtract(double a, double b) { return __dsub_rn(a, b); }
// About 1 / a: within two units in the last place.
FUSED_BN_DEVICE float reciprocal(float a) { return __fdividef(1.0f, a); }
FUSED_BN_DEVICE double reciprocal(double a) { return 1.0 / a; }
FUSED_BN_DEVICE double inverse_square_root(double a) { return rsqrt(a); }
template <class A>
FUSED_BN_DEVICE bool is_finite(A a) {
  return isfinite(a);
}

// What activations need, for common/activation.h. Within 2 units in the last place, normal_cdf 5: CUDA C++
// Programming Guide, "Mathematical functions".
template <class T>
struct Math;
template <>
struct Math<float> {
  using A = float;
  FUSED_BN_DEVICE static float exp(float a) { return expf(a); }
  FUSED_BN_DEVICE static float expm1(float a) { return expm1f(a); }
  FUSED_BN_DEVICE static float normal_cdf(float a) { return normcdff(a); }
};
template <>
struct Math<double> {
  using A = double;
  FUSED_BN_DEVICE static double exp(double a) { return ::exp(a); }
  FUSED_BN_DEVICE static double expm1(double a) { return ::expm1(a); }
  FUSED_BN_DEVICE static double normal_cdf(double a) { return normcdf(a); }
};

FUSED_BN_DEVICE float widen(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
FUSED_BN_DEVICE float widen(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
FUSED_BN_DEVICE float widen(float value) { return value; }
FUSED_BN_DEVICE double widen(double value) { return value; }

FUSED_BN_DEVICE void narrow(float value, Float16& result) {
  result.bits = __half_as_ushort(__float2half_rn(value));
}
FUSED_BN_DEVICE void narrow(float value, BFloat16& result) {
  result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
FUSED_BN_DEVICE void narrow(float value, float& result) { result = value; }
FUSED_BN_DEVICE void narrow(double value, double& result) { result = value; }

}  // namespace fused_bn::cuda
