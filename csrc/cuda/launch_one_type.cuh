// The kernels of one element type and their launch; included by a .cu file for each.
#pragma once

#include <atomic>
#include <type_traits>

#include "cuda/backward.cuh"
#include "cuda/dispatch.h"
#include "cuda/forward.cuh"
#include "cuda/launch.h"

namespace fused_bn::cuda {
namespace {

template <class T, Mapping mapping, bool whole, Curve curve>
__global__ void __launch_bounds__(threads_of(kDType<T>), 1)
    batch_norm_forward(const __grid_constant__ ForwardParams params) {
  forward_kernel<T, mapping, whole, curve>(params);
}

template <class T, Mapping mapping, bool whole, Curve curve>
__global__ void __launch_bounds__(threads_of(kDType<T>), 1)
    batch_norm_backward(const __grid_constant__ BackwardParams params) {
  backward_kernel<T, mapping, whole, curve>(params);
}

template <class Types>
constexpr auto kernel_of(const ForwardParams&) {
  return batch_norm_forward<typename Types::Element, Types::mapping, Types::whole, Types::curve>;
}
template <class Types>
constexpr auto kernel_of(const BackwardParams&) {
  return batch_norm_backward<typename Types::Element, Types::mapping, Types::whole, Types::curve>;
}

// Once a kernel and device: more shared memory than 48 KB, and clusters of 16 blocks, are for those who ask.
template <auto kernel>
cudaError_t prepare() {
  static std::atomic<uint64_t> prepared{0};
  int device = 0, bytes = 0, major = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const uint64_t bit = uint64_t{1} << (device % 64);
  if (device < 64 && (prepared & bit) != 0) return cudaSuccess;
  const auto f = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess && major >= 9) {
    error = cudaFuncSetAttribute(f, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) prepared |= bit;
  return error;
}

template <auto kernel, class Params>
cudaError_t launch_kernel(const Plan& plan, const Params& params, cudaStream_t stream) {
  if (const cudaError_t error = prepare<kernel>(); error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.grid));
  config.blockDim = dim3(static_cast<unsigned>(plan.geometry.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.layout.bytes);
  config.stream = stream;
  config.attrs = &attribute;
  if (plan.exchange == Exchange::cluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(plan.geometry.group), 1, 1};
    config.numAttrs = 1;
  } else if (plan.exchange == Exchange::barrier) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, params);
}

template <class T, class Params>
cudaError_t launch_any(const Plan& plan, const Params& params, cudaStream_t stream) {
  const Geometry& g = plan.geometry;
  return with_kernel_types<T>(g.mapping, g.whole, params.activation, [&](auto types) {
    constexpr bool backward = std::is_same_v<Params, BackwardParams>;
    constexpr int most = register_steps(kDType<T>, backward, types.mapping, types.curve);
    if (g.register_steps > most) return cudaErrorInvalidValue;  // the plan is for another activation
    return launch_kernel<kernel_of<decltype(types)>(Params{})>(plan, params, stream);
  });
}

}  // namespace

// Blocks that take the most of a multiprocessor ask for the most of a cluster.
template <class T>
int largest_cluster(int limit) {
  constexpr auto kernel = batch_norm_backward<T, Mapping::columns, true, Curve::relu>;
  int device = 0, bytes = 0;
  if (prepare<kernel>() != cudaSuccess || cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return 1;
  }
  // Compiled for an older architecture, and by the driver for this one, it has no cluster's instructions.
  cudaFuncAttributes compiled{};
  if (cudaFuncGetAttributes(&compiled, kernel) != cudaSuccess || compiled.ptxVersion < 90) return 1;
  for (int blocks = limit; blocks > 1; blocks /= 2) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(threads_of(kDType<T>));
    config.dynamicSmemBytes = static_cast<size_t>(bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int active = 0;
    if (cudaOccupancyMaxActiveClusters(&active, kernel, &config) == cudaSuccess && active > 0) return blocks;
    cudaGetLastError();  // sizes beyond the device's are an error
  }
  return 1;
}

template <class T>
cudaError_t launch_one_type(const Plan& plan, const ForwardParams& params, cudaStream_t stream) {
  return launch_any<T>(plan, params, stream);
}
template <class T>
cudaError_t launch_one_type(const Plan& plan, const BackwardParams& params, cudaStream_t stream) {
  return launch_any<T>(plan, params, stream);
}

}  // namespace fused_bn::cuda
