// The mask: one bit per element, in memory order, the first element in the lowest bit of a byte.
#pragma once

#include <algorithm>

#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

// The result of a comparison of Vec<A>: all bits or none in each lane.
template <class A>
using LaneMask = decltype(Vec<A>{} < Vec<A>{});

// Lanes whose bytes of the mask hold bits of other threads too. The bytes start as 0.
struct Edge : First {};

template <class A>
FUSED_BN_INLINE uint32_t pack(LaneMask<A> mask) {
#if FUSED_BN_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 8) return _mm512_movepi64_mask((__m512i)mask);
  if constexpr (sizeof(A) == 4) return _mm512_movepi32_mask((__m512i)mask);
#elif FUSED_BN_VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
  if constexpr (sizeof(A) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  if constexpr (sizeof(A) == 8) return static_cast<uint32_t>(_mm_movemask_pd((__m128d)mask));
  if constexpr (sizeof(A) == 4) return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<A>; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}

template <class A>
FUSED_BN_INLINE LaneMask<A> unpack(uint32_t bits) {
#if FUSED_BN_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 8) return (LaneMask<A>)_mm512_movm_epi64(static_cast<__mmask8>(bits));
  if constexpr (sizeof(A) == 4) return (LaneMask<A>)_mm512_movm_epi32(static_cast<__mmask16>(bits));
#else
  // In 32-bit words, because SSE2 cannot compare 64-bit integers.
  constexpr int words = sizeof(A) / sizeof(int32_t);
  using Words = typename VectorOf<int32_t, words * kLanes<A> >::type;
  Words own;
  for (int i = 0; i < words * kLanes<A>; ++i) own[i] = 1 << i / words;
  return (LaneMask<A>)(((Words{} + static_cast<int32_t>(bits)) & own) != 0);
#endif
}

FUSED_BN_INLINE int used(int lanes, Whole) { return lanes; }
FUSED_BN_INLINE int used(int, First first) { return first.count; }

FUSED_BN_INLINE uint64_t byte_of(int64_t at) { return static_cast<uint64_t>(at) / 8; }
FUSED_BN_INLINE int bit_of(int64_t at) { return static_cast<int>(at % 8); }

// Whole vectors of at least eight lanes start at a byte. Shorter ones share a byte, which the first one
// clears.
template <class A, class Lanes>
FUSED_BN_INLINE void store_bits(uint8_t* mask, int64_t at, LaneMask<A> passes, Lanes lanes) {
  const int count = used(kLanes<A>, lanes);
  uint32_t bits = pack<A>(passes) & ((1u << count) - 1);
  uint8_t* byte = mask + byte_of(at);
  if constexpr (std::is_same_v<Lanes, Edge>) {
    for (bits <<= bit_of(at); bits != 0; bits >>= 8, ++byte) {
      __atomic_fetch_or(byte, static_cast<uint8_t>(bits), __ATOMIC_RELAXED);
    }
  } else if constexpr (kLanes<A> >= 8) {
    byte[0] = static_cast<uint8_t>(bits);
    if (count > 8) byte[1] = static_cast<uint8_t>(bits >> 8);
  } else {
    const int shift = bit_of(at);
    *byte = static_cast<uint8_t>((shift == 0 ? 0 : *byte) | bits << shift);
  }
}

// Inactive lanes get arbitrary bits.
template <class A, class Lanes>
FUSED_BN_INLINE LaneMask<A> load_bits(const uint8_t* mask, int64_t at, Lanes lanes) {
  const uint8_t* byte = mask + byte_of(at);
  const int first = bit_of(at), end = first + used(kLanes<A>, lanes);
  uint32_t bits = byte[0];
  if (end > 8) bits |= static_cast<uint32_t>(byte[1]) << 8;
  if (kLanes<A> > 8 && end > 16) bits |= static_cast<uint32_t>(byte[2]) << 16;
  return unpack<A>(bits >> first);
}

// Calls body(offset, lanes) over [0, length) of the elements from `at` on. Whole vectors start at a byte of
// the mask, and are aligned if the tensor is.
template <class A, class Body>
FUSED_BN_INLINE void for_each_byte(int64_t at, int64_t length, Body body) {
  constexpr int64_t unit = kLanes<A> < 8 ? 8 : kLanes<A>;
  const int64_t head = std::min((unit - at % unit) % unit, length), tail = (length - head) % 8;
  // noinline avoids an internal error of GCC 12.
  const auto edge = [&](int64_t begin, int64_t end) __attribute__((noinline)) {
    for (int64_t i = begin; i < end; i += kLanes<A>) {
      body(i, Edge{{static_cast<int>(std::min<int64_t>(end - i, kLanes<A>))}});
    }
  };
  edge(0, head);
  for_each_vector<A, 1>(length - head - tail, [&](int64_t i, auto, auto lanes) { body(head + i, lanes); });
  edge(length - tail, length);
}

}  // namespace
}  // namespace fused_bn::cpu
