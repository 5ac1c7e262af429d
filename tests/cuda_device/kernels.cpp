// Kernels: registration, occupancy, and launches, which are checked as the driver checks them.
#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "launches.h"
#include "streams.h"

namespace cuda_device {
namespace {

struct Function {
  KernelName name;
  bool ours = false;
  std::map<int, int> most_shared = {};  // bytes, by device
  std::set<int> large_clusters = {};    // devices that allow clusters of 16
};
std::map<const void*, Function>& functions = *new std::map<const void*, Function>;

Function* find(const void* function) {
  const auto found = functions.find(function);
  return found == functions.end() ? nullptr : &found->second;
}

int compiled_for() {
  return static_cast<int>(setting("CUDA_DEVICE_COMPILED_FOR", device(current_device()).architecture));
}

int most_threads(const Function& f) {
  return f.name.pass == Pass::merge ? fused_bn::cuda::kMergeThreads : fused_bn::cuda::kThreads;
}

// By registers: as many blocks of kThreads as the launch bounds demand.
int blocks_by_registers(const Function& f) {
  using fused_bn::cuda::Kernel;
  if (f.name.pass == Pass::merge) return fused_bn::cuda::kMergeThreads / fused_bn::cuda::kThreads;
  return fused_bn::cuda::blocks_by_registers(compiled_for(), static_cast<Kernel>(f.name.pass),
                                             f.name.backward, f.name.mixed, f.name.kind);
}

int active_blocks(const Function& f, int threads, int64_t shared_bytes) {
  const Device& d = device(current_device());
  const int64_t by_registers = int64_t{blocks_by_registers(f)} * fused_bn::cuda::kThreads / threads;
  const int64_t by_shared =
      d.shared_per_multiprocessor / std::max<int64_t>(1, shared_bytes + d.reserved_shared);
  const int64_t by_threads = d.threads_per_multiprocessor / threads;
  return static_cast<int>(
      std::min<int64_t>({by_registers, by_shared, by_threads, d.blocks_per_multiprocessor}));
}

int most_blocks_of_cluster(const Function& f) {
  const Device& d = device(current_device());
  if (compiled_for() < 90) return 1;
  return f.large_clusters.count(current_device()) != 0 ? d.max_cluster : std::min(d.max_cluster, 8);
}

// Scales what an H200 answers for one and for two blocks a multiprocessor: its parts are of unequal sizes.
int active_clusters(int size, int blocks_per_multiprocessor) {
  constexpr int kMultiprocessors = 132;
  constexpr int kMeasured[2][5] = {{132, 66, 30, 15, 7}, {264, 132, 62, 30, 14}};
  int log2 = 0;
  while (1 << log2 < size) ++log2;
  const bool two = blocks_per_multiprocessor % 2 == 0;
  const int measured = kMeasured[two][log2] * blocks_per_multiprocessor / (two ? 2 : 1);
  return measured * device(current_device()).multiprocessors / kMultiprocessors;
}

cudaError_t check(const Function& f, const simt::Launch& l) {
  const std::string text = f.name.text();
  const char* const name = text.c_str();
  const Device& d = device(current_device());
  if (l.grid < 1 || l.threads < 1 || l.threads > most_threads(f)) {
    return fail(cudaErrorInvalidConfiguration, "%s: grid %ld, threads %d", name, (long)l.grid, l.threads);
  }
  const auto allowed = f.most_shared.find(current_device());
  const int most = allowed == f.most_shared.end() ? 48 << 10 : allowed->second;
  if (l.shared_bytes > most) {
    return fail(cudaErrorInvalidValue, "%s: %ld bytes of shared memory, %d are allowed", name,
                (long)l.shared_bytes, most);
  }
  if (l.cluster > most_blocks_of_cluster(f) || l.grid % l.cluster != 0) {
    return fail(cudaErrorInvalidClusterSize, "%s: grid %ld, clusters of %d", name, (long)l.grid, l.cluster);
  }
  const int blocks = active_blocks(f, l.threads, l.shared_bytes);
  if (blocks < 1) return fail(cudaErrorInvalidValue, "%s: does not fit on a multiprocessor", name);
  if (!l.cooperative) return cudaSuccess;
  if (!d.cooperative) return fail(cudaErrorNotSupported, "%s: a cooperative launch", name);
  if (l.grid <= int64_t{blocks} * d.cooperative_multiprocessors) return cudaSuccess;
  return fail(cudaErrorCooperativeLaunchTooLarge, "%s: grid %ld", name, (long)l.grid);
}

cudaError_t launch_of_torch(const Function& f) {
  // torch.cuda._sleep(): work is late without it.
  if (f.name.mangled.find("spin_kernel") != std::string::npos) return cudaSuccess;
  std::fprintf(stderr, "CUDA DEVICE: torch launches %s, which is not emulated\n", f.name.mangled.c_str());
  return fail(cudaErrorNotSupported, "%s", f.name.mangled.c_str());
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                   cudaStream_t handle, const cudaLaunchAttribute* attributes, unsigned attribute_count) {
  const Lock lock(runtime_mutex);
  Function* const f = find(function);
  if (f == nullptr) return fail(cudaErrorInvalidDeviceFunction, "a kernel that nobody registered");
  CUstream_st& stream = stream_of(handle);
  if (stream.device != current_device()) {
    return fail(cudaErrorInvalidResourceHandle, "%s on a stream of device %d, the current one is %d",
                f->name.text().c_str(), stream.device, current_device());
  }
  if (!f->ours) return launch_of_torch(*f);
  auto kernel = std::make_shared<KernelLaunch>();
  simt::Launch& l = kernel->launch;
  l.grid = int64_t{grid.x} * grid.y * grid.z;
  l.threads = static_cast<int>(block.x * block.y * block.z);
  l.shared_bytes = static_cast<int64_t>(shared);
  l.seed = static_cast<uint64_t>(setting("CUDA_DEVICE_SEED", 0));
  l.workers = 1;
  for (unsigned i = 0; i < attribute_count; ++i) {
    const auto& value = attributes[i].val;
    if (attributes[i].id == cudaLaunchAttributeClusterDimension) {
      l.cluster = static_cast<int>(value.clusterDim.x);
    } else if (attributes[i].id == cudaLaunchAttributeCooperative) {
      l.cooperative = value.cooperative != 0;
    } else if (attributes[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      kernel->programmatic = value.programmaticStreamSerializationAllowed != 0;
    }
  }
  if (const cudaError_t error = check(*f, l); error != cudaSuccess) return error;
  kernel->has_dependent = f->name.pass == Pass::reduce;
  log("launch %s, grid %ld x %d, cluster %d, cooperative %d, programmatic %d, %ld bytes",
      f->name.text().c_str(), (long)l.grid, l.threads, l.cluster, l.cooperative, kernel->programmatic,
      (long)l.shared_bytes);
  Work work{f->name.text()};
  try {
    prepare_launch(f->name, arguments[0], *kernel, work.accesses);
  } catch (const std::runtime_error& error) {
    report(work.name + ": " + error.what());
    return cudaSuccess;  // as a GPU, which notices later
  }
  work.kernel = std::move(kernel);
  return enqueue(stream, std::move(work));
}

// Holds a launch by <<<>>> between its push and its pop.
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

}  // namespace
}  // namespace cuda_device

using namespace cuda_device;

EXPORTED void** __cudaRegisterFatBinary(void*) {
  static void* one;
  return &one;
}
EXPORTED void __cudaRegisterFatBinaryEnd(void**) {}
EXPORTED void __cudaUnregisterFatBinary(void**) {}
EXPORTED void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORTED char __cudaInitModule(void**) { return 1; }
EXPORTED void __cudaRegisterFunction(void**, const char* function, char*, const char* mangled, int, uint3*,
                                     uint3*, dim3*, dim3*, int*) {
  const Lock lock(runtime_mutex);
  Function& f = functions[function];
  f.name.mangled = mangled;
  f.ours = f.name.mangled.find("fused_bn") != std::string::npos;
  if (!f.ours) return;
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr);
  f.name = parse_name(demangled);
  std::free(demangled);
}
EXPORTED cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return __cudaGetKernel(kernel, function);
}
EXPORTED unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
EXPORTED cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}
EXPORTED cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                        size_t shared, cudaStream_t stream) {
  return launch(kernel, grid, block, arguments, shared, stream, nullptr, 0);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  return launch(function, grid, block, arguments, shared, stream, nullptr, 0);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  return launch(function, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream, c->attrs,
                c->numAttrs);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Lock lock(runtime_mutex);
  Function* const f = find(function);
  if (f == nullptr) return fail(cudaErrorInvalidDeviceFunction, "cudaFuncSetAttribute");
  const Device& d = device(current_device());
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > d.shared_per_multiprocessor - d.reserved_shared) {
      return fail(cudaErrorInvalidValue, "cudaFuncSetAttribute: %d bytes of shared memory", value);
    }
    f->most_shared[current_device()] = value;
  }
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed && value != 0) {
    f->large_clusters.insert(current_device());
  }
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const Lock lock(runtime_mutex);
  *attributes = {};
  const Function* f = find(function);
  if (f == nullptr) return fail(cudaErrorInvalidDeviceFunction, "cudaFuncGetAttributes");
  attributes->ptxVersion = attributes->binaryVersion = compiled_for();
  attributes->numRegs = 65536 / fused_bn::cuda::kThreads / blocks_by_registers(*f);
  attributes->maxThreadsPerBlock = most_threads(*f);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                   int threads, size_t shared, unsigned) {
  const Lock lock(runtime_mutex);
  const Function* f = find(function);
  const bool ours = f != nullptr && f->ours;
  *blocks = ours ? active_blocks(*f, threads, static_cast<int64_t>(shared)) : 1;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* c) {
  const Lock lock(runtime_mutex);
  int size = 1;
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    if (c->attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    size = static_cast<int>(c->attrs[i].val.clusterDim.x);
  }
  const Function* f = find(function);
  *clusters = 0;
  if (f == nullptr || size > most_blocks_of_cluster(*f)) {
    return fail(cudaErrorInvalidClusterSize, "clusters of %d", size);
  }
  const int threads = static_cast<int>(c->blockDim.x * c->blockDim.y * c->blockDim.z);
  const int blocks = active_blocks(*f, threads, static_cast<int64_t>(c->dynamicSmemBytes));
  if (blocks > 0) *clusters = active_clusters(size, blocks);
  log("cudaOccupancyMaxActiveClusters of %d blocks: %d", size, *clusters);
  return cudaSuccess;
}
