#include "cuda/host/launch.h"

#include <atomic>

#include "cuda/kernels/merge.cuh"

namespace fused_bn::cuda {
namespace {

std::atomic<int64_t> count{0};

template <class A>
__global__ void __launch_bounds__(kMergeThreads, 1)
    batch_norm_merge(const __grid_constant__ MergeParams params) {
  merge_kernel<A>(params);
}

constexpr decltype(&kernel_of<float>) kKernelOf[] = {kernel_of<float>, kernel_of<double>, kernel_of<BFloat16>,
                                                     kernel_of<Float16>};

// What the resident kernel has to ask for: more than 48 KB of shared memory, and clusters of 16 blocks.
cudaError_t opt_in(const void* kernel, const Device& device, bool has_clusters) {
  cudaError_t error = cudaSuccess;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, attribute, value);
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(device.shared_per_block));
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (has_clusters) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// compiled_for: 90 is sm_90. A newer device may run the kernel too, but without its own instructions.
cudaError_t prepare(Kernel kernel, const Problem& problem, const Device& device, const Tiling& tiling,
                    const void*& function, int& compiled_for) {
  function = kKernelOf[static_cast<int>(problem.dtype)](kernel, problem, tiling);
  if (function == nullptr) return cudaErrorInvalidDeviceFunction;
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, function);
  compiled_for = attributes.ptxVersion;
  if (error != cudaSuccess || kernel != Kernel::resident) return error;
  return opt_in(function, device, compiled_for >= 90);
}

cudaLaunchAttribute cluster_of(int blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  return attribute;
}

cudaLaunchConfig_t config_of(int64_t blocks, int shared_bytes, cudaLaunchAttribute& attribute,
                             cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(shared_bytes);
  return {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, stream, &attribute, 1};
}

cudaError_t launch(const Launch& launch, const Prepared& prepared, Launch& params, cudaStream_t stream) {
  if (prepared.kernel == nullptr) return cudaSuccess;
  params = launch;
  cudaLaunchAttribute attribute = prepared.attribute;
  const cudaLaunchConfig_t config = config_of(launch.grid(), launch.layout.bytes, attribute, stream);
  void* arguments[] = {&params};
  ++count;
  return cudaLaunchKernelExC(&config, prepared.kernel, arguments);
}

}  // namespace

cudaError_t prepare(const Problem& problem, const Device& device, PreparedPlan& prepared) {
  const Plan& plan = prepared.plan;
  const bool has_first = plan.first.grid() > 0, has_apply = plan.apply.grid() > 0;
  const Kernel first = plan.resident ? Kernel::resident : Kernel::reduce;
  int compiled_for = 0;
  cudaError_t error = cudaSuccess;
  if (has_first) {
    error = prepare(first, problem, device, plan.first.tiling, prepared.first.kernel, compiled_for);
  }
  if (has_apply && error == cudaSuccess) {
    error = prepare(Kernel::apply, problem, device, plan.apply.tiling, prepared.apply.kernel, compiled_for);
  }
  if (plan.first.exchange == Exchange::cluster)
    prepared.first.attribute = cluster_of(plan.first.tiling.group);
  if (plan.first.exchange == Exchange::words) {
    prepared.first.attribute.id = cudaLaunchAttributeCooperative;
    prepared.first.attribute.val.cooperative = 1;
  }
  // The apply pass waits for the reduce pass by an instruction.
  if (has_first && has_apply && compiled_for >= 90) {
    prepared.apply.attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    prepared.apply.attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return error;
}

cudaError_t launch(const PreparedPlan& prepared, Launch& params, bool results_wanted, cudaStream_t stream) {
  const cudaError_t error = launch(prepared.plan.first, prepared.first, params, stream);
  if (error != cudaSuccess || !results_wanted) return error;
  return launch(prepared.plan.apply, prepared.apply, params, stream);
}

cudaError_t launch(const MergeParams& params, cudaStream_t stream) {
  ++count;
  const auto kernel = params.dtype == DType::f64 ? batch_norm_merge<double> : batch_norm_merge<float>;
  kernel<<<1, kMergeThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

int64_t launches() { return count; }

bool runs_at_once(const PreparedPlan& prepared, const Device& device) {
  const Launch& first = prepared.plan.first;
  const auto bytes = static_cast<size_t>(first.layout.bytes);
  int blocks = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, prepared.first.kernel, kThreads, bytes);
  return error == cudaSuccess && first.grid() <= int64_t{blocks} * device.multiprocessors;
}

std::array<int, 5> active_clusters(const Device& device) {
  std::array<int, 5> active{};
  const Problem problem{{}, DType::f32, Direction::backward};
  Tiling tiling{};
  tiling.vector = 4;
  const void* kernel = nullptr;
  int compiled_for = 0;
  const cudaError_t error = prepare(Kernel::resident, problem, device, tiling, kernel, compiled_for);
  if (error != cudaSuccess || compiled_for < 90) return active;
  const auto bytes = static_cast<int>(device.shared_per_block);
  for (size_t i = 0; i < active.size(); ++i) {
    cudaLaunchAttribute attribute = cluster_of(1 << i);
    const cudaLaunchConfig_t config = config_of(1 << i, bytes, attribute, nullptr);
    if (cudaOccupancyMaxActiveClusters(&active[i], kernel, &config) == cudaSuccess) continue;
    active[i] = 0;
    cudaGetLastError();  // sizes beyond the device's are an error
  }
  return active;
}

}  // namespace fused_bn::cuda
