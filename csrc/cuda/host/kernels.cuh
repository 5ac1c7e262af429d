// The kernels of one element type; included by a .cu file for each.
#pragma once

#include "cuda/host/kernels.h"
#include "cuda/kernels/dispatch.h"
#include "cuda/kernels/resident.cuh"
#include "cuda/kernels/streamed.cuh"

namespace fused_bn::cuda {
namespace {

template <Kernel kernel, bool backward, bool mixed, Curve curve>
constexpr int kBlocks = blocks_by_registers(kArchitecture, kernel, backward, mixed, curve);

template <class T, int vector, bool mixed, Curve curve>
__global__ void __launch_bounds__(kThreads, (kBlocks<Kernel::resident, false, mixed, curve>))
    batch_norm_resident_forward(const __grid_constant__ ForwardParams params) {
  resident_forward<T, vector, mixed, curve>(params);
}

template <class T, int vector, bool mixed, Curve curve>
__global__ void __launch_bounds__(kThreads, (kBlocks<Kernel::resident, true, mixed, curve>))
    batch_norm_resident_backward(const __grid_constant__ BackwardParams params) {
  resident_backward<T, vector, mixed, curve>(params);
}

template <class T, int vector, bool mixed>
__global__ void __launch_bounds__(kThreads, (kBlocks<Kernel::reduce, false, mixed, Curve::relu>))
    batch_norm_reduce_forward(const __grid_constant__ ForwardParams params) {
  reduce_forward<T, vector, mixed>(params);
}

template <class T, int vector, bool mixed, Curve curve>
__global__ void __launch_bounds__(kThreads, (kBlocks<Kernel::reduce, true, mixed, curve>))
    batch_norm_reduce_backward(const __grid_constant__ BackwardParams params) {
  reduce_backward<T, vector, mixed, curve>(params);
}

template <class T, int vector, bool mixed, Curve curve>
__global__ void __launch_bounds__(kThreads, (kBlocks<Kernel::apply, false, mixed, curve>))
    batch_norm_apply_forward(const __grid_constant__ ForwardParams params) {
  apply_forward<T, vector, mixed, curve>(params);
}

template <class T, int vector, bool mixed, Curve curve>
__global__ void __launch_bounds__(kThreads, (kBlocks<Kernel::apply, true, mixed, curve>))
    batch_norm_apply_backward(const __grid_constant__ BackwardParams params) {
  apply_backward<T, vector, mixed, curve>(params);
}

template <auto kernel>
Entry* entry() {
  static Entry only(reinterpret_cast<const void*>(kernel));
  return &only;
}

template <class T, int vector, bool mixed, Curve curve>
Entry* entry_for(KernelTypes<T, vector, mixed, curve> types, Kernel kernel, bool forward) {
  if (kernel == Kernel::reduce) {
    return forward ? entry<batch_norm_reduce_forward<T, vector, mixed>>()
                   : entry<batch_norm_reduce_backward<T, vector, mixed, curve>>();
  }
  if (kernel == Kernel::apply) {
    return forward ? entry<batch_norm_apply_forward<T, vector, mixed, curve>>()
                   : entry<batch_norm_apply_backward<T, vector, mixed, curve>>();
  }
  if constexpr (types.resident) {
    return forward ? entry<batch_norm_resident_forward<T, vector, mixed, curve>>()
                   : entry<batch_norm_resident_backward<T, vector, mixed, curve>>();
  }
  return nullptr;
}

}  // namespace

template <class T>
Entry* entry_of(Kernel kernel, Direction direction, const Tiling& tiling, Activation activation) {
  return with_types<T>(tiling, activation,
                       [&](auto types) { return entry_for(types, kernel, direction == Direction::forward); });
}

}  // namespace fused_bn::cuda
