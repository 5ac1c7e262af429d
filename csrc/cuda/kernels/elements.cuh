// Vectors of elements in memory and in registers, and the values of per-channel vectors.
#pragma once

#include "cuda/kernels/primitives.cuh"

namespace fused_bn::cuda {

// `vector` elements as they lie in memory: 16 bytes, or one element.
template <int bytes>
struct RawOf;
template <>
struct RawOf<16> {
  using type = Pack;
};
template <>
struct RawOf<8> {
  using type = uint64_t;
};
template <>
struct RawOf<4> {
  using type = uint32_t;
};
template <>
struct RawOf<2> {
  using type = uint16_t;
};
template <class T, int vector>
using Raw = typename RawOf<static_cast<int>(sizeof(T)) * vector>::type;

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

// The vector at an index of a tensor.
template <class T, int vector>
FUSED_BN_DEVICE const Raw<T, vector>* vectors_of(const void* data, int64_t index) {
  return static_cast<const Raw<T, vector>*>(data) + index;
}
template <class T, int vector>
FUSED_BN_DEVICE Raw<T, vector>* vectors_of(void* data, int64_t index) {
  return static_cast<Raw<T, vector>*>(data) + index;
}

FUSED_BN_DEVICE double read(const ChannelVector& v, int64_t c, double absent) {
  if (v.data == nullptr) return absent;
  const int64_t i = c * v.stride;
  switch (v.dtype) {
    case DType::f64:
      return static_cast<const double*>(v.data)[i];
    case DType::bf16:
      return widen(static_cast<const BFloat16*>(v.data)[i]);
    case DType::f16:
      return widen(static_cast<const Float16*>(v.data)[i]);
    default:
      return static_cast<const float*>(v.data)[i];
  }
}

FUSED_BN_DEVICE void write(const ChannelVector& v, int64_t c, double value) {
  if (v.data == nullptr) return;
  const int64_t i = c * v.stride;
  const float single = static_cast<float>(value);
  switch (v.dtype) {
    case DType::f64:
      static_cast<double*>(v.data)[i] = value;
      return;
    case DType::bf16:
      narrow(single, static_cast<BFloat16*>(v.data)[i]);
      return;
    case DType::f16:
      narrow(single, static_cast<Float16*>(v.data)[i]);
      return;
    default:
      static_cast<float*>(v.data)[i] = single;
  }
}

}  // namespace fused_bn::cuda
