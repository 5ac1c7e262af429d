// From the values in a plan to the template arguments of a kernel: the one list of what is instantiated.
#pragma once

#include <type_traits>

#include "common/activation.h"
#include "cuda/params.h"

namespace fused_bn::cuda {

template <class T, int vector_, bool mixed_, Curve curve_>
struct KernelTypes {
  using Element = T;
  static constexpr int vector = vector_;
  static constexpr bool mixed = mixed_;
  static constexpr Curve curve = curve_;
  // The resident kernel takes vectors of 16 bytes alone.
  static constexpr bool resident = vector > 1;
};

// Elements of a vector of 16 bytes. Double precision goes element by element: its arithmetic outweighs its
// accesses.
template <class T>
constexpr int kWide = sizeof(T) == 8 ? 1 : 16 / static_cast<int>(sizeof(T));

// Calls body with the KernelTypes of one element type. Kernels of single elements tell activations apart at
// run time.
template <class T, class Body>
auto with_types(const Tiling& t, Activation activation, Body body) {
  using Single = KernelTypes<T, 1, false, Curve::other>;
  if constexpr (kWide<T> == 1) {
    return body(Single{});
  } else {
    if (t.vector == 1) return body(Single{});
    const auto with_curve = [&](auto mixed) {
      switch (curve_of(activation)) {
        case Curve::relu:
          return body(KernelTypes<T, kWide<T>, mixed.value, Curve::relu>{});
        case Curve::leaky_relu:
          return body(KernelTypes<T, kWide<T>, mixed.value, Curve::leaky_relu>{});
        default:
          return body(KernelTypes<T, kWide<T>, mixed.value, Curve::other>{});
      }
    };
    return t.mixed ? with_curve(std::true_type{}) : with_curve(std::false_type{});
  }
}

}  // namespace fused_bn::cuda
