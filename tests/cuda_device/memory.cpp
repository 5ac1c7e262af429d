// Memory: each allocation of the device starts as NaN and ends at a page that nobody may touch.
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <map>

#include "graphs.h"

namespace cuda_device {
namespace {

struct Allocation {
  size_t bytes;
  int device;  // -1: pinned memory of the host
  char* pages = nullptr;
  size_t mapped = 0;
};
using Allocations = std::map<uintptr_t, Allocation>;  // by the host's address
Allocations& allocations = *new Allocations;
std::array<size_t, 64> used;  // by device

Allocations::const_iterator find(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(host_address(p));
  auto found = allocations.upper_bound(address);
  if (found == allocations.begin()) return allocations.end();
  --found;
  return address < found->first + found->second.bytes ? found : allocations.end();
}

// Null where the host has no memory left.
void* allocate(size_t bytes, int device) {
  constexpr size_t page = 4096, aligned = 256;
  const size_t inner = std::max<size_t>(1, (bytes + page - 1) / page) * page;
  Allocation made{bytes, device, nullptr, inner + page};
  void* pages =
      mmap(nullptr, made.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  made.pages = static_cast<char*>(pages);
  mprotect(made.pages + inner, page, PROT_NONE);
  std::memset(made.pages, 0xFF, inner);
  char* const begin = made.pages + inner - (bytes + aligned - 1) / aligned * aligned;
  allocations[reinterpret_cast<uintptr_t>(begin)] = made;
  return begin;
}

cudaError_t release(void* p, bool of_device, const char* call) {
  const Lock lock(runtime_mutex);
  if (p == nullptr) return cudaSuccess;
  if (const cudaError_t error = may_synchronise(call); error != cudaSuccess) return error;
  const auto found = allocations.find(reinterpret_cast<uintptr_t>(host_address(p)));
  if (found == allocations.end() || is_device_address(p) != of_device) {
    return fail(cudaErrorInvalidValue, "%s(%p)", call, p);
  }
  const Allocation& gone = found->second;
  wait_for_device(gone.device);
  if (of_device) used[static_cast<size_t>(gone.device)] -= gone.bytes;
  forget_accesses(found->first, gone.bytes);
  if (gone.pages != nullptr) munmap(gone.pages, gone.mapped);
  allocations.erase(found);
  return cudaSuccess;
}

bool inside(const void* p, size_t bytes) {
  return !is_device_address(p) || bytes == 0 || bytes_behind(p) >= static_cast<int64_t>(bytes);
}
// The call returns only when such memory has been read or written.
bool pageable(const void* p) { return find(p) == allocations.end(); }

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream, bool wait) {
  const Lock lock(runtime_mutex);
  if (!inside(to, bytes) || !inside(from, bytes)) {
    return fail(cudaErrorInvalidValue, "a copy of %zu bytes from %p to %p", bytes, from, to);
  }
  CUstream_st& s = stream_of(stream);
  if (wait) {
    if (const cudaError_t error = may_synchronise("cudaMemcpy", &s); error != cudaSuccess) return error;
  }
  Work work{"copy", [=] { std::memmove(host_address(to), host_address(from), bytes); }};
  work.accesses = {{from, bytes, false}, {to, bytes, true}};
  if (const cudaError_t error = enqueue(s, std::move(work)); error != cudaSuccess) return error;
  const bool waits = wait || pageable(from) || pageable(to);
  return waits && s.capture == nullptr ? wait_for(s) : cudaSuccess;
}

}  // namespace

int device_of(const void* p) {
  const auto found = is_device_address(p) ? find(p) : allocations.end();
  return found == allocations.end() ? -1 : found->second.device;
}

int64_t bytes_behind(const void* p) {
  const auto found = find(p);
  if (found == allocations.end()) return -1;
  const uintptr_t end = found->first + found->second.bytes;
  return static_cast<int64_t>(end - reinterpret_cast<uintptr_t>(host_address(p)));
}

}  // namespace cuda_device

using namespace cuda_device;

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock(runtime_mutex);
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, current_device());
  *total = properties.totalGlobalMem;
  *free = *total - used[static_cast<size_t>(current_device())];
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t bytes) {
  const Lock lock(runtime_mutex);
  log("cudaMalloc(%zu)", bytes);
  if (const cudaError_t error = may_synchronise("cudaMalloc"); error != cudaSuccess) return error;
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  void* const begin = bytes <= free ? allocate(bytes, current_device()) : nullptr;
  if (begin == nullptr) return fail(cudaErrorMemoryAllocation, "cudaMalloc(%zu)", bytes);
  used[static_cast<size_t>(current_device())] += bytes;
  *p = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(begin) | kDeviceBit);
  return cudaSuccess;
}
// Waits for the device, as the real one does.
cudaError_t cudaFree(void* p) { return release(p, true, "cudaFree"); }

cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  const Lock lock(runtime_mutex);
  if (const cudaError_t error = may_synchronise("cudaHostAlloc"); error != cudaSuccess) return error;
  *p = allocate(bytes, -1);
  return *p != nullptr ? cudaSuccess : fail(cudaErrorMemoryAllocation, "cudaHostAlloc(%zu)", bytes);
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void* p) { return release(p, false, "cudaFreeHost"); }
cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned) {
  const Lock lock(runtime_mutex);
  allocations[reinterpret_cast<uintptr_t>(p)] = {bytes, -1};
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* p) { return release(p, false, "cudaHostUnregister"); }
cudaError_t cudaHostGetDevicePointer(void** mapped, void* p, unsigned) {
  *mapped = p;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  const Lock lock(runtime_mutex);
  *attributes = {};
  attributes->device = cudaInvalidDeviceId;
  attributes->type = cudaMemoryTypeUnregistered;
  const auto found = find(p);
  if (found == allocations.end()) return cudaSuccess;
  const bool of_device = is_device_address(p);
  attributes->type = of_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  attributes->device = of_device ? found->second.device : 0;
  attributes->devicePointer = const_cast<void*>(p);
  if (!of_device) attributes->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, bytes, stream, false);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes, nullptr, true);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, stream, false);
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  const Lock lock(runtime_mutex);
  if (!inside(p, bytes)) return fail(cudaErrorInvalidValue, "a memset of %zu bytes at %p", bytes, p);
  Work work{"memset", [=] { std::memset(host_address(p), value, bytes); }};
  work.accesses = {{p, bytes, true}};
  return enqueue(stream_of(stream), std::move(work));
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, nullptr); }

// For ATen's operators, which run on the host.
EXPORTED void* cuda_device_host_address(const void* p) { return host_address(p); }
