// A mask: one bit an element, the first element's lowest. Every row of the mask begins a new byte, and is
// written from its beginning to its end by one thread.
#pragma once

#include "cpu/simd.h"

namespace fused_bn::cpu {
namespace {

// What a comparison of Vec<A> gives: all bits or none in each lane.
template <class A>
using LaneMask = decltype(Vec<A>{} < Vec<A>{});

// Where the elements of rows of so many have their bits.
struct BitRows {
  int64_t length;

  int64_t padded() const { return (length + 7) / 8 * 8; }
  int64_t bit(int64_t element) const { return element / length * padded() + element % length; }
};

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

// Of the lowest bits.
template <class A>
FUSED_BN_INLINE LaneMask<A> unpack(uint32_t bits) {
#if FUSED_BN_VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 8) return (LaneMask<A>)_mm512_movm_epi64(static_cast<__mmask8>(bits));
  if constexpr (sizeof(A) == 4) return (LaneMask<A>)_mm512_movm_epi32(static_cast<__mmask16>(bits));
#else
  // In words: SSE2 compares no longer integers.
  constexpr int words = sizeof(A) / sizeof(int32_t);
  using Words = typename VectorOf<int32_t, words * kLanes<A> >::type;
  Words own;
  for (int i = 0; i < words * kLanes<A>; ++i) own[i] = 1 << i / words;
  return (LaneMask<A>)(((Words{} + static_cast<int32_t>(bits)) & own) != 0);
#endif
}

FUSED_BN_INLINE int used(int lanes, Whole) { return lanes; }
FUSED_BN_INLINE int used(int, First first) { return first.count; }

FUSED_BN_INLINE uint64_t byte_of(int64_t bit) { return static_cast<uint64_t>(bit) / 8; }

// Where a vector fills part of a byte, the first one in it also clears the rest.
template <class A, class Lanes>
FUSED_BN_INLINE void store_bits(uint8_t* mask, int64_t bit, LaneMask<A> passes, Lanes lanes) {
  const int count = used(kLanes<A>, lanes);
  const uint32_t bits = pack<A>(passes) & ((1u << count) - 1);
  uint8_t* byte = mask + byte_of(bit);
  if constexpr (kLanes<A> >= 8) {
    byte[0] = static_cast<uint8_t>(bits);
    if (count > 8) byte[1] = static_cast<uint8_t>(bits >> 8);
  } else {
    const int shift = static_cast<int>(bit % 8);
    *byte = static_cast<uint8_t>((shift == 0 ? 0 : *byte) | bits << shift);
  }
}

// Whole vectors of eight lanes and more begin a byte.
template <class A, class Lanes>
FUSED_BN_INLINE LaneMask<A> load_bits(const uint8_t* mask, int64_t bit, Lanes lanes) {
  const uint8_t* byte = mask + byte_of(bit);
  const bool begins_byte = kLanes<A> >= 8 && std::is_same_v<Lanes, Whole>;
  uint32_t bits = static_cast<uint32_t>(*byte) >> (begins_byte ? 0 : bit % 8);
  if (kLanes<A> > 8 && used(kLanes<A>, lanes) > 8) bits |= static_cast<uint32_t>(byte[1]) << 8;
  return unpack<A>(bits);
}

}  // namespace
}  // namespace fused_bn::cpu
