// The kernels of one element type. Each element type has a .cu file that includes this.
#pragma once

#include "cuda/host/launch.h"
#include "cuda/kernels/dispatch.h"

namespace fused_bn::cuda {
namespace {

template <class Pass>
__global__ void __launch_bounds__(kThreads,
                                  blocks_by_registers(kArchitecture, Pass::kernel, Pass::Direction::backward,
                                                      Pass::Direction::mixed, Pass::Direction::kind))
    batch_norm(const __grid_constant__ typename Pass::Params params) {
  Pass(params).run();
}

}  // namespace

template <class T>
const void* kernel_of(Kernel kernel, const Problem& p, const Tiling& tiling) {
  const auto function = [](auto type) {
    return reinterpret_cast<const void*>(batch_norm<typename decltype(type)::Pass>);
  };
  return p.direction == Direction::forward ? with_kernel<true, T>(kernel, tiling, p.activation, function)
                                           : with_kernel<false, T>(kernel, tiling, p.activation, function);
}

}  // namespace fused_bn::cuda
