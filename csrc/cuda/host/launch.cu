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

cudaError_t prepare(Kernel kernel, const Problem& problem, const Device& device, const Launch& launch,
                    Prepared& prepared) {
  if (launch.grid() == 0) return cudaSuccess;
  prepared.kernel = kKernelOf[static_cast<int>(problem.dtype)](kernel, problem, launch.tiling);
  if (prepared.kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  if (launch.exchange == Exchange::cluster) prepared.attribute = cluster_of(launch.tiling.group);
  if (launch.exchange == Exchange::words) {
    prepared.attribute.id = cudaLaunchAttributeCooperative;
    prepared.attribute.val.cooperative = 1;
  }
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, prepared.kernel);
  prepared.compiled_for = attributes.ptxVersion;
  if (kernel != Kernel::resident) return error;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(prepared.kernel, attribute, value);
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(device.shared_per_block));
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (prepared.compiled_for >= 90) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

cudaError_t launch(const Launch& launch, const Prepared& prepared, Launch& params, cudaStream_t stream) {
  if (prepared.kernel == nullptr) return cudaSuccess;
  params = launch;
  cudaLaunchAttribute attribute = prepared.attribute;
  const cudaLaunchConfig_t config = config_of(launch.grid(), launch.layout.bytes, attribute, stream);
  void* arguments[] = {&params};
  const cudaError_t error = cudaLaunchKernelExC(&config, prepared.kernel, arguments);
  count += error == cudaSuccess;
  return error;
}

}  // namespace

cudaError_t prepare(const Problem& problem, const Device& device, PreparedPlan& prepared) {
  const Plan& plan = prepared.plan;
  const Kernel first = plan.resident ? Kernel::resident : Kernel::reduce;
  const cudaError_t error = prepare(first, problem, device, plan.first, prepared.first);
  if (error != cudaSuccess) return error;
  // The apply pass waits for the reduce pass by an instruction.
  if (prepared.first.compiled_for >= 90) {
    prepared.apply.attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    prepared.apply.attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return prepare(Kernel::apply, problem, device, plan.apply, prepared.apply);
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
  Launch launch{};
  launch.tiling.vector = 4;
  launch.tiling.group = launch.tiling.groups = 1;
  Prepared prepared;
  const cudaError_t error = prepare(Kernel::resident, problem, device, launch, prepared);
  if (error != cudaSuccess || prepared.compiled_for < 90) return active;
  const auto bytes = static_cast<int>(device.shared_per_block);
  for (size_t i = 0; i < active.size(); ++i) {
    cudaLaunchAttribute attribute = cluster_of(1 << i);
    const cudaLaunchConfig_t config = config_of(1 << i, bytes, attribute, nullptr);
    if (cudaOccupancyMaxActiveClusters(&active[i], prepared.kernel, &config) == cudaSuccess) continue;
    active[i] = 0;
    cudaGetLastError();  // sizes beyond the device's are an error
  }
  return active;
}

}  // namespace fused_bn::cuda
