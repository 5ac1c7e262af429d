// Element types, and the per-channel vectors of parameters and running statistics.
#pragma once

#include <cstdint>

namespace fused_bn {

enum class DType : int8_t { f32, f64, bf16, f16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type that T is computed in.
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

// data is null where the vector is absent.
struct ChannelVector {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride = 1;
};

}  // namespace fused_bn
