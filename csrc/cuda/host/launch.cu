#include "cuda/host/launch.h"

#include "cuda/host/kernels.h"
#include "cuda/kernels/merge.cuh"

namespace fused_bn::cuda {
namespace {

std::atomic<int64_t> count{0};

template <class A>
__global__ void __launch_bounds__(kMergeThreads, 1)
    batch_norm_merge(const __grid_constant__ MergeParams params) {
  merge_kernel<A>(params);
}

using Find = Entry* (*)(Kernel, Direction, const Tiling&, Activation);
constexpr Find kFind[] = {entry_of<float>, entry_of<double>, entry_of<BFloat16>, entry_of<Float16>};

Entry* find_entry(Kernel kernel, DType dtype, Direction direction, const Tiling& tiling,
                  Activation activation) {
  return kFind[static_cast<int>(dtype)](kernel, direction, tiling, activation);
}

// What a kernel has to ask for once a device: more than 48 KB of shared memory, and clusters of 16 blocks.
cudaError_t opt_in(const void* function, int device, bool has_clusters) {
  int bytes = 0;
  cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(function, attribute, value);
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (has_clusters) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// The architecture that the kernel was compiled for: 90 is sm_90. A newer device may run it too, by the
// driver's own compiler, but without the instructions of that device.
cudaError_t prepare(Kernel kernel, Entry& entry, int& compiled_for) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  std::atomic<int>& known = entry.compiled_for[static_cast<size_t>(device)];
  compiled_for = known;
  if (compiled_for != 0) return cudaSuccess;
  cudaFuncAttributes attributes{};
  error = cudaFuncGetAttributes(&attributes, entry.function);
  if (error == cudaSuccess && kernel == Kernel::resident) {
    error = opt_in(entry.function, device, attributes.ptxVersion >= 90);
  }
  if (error == cudaSuccess) known = compiled_for = attributes.ptxVersion;
  return error;
}

cudaLaunchAttribute cluster_of(int blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  return attribute;
}

// How the launch differs from a plain one.
cudaLaunchAttribute attribute_of(Kernel kernel, const Plan& plan, int compiled_for) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeIgnore;
  if (kernel == Kernel::resident && plan.exchange == Exchange::cluster) {
    return cluster_of(plan.first.tiling.group);
  }
  if (kernel == Kernel::resident && plan.exchange == Exchange::words) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  // It waits for the reduce pass by an instruction.
  if (kernel == Kernel::apply && plan.first.grid() > 0 && compiled_for >= 90) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return attribute;
}

cudaLaunchConfig_t config_of(int64_t blocks, int threads, int shared_bytes, cudaLaunchAttribute& attribute,
                             cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return config;
}

Direction direction_of(const ForwardParams&) { return Direction::forward; }
Direction direction_of(const BackwardParams&) { return Direction::backward; }
bool has_outputs(const ForwardParams&) { return true; }
bool has_outputs(const BackwardParams& p) { return p.grad_input != nullptr || p.grad_residual != nullptr; }

template <class Params>
cudaError_t launch_kernel(Kernel kernel, const Plan& plan, DType dtype, Params& params, cudaStream_t stream) {
  const Launch& launch = kernel == Kernel::apply ? plan.apply : plan.first;
  if (launch.grid() == 0 || (kernel == Kernel::apply && !has_outputs(params))) return cudaSuccess;
  Entry* entry = find_entry(kernel, dtype, direction_of(params), launch.tiling, params.activation);
  if (entry == nullptr) return cudaErrorInvalidDeviceFunction;
  int compiled_for = 0;
  if (const cudaError_t error = prepare(kernel, *entry, compiled_for); error != cudaSuccess) return error;
  params.tiling = launch.tiling;
  params.layout = launch.layout;
  params.exchange = plan.exchange;
  params.slots = plan.slots;
  cudaLaunchAttribute attribute = attribute_of(kernel, plan, compiled_for);
  const cudaLaunchConfig_t config =
      config_of(launch.grid(), launch.tiling.threads, launch.layout.bytes, attribute, stream);
  void* arguments[] = {&params};
  ++count;
  return cudaLaunchKernelExC(&config, entry->function, arguments);
}

template <class Params>
cudaError_t launch_plan(const Plan& plan, DType dtype, Params& params, cudaStream_t stream) {
  const Kernel first = plan.resident ? Kernel::resident : Kernel::reduce;
  const cudaError_t error = launch_kernel(first, plan, dtype, params, stream);
  return error == cudaSuccess ? launch_kernel(Kernel::apply, plan, dtype, params, stream) : error;
}

}  // namespace

cudaError_t launch(const Plan& plan, DType dtype, ForwardParams params, cudaStream_t stream) {
  return launch_plan(plan, dtype, params, stream);
}

cudaError_t launch(const Plan& plan, DType dtype, BackwardParams params, cudaStream_t stream) {
  return launch_plan(plan, dtype, params, stream);
}

cudaError_t launch(const MergeParams& params, cudaStream_t stream) {
  ++count;
  if (params.dtype == DType::f64) {
    batch_norm_merge<double><<<1, kMergeThreads, 0, stream>>>(params);
  } else {
    batch_norm_merge<float><<<1, kMergeThreads, 0, stream>>>(params);
  }
  return cudaGetLastError();
}

int64_t launches() { return count; }

bool runs_at_once(const Plan& plan, const Problem& p) {
  const Tiling& t = plan.first.tiling;
  Entry* entry = find_entry(Kernel::resident, p.dtype, p.direction, t, p.activation);
  int compiled_for = 0, device = 0, multiprocessors = 0, blocks = 0;
  const auto bytes = static_cast<size_t>(plan.first.layout.bytes);
  return entry != nullptr && prepare(Kernel::resident, *entry, compiled_for) == cudaSuccess &&
         cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
         cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry->function, t.threads, bytes) ==
             cudaSuccess &&
         plan.first.grid() <= int64_t{blocks} * multiprocessors;
}

std::array<int, 5> active_clusters() {
  std::array<int, 5> active{};
  Tiling tiling{};
  tiling.vector = 4;
  Entry& entry = *entry_of<float>(Kernel::resident, Direction::backward, tiling, Activation::relu);
  int compiled_for = 0, device = 0, bytes = 0;
  if (prepare(Kernel::resident, entry, compiled_for) != cudaSuccess || compiled_for < 90 ||
      cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return active;
  }
  for (size_t i = 0; i < active.size(); ++i) {
    cudaLaunchAttribute attribute = cluster_of(1 << i);
    const cudaLaunchConfig_t config = config_of(1 << i, kThreads, bytes, attribute, nullptr);
    if (cudaOccupancyMaxActiveClusters(&active[i], entry.function, &config) == cudaSuccess) continue;
    active[i] = 0;
    cudaGetLastError();  // sizes beyond the device's are an error
  }
  return active;
}

}  // namespace fused_bn::cuda
