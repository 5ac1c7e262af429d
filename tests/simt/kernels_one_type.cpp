// The kernels of SIMT_ELEMENT; in files of their own, so that they compile side by side.
#include "kernels.h"

#include "cuda/backward.cuh"
#include "cuda/dispatch.h"
#include "cuda/forward.cuh"

namespace simt {
namespace {

template <class Types>
void run(const fused_bn::cuda::ForwardParams& params, Types) {
  fused_bn::cuda::forward_kernel<typename Types::Element, Types::mapping, Types::whole, Types::activation>(
      params);
}
template <class Types>
void run(const fused_bn::cuda::BackwardParams& params, Types) {
  fused_bn::cuda::backward_kernel<typename Types::Element, Types::mapping, Types::whole, Types::activation>(
      params);
}

template <class T, class Params>
void run_launch(const Params& params, fused_bn::Activation activation, const Launch& launch) {
  const auto& geometry = params.geometry;
  fused_bn::cuda::with_kernel_types<T>(geometry.mapping, geometry.whole, activation, [&](auto types) {
    simt::launch(launch, [&params, types] { run(params, types); });
  });
}

}  // namespace

template <>
void run_kernel<SIMT_ELEMENT>(const fused_bn::cuda::ForwardParams& params, fused_bn::Activation activation,
                              const Launch& launch) {
  run_launch<SIMT_ELEMENT>(params, activation, launch);
}
template <>
void run_kernel<SIMT_ELEMENT>(const fused_bn::cuda::BackwardParams& params, fused_bn::Activation activation,
                              const Launch& launch) {
  run_launch<SIMT_ELEMENT>(params, activation, launch);
}

}  // namespace simt
