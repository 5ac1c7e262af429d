// From the values in a plan to the template arguments of a kernel: the one list of what is instantiated.
#pragma once

#include <type_traits>

#include "common/activation.h"
#include "cuda/params.h"

namespace fused_bn::cuda {

template <class T, Mapping mapping_, bool whole_, Curve curve_>
struct KernelTypes {
  using Element = T;
  static constexpr Mapping mapping = mapping_;
  static constexpr bool whole = whole_;
  static constexpr Curve curve = curve_;
};

// Calls launch(phase) for each kernel that the exchange takes: one, but for two_kernels. Stops at the first
// result that is not the default one, success, and returns the last.
template <class Launch>
auto for_each_phase(Exchange exchange, Launch launch) {
  if (exchange != Exchange::two_kernels) return launch(Phase::both);
  const auto result = launch(Phase::gather);
  return result == decltype(result){} ? launch(Phase::emit) : result;
}

// Calls body with the KernelTypes of one element type.
template <class T, class Body>
auto with_kernel_types(Mapping mapping, bool whole, Activation activation, Body body) {
  constexpr auto rows = Mapping::rows, columns = Mapping::columns;
  const auto with_curve = [&](auto m, auto w) {
    switch (curve_of(activation)) {
      case Curve::relu:
        return body(KernelTypes<T, m.value, w.value, Curve::relu>{});
      case Curve::leaky_relu:
        return body(KernelTypes<T, m.value, w.value, Curve::leaky_relu>{});
      default:
        return body(KernelTypes<T, m.value, w.value, Curve::other>{});
    }
  };
  const auto with_whole = [&](auto m) {
    return whole ? with_curve(m, std::true_type{}) : with_curve(m, std::false_type{});
  };
  return mapping == rows ? with_whole(std::integral_constant<Mapping, rows>{})
                         : with_whole(std::integral_constant<Mapping, columns>{});
}

}  // namespace fused_bn::cuda
