// Element types, and the per-channel vectors of parameters and running statistics.
#pragma once

#include <cstdint>

namespace fused_bn {

enum class DType : int32_t { f32, f64, bf16, f16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type that elements of type T are computed in.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

template <class T>
constexpr DType kDType = DType::f32;
template <>
inline constexpr DType kDType<double> = DType::f64;
template <>
inline constexpr DType kDType<BFloat16> = DType::bf16;
template <>
inline constexpr DType kDType<Float16> = DType::f16;

// A vector with one value per channel; data is null if it is absent.
struct ChannelVector {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 1;
};

}  // namespace fused_bn
