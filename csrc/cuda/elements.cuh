// Elements in memory and in registers: vectors of eight, and the values of per-channel vectors.
#pragma once

#include "cuda/params.h"
#include "cuda/primitives.cuh"

namespace fused_bn::cuda {

// A part of the block's shared memory. By its offset, a constant of the launch: a pointer would take
// registers.
template <class A>
FUSED_BN_DEVICE A* shared_part(int offset) {
  return reinterpret_cast<A*>(shared_memory() + offset);
}

template <class T>
constexpr int kPacks = kVector * static_cast<int>(sizeof(T)) / 16;

// Eight elements as they lie in memory.
template <class T>
struct Raw {
  Pack packs[kPacks<T>];
};

template <class T>
FUSED_BN_DEVICE T element_of(const Raw<T>& raw, int k) {
  T element;
  if constexpr (sizeof(T) == 2) {
    element.bits = static_cast<uint16_t>(raw.packs[0].words[k / 2] >> (k % 2 * 16));
  } else if constexpr (sizeof(T) == 4) {
    __builtin_memcpy(&element, &raw.packs[k / 4].words[k % 4], sizeof(T));
  } else {
    __builtin_memcpy(&element, &raw.packs[k / 2].words[k % 2 * 2], sizeof(T));
  }
  return element;
}

template <class T>
FUSED_BN_DEVICE void set_element(Raw<T>& raw, int k, T element) {
  if constexpr (sizeof(T) == 2) {
    uint32_t& word = raw.packs[0].words[k / 2];
    const uint32_t bits = element.bits;
    word = k % 2 == 0 ? bits : word | bits << 16;  // in ascending order
  } else if constexpr (sizeof(T) == 4) {
    __builtin_memcpy(&raw.packs[k / 4].words[k % 4], &element, sizeof(T));
  } else {
    __builtin_memcpy(&raw.packs[k / 2].words[k % 2 * 2], &element, sizeof(T));
  }
}

template <class T>
FUSED_BN_DEVICE void unpack(const Raw<T>& raw, Compute<T> (&values)[kVector]) {
  FUSED_BN_UNROLL
  for (int k = 0; k < kVector; ++k) values[k] = widen(element_of(raw, k));
}

template <class T>
FUSED_BN_DEVICE Raw<T> pack(const Compute<T> (&values)[kVector]) {
  Raw<T> raw;
  FUSED_BN_UNROLL
  for (int k = 0; k < kVector; ++k) {
    T element;
    narrow(values[k], element);
    set_element(raw, k, element);
  }
  return raw;
}

template <class T>
FUSED_BN_DEVICE void forget(Raw<T>& raw) {
  FUSED_BN_UNROLL
  for (int i = 0; i < kPacks<T>; ++i) forget(raw.packs[i]);
}
template <class T, int steps, int tensors>
FUSED_BN_DEVICE void forget(Raw<T> (&raw)[steps][tensors]) {
  FUSED_BN_UNROLL
  for (int i = 0; i < steps * tensors; ++i) forget(raw[i / tensors][i % tensors]);
}

// The first step goes behind the last.
template <class T, int steps, int tensors>
FUSED_BN_DEVICE void rotate(Raw<T> (&raw)[steps][tensors]) {
  FUSED_BN_UNROLL
  for (int t = 0; t < tensors; ++t) {
    const Raw<T> first = raw[0][t];
    FUSED_BN_UNROLL
    for (int i = 1; i < steps; ++i) raw[i - 1][t] = raw[i][t];
    raw[steps - 1][t] = first;
  }
}

// whole: v holds eight elements, aligned to 16 bytes. Else elements beyond v.count are 0.
template <class T, bool whole, bool last>
FUSED_BN_DEVICE Raw<T> load_vector(const void* data, const Vector& v) {
  const T* elements = static_cast<const T*>(data) + v.offset;
  Raw<T> raw;
  if constexpr (whole) {
    FUSED_BN_UNROLL
    for (int i = 0; i < kPacks<T>; ++i)
      raw.packs[i] = load_pack<last>(reinterpret_cast<const Pack*>(elements) + i);
  } else {
    FUSED_BN_UNROLL
    for (int k = 0; k < kVector; ++k) set_element(raw, k, k < v.count ? elements[k] : T{});
  }
  return raw;
}

template <class T, bool whole>
FUSED_BN_DEVICE void store_vector(void* data, const Vector& v, const Raw<T>& raw) {
  T* elements = static_cast<T*>(data) + v.offset;
  if constexpr (whole) {
    FUSED_BN_UNROLL
    for (int i = 0; i < kPacks<T>; ++i) store_pack(reinterpret_cast<Pack*>(elements) + i, raw.packs[i]);
  } else {
    FUSED_BN_UNROLL
    for (int k = 0; k < kVector; ++k) {
      if (k < v.count) elements[k] = element_of(raw, k);
    }
  }
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
