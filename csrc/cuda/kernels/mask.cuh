// The mask: one bit per element, in memory order. Padding bits are 0; the size is a multiple of 4 bytes.
#pragma once

#include "cuda/kernels/primitives.cuh"

namespace fused_bn::cuda {

template <int vector>
FUSED_BN_DEVICE uint32_t load_bits(const uint8_t* mask, int64_t index) {
  constexpr int kPerByte = 8 / vector;
  const int place = static_cast<int>(index % kPerByte);
  return static_cast<uint32_t>(mask[index / kPerByte]) >> (place * vector);
}

// All lanes of a warp call this; active: the lane has a vector. If neighbouring lanes fill a byte, the first
// of them stores it. Other lanes change their bits of a word by atomics, beside stores to its other bytes.
template <int vector>
FUSED_BN_DEVICE void store_bits(uint8_t* mask, int64_t index, int64_t elements, uint32_t bits, bool active) {
  if constexpr (vector == 8) {
    if (active) mask[index] = static_cast<uint8_t>(bits);
  } else {
    constexpr int kPerByte = 8 / vector;
    const int lane = thread_index() % 32, place = static_cast<int>(index % kPerByte);
    const uint32_t low = static_cast<uint32_t>(index);
    uint32_t byte = bits;
    FUSED_BN_UNROLL
    for (int i = 1; i < kPerByte; ++i) byte |= shuffle_down(bits, i) << (i * vector);
    const uint32_t actives = ballot(active), run = (1u << kPerByte) - 1;
    const bool together = shuffle_down(low, kPerByte - 1) == low + (kPerByte - 1);
    const bool first = place == 0 && lane + kPerByte <= 32 && (actives >> lane & run) == run && together;
    const uint32_t firsts = ballot(first);
    if (!active) return;
    if (first) store_byte(mask + index / kPerByte, byte);
    if (lane >= place && (firsts >> (lane - place) & 1u) != 0) return;
    // The last element also clears the padding.
    const int64_t element = index * vector;
    const int shift = static_cast<int>(element % 32);
    uint32_t own = ((1u << vector) - 1) << shift;
    if (element + vector == elements) own |= ((0xffu << (shift / 8 * 8)) & ~((1u << shift) - 1));
    auto* word = reinterpret_cast<uint32_t*>(mask) + element / 32;
    and_atomic(word, ~own);
    or_atomic(word, bits << shift);
  }
}

}  // namespace fused_bn::cuda
