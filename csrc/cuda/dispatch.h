// From the values in a plan to the template arguments of a kernel: the one list of what is instantiated.
#pragma once

#include <type_traits>

#include "common/activation.h"
#include "cuda/params.h"

namespace fused_bn::cuda {

template <class T, Mapping mapping_, bool whole_, Activation activation_>
struct KernelTypes {
  using Element = T;
  static constexpr Mapping mapping = mapping_;
  static constexpr bool whole = whole_;
  static constexpr Activation activation = activation_;
};

// No activation is leaky_relu of slope 1, which changes no bit of z.
constexpr Activation kernel_activation(Activation activation) {
  return activation == Activation::relu ? Activation::relu : Activation::leaky_relu;
}

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
  constexpr auto relu = Activation::relu, leaky = Activation::leaky_relu;
  const auto with_activation = [&](auto m, auto w) {
    return kernel_activation(activation) == relu ? body(KernelTypes<T, m.value, w.value, relu>{})
                                                 : body(KernelTypes<T, m.value, w.value, leaky>{});
  };
  const auto with_whole = [&](auto m) {
    return whole ? with_activation(m, std::true_type{}) : with_activation(m, std::false_type{});
  };
  return mapping == rows ? with_whole(std::integral_constant<Mapping, rows>{})
                         : with_whole(std::integral_constant<Mapping, columns>{});
}

}  // namespace fused_bn::cuda
