// Devices, their properties, and errors.
//
// CUDA_DEVICES=H200:16,T4 lists them: a model, and multiprocessors where they are not the model's own.
// H200:16/8 has 16 multiprocessors, of which a cooperative launch gets 8.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "runtime.h"

namespace cuda_device {

std::recursive_mutex runtime_mutex;

namespace {

constexpr size_t kMemoryBytes = size_t{16} << 30;

// CUDA programming guide, "Compute capabilities"; multiprocessors and L2 by the data sheets.
constexpr Device kModels[] = {
    {"T4", 75, 40, 64 << 10, 0, 1024, 16, 4 << 20, false, 1, 0},
    {"A100", 80, 108, 164 << 10, 1024, 2048, 32, 40 << 20, true, 1, 0},
    {"L40", 89, 142, 100 << 10, 1024, 1536, 24, 96 << 20, true, 1, 0},
    {"H200", 90, 132, 228 << 10, 1024, 2048, 32, 60 << 20, true, 16, 0},
    {"B200", 100, 148, 228 << 10, 1024, 2048, 32, 126 << 20, true, 16, 0},
    {"RTX 5090", 120, 170, 100 << 10, 1024, 1536, 24, 96 << 20, true, 8, 0},
};

Device parse(const std::string& text) {
  const auto colon = text.find(':');
  for (const Device& model : kModels) {
    if (text.substr(0, colon) != model.name) continue;
    Device device = model;
    if (colon != std::string::npos) device.multiprocessors = std::atoi(text.c_str() + colon + 1);
    const auto slash = text.find('/');
    device.cooperative_multiprocessors =
        slash == std::string::npos ? device.multiprocessors : std::atoi(text.c_str() + slash + 1);
    if (device.multiprocessors > 0 && device.cooperative_multiprocessors > 0) return device;
  }
  std::fprintf(stderr, "CUDA_DEVICES: no model and multiprocessors in '%s'\n", text.c_str());
  std::exit(2);
}

const std::vector<Device>& devices() {
  static const std::vector<Device> all = [] {
    const char* listed = std::getenv("CUDA_DEVICES");
    const std::string text = listed == nullptr ? "H200:16,H200:16,H200:16,H200:16" : listed;
    std::vector<Device> parsed;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      parsed.push_back(parse(text.substr(begin, end - begin)));
      begin = end + 1;
    }
    return parsed;
  }();
  return all;
}

thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t checked(int index, const char* call) {
  if (index >= 0 && index < device_count()) return cudaSuccess;
  return fail(cudaErrorInvalidDevice, "%s of device %d", call, index);
}

}  // namespace

int device_count() { return static_cast<int>(devices().size()); }
const Device& device(int index) { return devices().at(static_cast<size_t>(index)); }
int current_device() { return current; }
void set_current_device(int index) { current = index; }

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atoll(text) : otherwise;
}

void log(const char* format, ...) {
  static const bool wanted = setting("CUDA_DEVICE_LOG", 0) != 0;
  if (!wanted) return;
  va_list arguments;
  va_start(arguments, format);
  std::fputs("cuda device: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
}

cudaError_t fail(cudaError_t error, const char* format, ...) {
  char text[500];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  log("error %d: %s", error, text);
  return last_error = error;
}

}  // namespace cuda_device

using namespace cuda_device;

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  *index = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  const cudaError_t error = checked(index, "cudaSetDevice");
  if (error == cudaSuccess) current = index;
  return error;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int index) {
  if (const cudaError_t error = checked(index, "cudaGetDeviceProperties"); error != cudaSuccess) return error;
  const Device& d = device(index);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "NVIDIA %s (emulated)", d.name);
  p->uuid.bytes[0] = static_cast<char>(index + 1);
  p->pciBusID = index + 1;
  p->major = d.architecture / 10;
  p->minor = d.architecture % 10;
  p->multiProcessorCount = d.multiprocessors;
  p->maxThreadsPerMultiProcessor = d.threads_per_multiprocessor;
  p->maxBlocksPerMultiProcessor = d.blocks_per_multiprocessor;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerMultiprocessor = static_cast<size_t>(d.shared_per_multiprocessor);
  p->sharedMemPerBlockOptin = static_cast<size_t>(d.shared_per_multiprocessor - d.reserved_shared);
  p->reservedSharedMemPerBlock = static_cast<size_t>(d.reserved_shared);
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->memPitch = 2147483647;
  p->textureAlignment = 512;
  p->totalConstMem = 64 << 10;
  p->totalGlobalMem = kMemoryBytes;
  p->l2CacheSize = d.l2_bytes;
  p->memoryBusWidth = 6144;
  p->asyncEngineCount = 3;
  p->unifiedAddressing = p->canMapHostMemory = p->concurrentKernels = p->managedMemory = 1;
  p->streamPrioritiesSupported = 1;
  p->cooperativeLaunch = d.cooperative;
  p->clusterLaunch = d.max_cluster > 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, index); error != cudaSuccess) return error;
  *value = [&] {
    switch (attribute) {
      case cudaDevAttrMaxSharedMemoryPerBlock:
        return static_cast<int>(p.sharedMemPerBlock);
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return static_cast<int>(p.sharedMemPerBlockOptin);
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return static_cast<int>(p.sharedMemPerMultiprocessor);
      case cudaDevAttrComputeCapabilityMajor:
        return p.major;
      case cudaDevAttrComputeCapabilityMinor:
        return p.minor;
      case cudaDevAttrMultiProcessorCount:
        return p.multiProcessorCount;
      case cudaDevAttrWarpSize:
        return p.warpSize;
      case cudaDevAttrMaxThreadsPerBlock:
        return p.maxThreadsPerBlock;
      case cudaDevAttrCooperativeLaunch:
        return p.cooperativeLaunch;
      case cudaDevAttrL2CacheSize:
        return p.l2CacheSize;
      case cudaDevAttrGlobalMemoryBusWidth:
        return p.memoryBusWidth;
      case cudaDevAttrClockRate:
        return 1'980'000;  // kHz
      case cudaDevAttrMemoryClockRate:
        return 3'201'000;
      case cudaDevAttrCanMapHostMemory:
      case cudaDevAttrUnifiedAddressing:
        return 1;
      default:
        log("cudaDeviceGetAttribute(%d) is 0", attribute);
        return 0;
    }
  }();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int index) {
  std::snprintf(id, static_cast<size_t>(length), "0000:%02x:00.0", index + 1);
  return cudaSuccess;
}
cudaError_t cudaInitDevice(int, unsigned, unsigned) { return cudaSuccess; }
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaGetDeviceFlags(unsigned* flags) {
  *flags = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit) {
  *value = 1024;
  return cudaSuccess;
}
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
cudaError_t cudaCtxResetPersistingL2Cache() { return cudaSuccess; }
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (result != nullptr) *result = cudaDriverEntryPointSymbolNotFound;
  return fail(cudaErrorNotSupported, "the driver's %s", name);
}
