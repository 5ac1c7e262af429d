// Everything that only a GPU can do. tests/simt/twin has the host's version.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "common/dtype.h"
#include "cuda/params.h"

#define FUSED_BN_DEVICE __device__ __forceinline__
#define FUSED_BN_UNROLL _Pragma("unroll")
#define FUSED_BN_PRAGMA(text) _Pragma(#text)
#define FUSED_BN_UNROLL_BY(count) FUSED_BN_PRAGMA(unroll(count))
#define FUSED_BN_ROLLED _Pragma("unroll 1")

namespace fused_bn::cuda {

struct alignas(16) Pack {
  uint32_t words[4];
};

// The architecture that nvcc compiles for: 90 is sm_90.
#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
constexpr int kArchitecture = 0;
#endif

FUSED_BN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
// Reads the index again: the compiler keeps nothing that depends on it in registers.
FUSED_BN_DEVICE int reread_thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
FUSED_BN_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
FUSED_BN_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }

FUSED_BN_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}
FUSED_BN_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

FUSED_BN_DEVICE void sync_block() { __syncthreads(); }
FUSED_BN_DEVICE bool any_in_block(bool condition) { return __syncthreads_or(condition) != 0; }

// All 32 lanes of the warp take part. A lane whose source is beyond the warp keeps its value.
template <class A>
FUSED_BN_DEVICE A shuffle_xor(A value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}
template <class A>
FUSED_BN_DEVICE A shuffle_down(A value, int distance) {
  return __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(distance));
}
template <class A>
FUSED_BN_DEVICE A shuffle_from(A value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
FUSED_BN_DEVICE uint32_t ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }

// Optimisation barriers: the compiler does not know that the result is the argument. Without one for a
// pointer, each access adds up all parts of its address in 64 bits; a value is computed again, not kept.
template <class P>
FUSED_BN_DEVICE P* optimisation_barrier(P* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}
template <class Raw>
FUSED_BN_DEVICE Raw optimisation_barrier(Raw raw) {
  if constexpr (std::is_same_v<Raw, int>) asm volatile("" : "+r"(raw));
  if constexpr (sizeof(Raw) == 16) {
    asm volatile("" : "+r"(raw.words[0]), "+r"(raw.words[1]), "+r"(raw.words[2]), "+r"(raw.words[3]));
  }
  return raw;
}

// ---- memory

// For memory that nothing writes while the kernel runs.
template <class Raw>
FUSED_BN_DEVICE Raw load_global(const void* address) {
  if constexpr (sizeof(Raw) == 16) {
    Raw raw;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(raw.words[0]), "=r"(raw.words[1]), "=r"(raw.words[2]), "=r"(raw.words[3])
                 : "l"(address));
    return raw;
  } else {
    return __ldg(static_cast<const Raw*>(address));
  }
}

template <class Raw>
FUSED_BN_DEVICE void store_global(void* address, const Raw& raw) {
  if constexpr (sizeof(Raw) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(address), "r"(raw.words[0]), "r"(raw.words[1]), "r"(raw.words[2]), "r"(raw.words[3])
                 : "memory");
  } else {
    *static_cast<Raw*>(address) = raw;
  }
}

// Starts a copy into shared memory. The calling thread sees it after wait_copies(), other threads of the
// block after the next sync_block().
FUSED_BN_DEVICE void copy_async(Pack* shared, const void* global) {
  if constexpr (kArchitecture >= 80) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(shared_address(shared)), "l"(global)
                 : "memory");
  } else {
    *shared = load_global<Pack>(global);
  }
}
FUSED_BN_DEVICE void wait_copies() {
  if constexpr (kArchitecture >= 80) asm volatile("cp.async.wait_all;" : : : "memory");
}

FUSED_BN_DEVICE Pack load_shared(const Pack* shared) {
  const uint4 all = *reinterpret_cast<const uint4*>(shared);
  return {{all.x, all.y, all.z, all.w}};
}

// Reads what another block of the launch wrote, bypassing L1, which is not coherent.
FUSED_BN_DEVICE Partial<float> load_result(const Partial<float>* address) {
  const float4 all = __ldcg(reinterpret_cast<const float4*>(address));
  return {all.x, all.y, all.z, all.w};
}
FUSED_BN_DEVICE Partial<double> load_result(const Partial<double>* address) {
  const auto* halves = reinterpret_cast<const double2*>(address);
  const double2 low = __ldcg(halves), high = __ldcg(halves + 1);
  return {low.x, low.y, high.x, high.y};
}

// Increments, or wraps to 0 at limit; returns the old count. Acquires and releases: accesses of earlier
// callers happen before later ones of this thread.
FUSED_BN_DEVICE uint32_t count_around(uint32_t* word, uint32_t limit) {
  __threadfence();
  const uint32_t before = atomicInc(word, limit);
  __threadfence();
  return before;
}

FUSED_BN_DEVICE void store_byte(uint8_t* address, uint32_t byte) { *address = static_cast<uint8_t>(byte); }
FUSED_BN_DEVICE void and_atomic(uint32_t* word, uint32_t bits) { atomicAnd(word, bits); }
FUSED_BN_DEVICE void or_atomic(uint32_t* word, uint32_t bits) { atomicOr(word, bits); }

// ---- words: one 16-byte access, so that values and epoch match (PTX ISA 8.4, sm_70 and later)

FUSED_BN_DEVICE Word load_word(const Word* address) {
  uint32_t a, b, c, d;
  asm volatile(
      "{\n"
      ".reg .b64 low, high;\n"
      ".reg .b128 all;\n"
      "ld.relaxed.gpu.global.b128 all, [%4];\n"
      "mov.b128 {low, high}, all;\n"
      "mov.b64 {%0, %1}, low;\n"
      "mov.b64 {%2, %3}, high;\n"
      "}"
      : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
      : "l"(address)
      : "memory");
  return {{__uint_as_float(a), __uint_as_float(b), __uint_as_float(c)}, d};
}

FUSED_BN_DEVICE void store_word(Word* address, const Word& word) {
  asm volatile(
      "{\n"
      ".reg .b64 low, high;\n"
      ".reg .b128 all;\n"
      "mov.b64 low, {%1, %2};\n"
      "mov.b64 high, {%3, %4};\n"
      "mov.b128 all, {low, high};\n"
      "st.relaxed.gpu.global.b128 [%0], all;\n"
      "}"
      :
      : "l"(address), "r"(__float_as_uint(word.values[0])), "r"(__float_as_uint(word.values[1])),
        "r"(__float_as_uint(word.values[2])), "r"(word.epoch)
      : "memory");
}

// Called between two reads of a word that has not arrived.
FUSED_BN_DEVICE void pause(const void*) {}

FUSED_BN_DEVICE uint32_t load_epoch(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
FUSED_BN_DEVICE void store_epoch(uint32_t* address, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" : : "l"(address), "r"(value) : "memory");
}

// ---- clusters, which no launch uses before sm_90

// One thread calls this before arrive_cluster(). The barrier completes when `bytes` bytes have been pushed.
FUSED_BN_DEVICE void init_barrier(uint64_t* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.init.shared.b64 [%0], 1;\n"
      "fence.mbarrier_init.release.cluster;\n"
      "mbarrier.arrive.expect_tx.relaxed.cta.shared.b64 _, [%0], %1;"
      :
      : "r"(shared_address(barrier)), "r"(bytes)
      : "memory");
#endif
}

// Together a barrier of all threads of the cluster, after which all blocks' barriers are initialised.
// Relaxed, because a release costs two MEMBARs before the first load.
FUSED_BN_DEVICE void arrive_cluster() {
  if constexpr (kArchitecture >= 90) asm volatile("barrier.cluster.arrive.relaxed.aligned;" : : : "memory");
}
FUSED_BN_DEVICE void wait_cluster() {
  if constexpr (kArchitecture >= 90) asm volatile("barrier.cluster.wait.aligned;" : : : "memory");
}

// Stores 16 bytes at `shared` in block `rank` of the cluster, and signals that block's barrier.
template <class Value>
FUSED_BN_DEVICE void push(const Value& value, void* shared, uint64_t* barrier, int rank) {
  static_assert(sizeof(Value) == 16);
#if __CUDA_ARCH__ >= 900
  uint32_t words[4], to, its_barrier;
  __builtin_memcpy(words, &value, sizeof value);
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(its_barrier)
               : "r"(shared_address(barrier)), "r"(rank));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
               :
               : "r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(its_barrier)
               : "memory");
#endif
}

// Waits for the first phase of the block's barrier, when all pushed bytes have arrived.
FUSED_BN_DEVICE void wait_barrier(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%1], 0;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier))
        : "memory");
  } while (done == 0);
#endif
}

// ---- programmatic dependent launch: the next kernel may start, and waits for this one's writes

FUSED_BN_DEVICE void launch_dependents() {
  if constexpr (kArchitecture >= 90) asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
}
FUSED_BN_DEVICE void wait_for_primary() {
  if constexpr (kArchitecture >= 90) asm volatile("griddepcontrol.wait;" : : : "memory");
}

// ---- arithmetic, rounded to nearest and never contracted

FUSED_BN_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FUSED_BN_DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
FUSED_BN_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
FUSED_BN_DEVICE double multiply(double a, double b) { return __dmul_rn(a, b); }
FUSED_BN_DEVICE float subtract(float a, float b) { return __fsub_rn(a, b); }
FUSED_BN_DEVICE double subtract(double a, double b) { return __dsub_rn(a, b); }
FUSED_BN_DEVICE double inverse_square_root(double a) { return rsqrt(a); }
FUSED_BN_DEVICE float square_root(float a) { return __fsqrt_rn(a); }
FUSED_BN_DEVICE double square_root(double a) { return sqrt(a); }
template <class A>
FUSED_BN_DEVICE bool is_finite(A a) {
  return isfinite(a);
}
// max(a, 0); NaN stays NaN.
FUSED_BN_DEVICE float relu(float a) {
#if __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(a));
  return result;
#else
  return a <= 0 ? 0.0f : a;
#endif
}
FUSED_BN_DEVICE double relu(double a) { return a <= 0 ? 0.0 : a; }

// Within 2 ulp, normal_cdf within 5: CUDA C++ Programming Guide, "Mathematical functions".
template <class T>
struct Math {
  using A = T;
  FUSED_BN_DEVICE static A exp(A a) { return ::exp(a); }
  FUSED_BN_DEVICE static A expm1(A a) { return ::expm1(a); }
  FUSED_BN_DEVICE static A log1p(A a) { return ::log1p(a); }
  FUSED_BN_DEVICE static A normal_cdf(A a) { return normcdf(a); }
};

// ---- elements

FUSED_BN_DEVICE float widen(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
FUSED_BN_DEVICE float widen(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
FUSED_BN_DEVICE float widen(float value) { return value; }
FUSED_BN_DEVICE double widen(double value) { return value; }

FUSED_BN_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
FUSED_BN_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

FUSED_BN_DEVICE void narrow(float value, Float16& result) {
  result.bits = __half_as_ushort(__float2half_rn(value));
}
FUSED_BN_DEVICE void narrow(float value, BFloat16& result) {
  result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
FUSED_BN_DEVICE void narrow(float value, float& result) { result = value; }
FUSED_BN_DEVICE void narrow(double value, double& result) { result = value; }

// Packs two elements of a half type. clamp: negative values become 0, NaN stays NaN (PTX ISA, "cvt").
template <class T, bool clamp>
FUSED_BN_DEVICE uint32_t narrow_pair(float low, float high) {
  uint32_t pair;
  [[maybe_unused]] constexpr bool bf16 = kDType<T> == DType::bf16;
#if __CUDA_ARCH__ >= 800
  if constexpr (bf16 && clamp) asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  if constexpr (bf16 && !clamp) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  if constexpr (!bf16 && clamp) asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  if constexpr (!bf16 && !clamp) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  T first, second;
  narrow(clamp ? relu(low) : low, first);
  narrow(clamp ? relu(high) : high, second);
  pair = first.bits | static_cast<uint32_t>(second.bits) << 16;
#endif
  return pair;
}

}  // namespace fused_bn::cuda
