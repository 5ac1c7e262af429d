// Vectors of the target's instruction set: loads, stores and conversions.
//
// Everything here and in the kernel headers has internal linkage, because each isa/kernels_*.cpp compiles it
// for another instruction set: a shared inline function could run one processor's instructions on another.
// The including file defines FUSED_BN_VECTOR_BYTES, 64 (AVX-512), 32 (AVX2) or 16 (SSE2, NEON, any other),
// and FUSED_BN_NATIVE_BF16 if AVX-512 has instructions for bfloat16.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if FUSED_BN_VECTOR_BYTES >= 32
#pragma GCC diagnostic push
// GCC bug 105593: false alarms in these headers up to GCC 12.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/dtype.h"

#define FUSED_BN_INLINE inline __attribute__((always_inline))

namespace fused_bn::cpu {
namespace {

constexpr int kVectorBytes = FUSED_BN_VECTOR_BYTES;

template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class E, int lanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(lanes * sizeof(E))));
};
template <class A>
using Vec = typename VectorOf<A, kLanes<A>>::type;

// The active lanes of a vector: all of them, or the first few in the last vector of a row.
struct Whole {};
struct First {
  int count;
};

template <class A>
FUSED_BN_INLINE Vec<A> broadcast(A value) {
  return Vec<A>{} + value;
}

FUSED_BN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if FUSED_BN_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FUSED_BN_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

FUSED_BN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if FUSED_BN_VECTOR_BYTES == 64
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif FUSED_BN_VECTOR_BYTES == 32
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

template <class A>
FUSED_BN_INLINE Vec<A> keep(Vec<A> v, Vec<A>, Whole) {
  return v;
}

// Returns `other` in inactive lanes.
template <class A>
FUSED_BN_INLINE Vec<A> keep(Vec<A> v, Vec<A> other, First first) {
  using Index = typename VectorOf<int32_t, kLanes<A>>::type;
  using Wide = decltype(v < v);
  Index lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = i;
  const auto taken = __builtin_convertvector(lane < first.count, Wide);
  return taken ? v : other;
}

// ---- 16-bit types: kLanes<float> of them make one Vec<float> ------------------------------------------

using Bits16 = typename VectorOf<uint16_t, kLanes<float>>::type;
using Bits32 = typename VectorOf<uint32_t, kLanes<float>>::type;

FUSED_BN_INLINE Vec<float> widen(Bits16 bits, BFloat16*) {
#if FUSED_BN_VECTOR_BYTES == 64
  return (Vec<float>)((Bits32)_mm512_cvtepu16_epi32((__m256i)bits) << 16);
#elif FUSED_BN_VECTOR_BYTES == 32
  return (Vec<float>)((Bits32)_mm256_cvtepu16_epi32((__m128i)bits) << 16);
#else
  return (Vec<float>)(__builtin_convertvector(bits, Bits32) << 16);
#endif
}

// Rounds to nearest even; NaN stays a quiet NaN. The instruction would flush subnormal numbers to 0.
FUSED_BN_INLINE Bits16 narrow(Vec<float> v, BFloat16*) {
#if FUSED_BN_NATIVE_BF16
  constexpr int subnormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, subnormal) == 0, 1)) {
    return (Bits16)_mm512_cvtneps_pbh((__m512)v);
  }
#endif
  const Bits32 bits = (Bits32)v;
  const Bits32 rounded = bits + (0x7fffu + ((bits >> 16) & 1u));
  const Bits32 result = (v == v ? rounded : bits | 0x400000u) >> 16;
#if FUSED_BN_VECTOR_BYTES == 64
  return (Bits16)_mm512_cvtepi32_epi16((__m512i)result);
#else
  return __builtin_convertvector(result, Bits16);
#endif
}

#if FUSED_BN_VECTOR_BYTES == 64
FUSED_BN_INLINE Vec<float> widen(Bits16 bits, Float16*) { return (Vec<float>)_mm512_cvtph_ps((__m256i)bits); }
FUSED_BN_INLINE Bits16 narrow(Vec<float> v, Float16*) {
  return (Bits16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif FUSED_BN_VECTOR_BYTES == 32
FUSED_BN_INLINE Vec<float> widen(Bits16 bits, Float16*) { return (Vec<float>)_mm256_cvtph_ps((__m128i)bits); }
FUSED_BN_INLINE Bits16 narrow(Vec<float> v, Float16*) {
  return (Bits16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__aarch64__)
FUSED_BN_INLINE Vec<float> widen(Bits16 bits, Float16*) {
  return (Vec<float>)vcvt_f32_f16((float16x4_t)bits);
}
FUSED_BN_INLINE Bits16 narrow(Vec<float> v, Float16*) { return (Bits16)vcvt_f16_f32((float32x4_t)v); }
#else
// Without conversion instructions: shifts exponent and mantissa into place; a multiplication by a power of
// two corrects the exponent bias, also of subnormal numbers.
FUSED_BN_INLINE Vec<float> widen(Bits16 bits, Float16*) {
  const Bits32 wide = __builtin_convertvector(bits, Bits32);
  const Bits32 magnitude = (wide & 0x7fffu) << 13;
  const Bits32 finite = (Bits32)((Vec<float>)magnitude * 0x1p112f);
  return (Vec<float>)((wide & 0x8000u) << 16 | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
}
FUSED_BN_INLINE Bits16 narrow(Vec<float> v, Float16*) {
  const Bits32 bits = (Bits32)v;
  const Bits32 sign = (bits >> 16) & 0x8000u;
  const Bits32 magnitude = bits & 0x7fffffffu;
  // Normal results: the exponent bias changes by -112, and bit 13 rounds to nearest even. From 65520 on:
  // infinity.
  const Bits32 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results, below 2^-14: adding 1/2 puts multiples of 2^-24 into the last mantissa bits.
  const Bits32 subnormal = (Bits32)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;
  Bits32 half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? Bits32{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? Bits32{} + 0x7e00u : half;
  return __builtin_convertvector(half | sign, Bits16);
}
#endif

// The halves of a float's bits, to store it in two 16-bit places.
struct UpperHalf {
  uint16_t bits;
};
struct LowerHalf {
  uint16_t bits;
};

FUSED_BN_INLINE Bits16 narrow(Vec<float> v, LowerHalf*) {
#if FUSED_BN_VECTOR_BYTES == 64
  return (Bits16)_mm512_cvtepi32_epi16((__m512i)v);
#else
  return __builtin_convertvector((Bits32)v & 0xffffu, Bits16);
#endif
}
FUSED_BN_INLINE Bits16 narrow(Vec<float> v, UpperHalf*) {
  return narrow((Vec<float>)((Bits32)v >> 16), static_cast<LowerHalf*>(nullptr));
}
FUSED_BN_INLINE Vec<float> widen(Bits16 bits, UpperHalf*) {
  return widen(bits, static_cast<BFloat16*>(nullptr));
}
FUSED_BN_INLINE Vec<float> widen(Bits16 bits, LowerHalf*) {
  return (Vec<float>)((Bits32)widen(bits, static_cast<UpperHalf*>(nullptr)) >> 16);
}

// ---- loads and stores; addresses need no alignment beyond T's -----------------------------------------

template <class T>
FUSED_BN_INLINE Vec<Compute<T>> load(const T* p, Whole) {
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  } else {
    Bits16 bits;
    std::memcpy(&bits, p, sizeof bits);
    return widen(bits, static_cast<T*>(nullptr));
  }
}

template <class T>
FUSED_BN_INLINE void store(T* p, Vec<Compute<T>> v, Whole) {
  if constexpr (sizeof(T) == sizeof(Compute<T>)) {
    std::memcpy(p, &v, sizeof v);
  } else {
    const Bits16 bits = narrow(v, static_cast<T*>(nullptr));
    std::memcpy(p, &bits, sizeof bits);
  }
}

// Inactive lanes are 0, and their memory is not accessed.
template <class T>
FUSED_BN_INLINE Vec<Compute<T>> load(const T* p, First first) {
#if FUSED_BN_VECTOR_BYTES == 64
  const uint32_t mask = (1u << first.count) - 1;
  if constexpr (sizeof(T) == 8) return (Vec<double>)_mm512_maskz_loadu_pd(mask, p);
  if constexpr (sizeof(T) == 4) return (Vec<float>)_mm512_maskz_loadu_ps(mask, p);
  if constexpr (sizeof(T) == 2) {
    return widen((Bits16)_mm256_maskz_loadu_epi16(mask, p), static_cast<T*>(nullptr));
  }
#else
  T row[kLanes<Compute<T>>] = {};
  for (int i = 0; i < first.count; ++i) row[i] = p[i];
  return load(row, Whole{});
#endif
}

template <class T>
FUSED_BN_INLINE void store(T* p, Vec<Compute<T>> v, First first) {
#if FUSED_BN_VECTOR_BYTES == 64
  const uint32_t mask = (1u << first.count) - 1;
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, mask, (__m512d)v);
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, mask, (__m512)v);
  if constexpr (sizeof(T) == 2) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)narrow(v, static_cast<T*>(nullptr)));
  }
#else
  T row[kLanes<Compute<T>>];
  store(row, v, Whole{});
  for (int i = 0; i < first.count; ++i) p[i] = row[i];
#endif
}

// Keeps GCC from merging a load and the clearing of some lanes into a masked load, which waits for the
// comparison: backward of relu took up to 1.7 times as long (Zen 5).
template <class A>
FUSED_BN_INLINE Vec<A> in_register(Vec<A> v) {
#if FUSED_BN_VECTOR_BYTES == 64
  __asm__("" : "+v"(v));
#endif
  return v;
}

constexpr bool kCanStream = kVectorBytes >= 32;

// Stores past the caches, without first reading the cache line. p must be aligned to the stored vector's
// size.
template <class T>
FUSED_BN_INLINE void stream(T* p, Vec<Compute<T>> v) {
#if FUSED_BN_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) _mm512_stream_pd(p, (__m512d)v);
  if constexpr (sizeof(T) == 4) _mm512_stream_ps(p, (__m512)v);
  if constexpr (sizeof(T) == 2) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)narrow(v, static_cast<T*>(nullptr)));
  }
#elif FUSED_BN_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 8) _mm256_stream_pd(p, (__m256d)v);
  if constexpr (sizeof(T) == 4) _mm256_stream_ps(p, (__m256)v);
  if constexpr (sizeof(T) == 2) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)narrow(v, static_cast<T*>(nullptr)));
  }
#else
  store(p, v, Whole{});
#endif
}

template <bool streaming, class T>
FUSED_BN_INLINE void put(T* p, Vec<Compute<T>> v, Whole) {
  if constexpr (streaming) {
    stream(p, v);
  } else {
    store(p, v, Whole{});
  }
}

template <bool streaming, class T>
FUSED_BN_INLINE void put(T* p, Vec<Compute<T>> v, First first) {
  store(p, v, first);
}

// Orders streaming stores before later accesses.
FUSED_BN_INLINE void stream_fence() {
#if FUSED_BN_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}

template <class Body, int... i>
FUSED_BN_INLINE void unrolled(Body body, std::integer_sequence<int, i...>) {
  (body(std::integral_constant<int, i>{}), ...);
}

// Calls body(0) to body(n - 1). Constant indices keep small arrays in registers.
template <int n, class Body>
FUSED_BN_INLINE void unrolled(Body body) {
  unrolled(body, std::make_integer_sequence<int, n>{});
}

// Calls body(offset, slot, lanes) for the vectors of [0, length). slot is a constant below slots, for
// independent accumulators: an addition takes 3 to 4 cycles, and two can start in each.
template <class A, int slots, class Body>
FUSED_BN_INLINE void for_each_vector(int64_t length, Body body) {
  constexpr int64_t L = kLanes<A>;
  using std::integral_constant;
  int64_t i = 0;
  if constexpr (slots > 1) {
    for (; i + slots * L <= length; i += slots * L) {
      unrolled<slots>([&](auto slot) { body(i + slot * L, slot, Whole{}); });
    }
  }
  for (; i + L <= length; i += L) body(i, integral_constant<int, 0>{}, Whole{});
  if (i < length) body(i, integral_constant<int, slots - 1>{}, First{static_cast<int>(length - i)});
}

}  // namespace
}  // namespace fused_bn::cpu
