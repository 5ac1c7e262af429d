// What the parts of the emulated CUDA runtime share. Each defines functions of <cuda_runtime_api.h>.
#pragma once

// CUDA's functions replace the real ones; all else is hidden.
#pragma GCC visibility push(default)
#include <cuda_runtime_api.h>
#pragma GCC visibility pop

#include <cstdint>
#include <mutex>
#include <string>

// For what torch calls and the header does not declare.
#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace cuda_device {

// Held by every call and while work runs.
extern std::recursive_mutex runtime_mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

// ---- device.cpp

struct Device {
  const char* name;
  int architecture;  // 90 is sm_90
  int multiprocessors;
  int shared_per_multiprocessor;  // bytes
  int reserved_shared;            // bytes of each block
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
  int l2_bytes;
  bool cooperative;
  int max_cluster;                  // 1 where there are none
  int cooperative_multiprocessors;  // those that a cooperative launch gets, as under MPS; the rest is
                                    // another's
};

int device_count();
const Device& device(int index);
int current_device();
void set_current_device(int index);

// Remembers the error for cudaGetLastError() and returns it.
__attribute__((format(printf, 2, 3))) cudaError_t fail(cudaError_t error, const char* format, ...);
// Prints with CUDA_DEVICE_LOG=1.
__attribute__((format(printf, 1, 2))) void log(const char* format, ...);
int64_t setting(const char* name, int64_t otherwise);  // an environment variable

// ---- memory.cpp

// Device addresses are host addresses with this bit set. They are not canonical: host code that follows one
// crashes.
constexpr uintptr_t kDeviceBit = uintptr_t{1} << 60;

inline bool is_device_address(const void* p) { return (reinterpret_cast<uintptr_t>(p) & kDeviceBit) != 0; }
inline void* host_address(const void* p) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) & ~kDeviceBit);
}
// The device whose live allocation holds the address; -1 where there is none.
int device_of(const void* p);
// From the address to the end of its allocation; -1 where it is in none.
int64_t bytes_behind(const void* p);

}  // namespace cuda_device
