// The compiled kernels, to be launched.
#pragma once

#include <array>
#include <atomic>

#include "cuda/host/launch.h"

namespace fused_bn::cuda {

struct Entry {
  const void* function;
  // By device, the architecture that it was compiled for: 90 is sm_90. 0 until it is prepared there.
  std::array<std::atomic<int>, kMostDevices> compiled_for{};

  explicit Entry(const void* kernel) : function(kernel) {}
};

// Null for what no plan asks for. Each element type has a .cu file of its own, so that they compile side by
// side.
template <class T>
Entry* entry_of(Kernel kernel, Direction direction, const Tiling& tiling, Activation activation);

}  // namespace fused_bn::cuda
