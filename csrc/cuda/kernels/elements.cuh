// Vectors of elements in memory and in registers, and access to ChannelVector.
#pragma once

#include "cuda/kernels/primitives.cuh"

namespace fused_bn::cuda {

// `vector` packed elements: 16 bytes, or one element.
template <int bytes>
using Bits = std::conditional_t<bytes == 8, uint64_t, std::conditional_t<bytes == 4, uint32_t, uint16_t>>;
template <class T, int vector>
using Raw = std::conditional_t<vector == 1, Bits<sizeof(T)>, Pack>;

template <class T, int vector>
FUSED_BN_DEVICE void unpack(const Raw<T, vector>& raw, Compute<T> (&values)[vector]) {
  if constexpr (vector == 1) {
    T element;
    __builtin_memcpy(&element, &raw, sizeof element);
    values[0] = widen(element);
  } else {
    FUSED_BN_UNROLL
    for (int k = 0; k < vector; ++k) {
      if constexpr (sizeof(T) == 2) {
        values[k] = widen(T{static_cast<uint16_t>(raw.words[k / 2] >> (k % 2 * 16))});
      } else {
        values[k] = as_float(raw.words[k]);
      }
    }
  }
}

// clamp: negative values become 0.
template <class T, int vector, bool clamp = false>
FUSED_BN_DEVICE Raw<T, vector> pack(const Compute<T> (&values)[vector]) {
  Raw<T, vector> raw;
  if constexpr (vector == 1) {
    T element;
    narrow(clamp ? relu(values[0]) : values[0], element);
    __builtin_memcpy(&raw, &element, sizeof element);
  } else if constexpr (sizeof(T) == 2) {
    FUSED_BN_UNROLL
    for (int k = 0; k < vector / 2; ++k)
      raw.words[k] = narrow_pair<T, clamp>(values[2 * k], values[2 * k + 1]);
  } else {
    FUSED_BN_UNROLL
    for (int k = 0; k < vector; ++k) {
      raw.words[k] = as_bits(clamp ? relu(values[k]) : values[k]);
    }
  }
  return raw;
}

template <class T, int vector>
FUSED_BN_DEVICE const Raw<T, vector>* vectors_of(const void* data, int64_t index) {
  return static_cast<const Raw<T, vector>*>(data) + index;
}
template <class T, int vector>
FUSED_BN_DEVICE Raw<T, vector>* vectors_of(void* data, int64_t index) {
  return static_cast<Raw<T, vector>*>(data) + index;
}

template <class Body>
FUSED_BN_DEVICE auto with_type(DType dtype, Body body) {
  if (dtype == DType::f64) return body(double{});
  if (dtype == DType::bf16) return body(BFloat16{});
  if (dtype == DType::f16) return body(Float16{});
  return body(float{});
}

// Returns the bits of a value, which read() converts later, so that several loads overlap.
FUSED_BN_DEVICE uint64_t load_value(const ChannelVector& v, int64_t c) {
  if (v.data == nullptr) return 0;
  const int64_t i = c * v.stride;
  if (v.dtype == DType::f64) return static_cast<const uint64_t*>(v.data)[i];
  if (v.dtype == DType::f32) return static_cast<const uint32_t*>(v.data)[i];
  return static_cast<const uint16_t*>(v.data)[i];
}
FUSED_BN_DEVICE double read(const ChannelVector& v, uint64_t bits, double absent) {
  if (v.data == nullptr) return absent;
  return with_type(v.dtype, [&](auto element) {
    __builtin_memcpy(&element, &bits, sizeof element);
    return static_cast<double>(widen(element));
  });
}
FUSED_BN_DEVICE void write(const ChannelVector& v, int64_t c, double value) {
  if (v.data == nullptr) return;
  with_type(v.dtype, [&](auto type) {
    using T = decltype(type);
    narrow(static_cast<Compute<T>>(value), static_cast<T*>(v.data)[c * v.stride]);
  });
}

}  // namespace fused_bn::cuda
