// A bit an element in the order of memory. Padding bits are 0, and memory has a multiple of 4 bytes.
#pragma once

#include "cuda/kernels/primitives.cuh"

namespace fused_bn::cuda {

template <int vector>
FUSED_BN_DEVICE uint32_t load_bits(const uint8_t* mask, int64_t index) {
  constexpr int kPerByte = 8 / vector;
  const int place = static_cast<int>(index % kPerByte);
  return static_cast<uint32_t>(mask[index / kPerByte]) >> (place * vector);
}

// By all lanes of a warp; active: this one has a vector. Of lanes side by side that share a byte, the first
// stores it. Others change their own bits of a word, of which a byte may be stored at the same time.
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
    // The last element also has the padding.
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
