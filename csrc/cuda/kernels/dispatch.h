// Selects the kernel of a plan. This is the only list of instances.
#pragma once

#include <type_traits>

#include "cuda/kernels/resident.cuh"
#include "cuda/kernels/streamed.cuh"

namespace fused_bn::cuda {

// Elements of a 16-byte vector. float64 uses single elements: its arithmetic outweighs its accesses.
template <class T>
constexpr int kWide = sizeof(T) == 8 ? 1 : 16 / static_cast<int>(sizeof(T));

// A kernel, each thread of which constructs a Pass from the params and runs it.
template <class Pass_>
struct KernelType {
  using Pass = Pass_;
};

// Calls body(KernelType). The resident kernel has no instance for single elements; body is not called then.
template <bool forward, class T, int vector, bool mixed, ActivationKind kind, class Body>
auto with_types(Kernel kernel, Body body) {
  using Any = std::conditional_t<forward, Forward<T, vector, mixed, kind>, Backward<T, vector, mixed, kind>>;
  // Forward's sums do not depend on the activation.
  using Summed = std::conditional_t<forward, Forward<T, vector, mixed, ActivationKind::relu>, Any>;
  using Trained = std::conditional_t<forward, Any, Backward<T, vector, mixed, kind, true>>;
  if (kernel == Kernel::apply) return body(KernelType<Apply<Any>>{});
  if (kernel == Kernel::reduce) return body(KernelType<Reduce<Summed>>{});
  if constexpr (vector > 1) {
    return body(KernelType<Resident<Trained>>{});
  } else {
    return decltype(body(KernelType<Apply<Any>>{})){};
  }
}

// Kernels of single elements branch among activations at run time.
template <bool forward, class T, class Body>
auto with_kernel(Kernel kernel, const Tiling& t, Activation activation, Body body) {
  const auto with_kind = [&](auto mixed) {
    constexpr int wide = kWide<T>;
    const ActivationKind kind = kind_of(activation);
    if (kind == ActivationKind::relu)
      return with_types<forward, T, wide, mixed.value, ActivationKind::relu>(kernel, body);
    if (kind == ActivationKind::other)
      return with_types<forward, T, wide, mixed.value, ActivationKind::other>(kernel, body);
    return with_types<forward, T, wide, mixed.value, ActivationKind::leaky_relu>(kernel, body);
  };
  if constexpr (kWide<T> > 1) {
    if (t.vector > 1) return t.mixed ? with_kind(std::true_type{}) : with_kind(std::false_type{});
  }
  return with_types<forward, T, 1, false, ActivationKind::other>(kernel, body);
}

}  // namespace fused_bn::cuda
