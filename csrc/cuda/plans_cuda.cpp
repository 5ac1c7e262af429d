#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <array>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>

#include "cuda/launch.h"
#include "cuda/plans.h"

namespace fused_bn::cuda {
namespace {

constexpr size_t kMostPlans = 1 << 16;  // about 32 MB; beyond, all are made anew

// Everything that a plan depends on but the device.
using Key = std::array<int64_t, 5>;

Key key_of(const Problem& p) {
  const int64_t rest = static_cast<int64_t>(p.dtype) | static_cast<int64_t>(p.direction) << 8 |
                       static_cast<int64_t>(p.residual) << 16 | static_cast<int64_t>(p.view.layout) << 24 |
                       static_cast<int64_t>(p.activation) << 32;
  return {p.view.N, p.view.C, p.view.S, rest, p.alignment};
}

struct Hash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0;
    for (const int64_t part : key)
      hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15u + (hash >> 29);
    return hash;
  }
};

Device describe_device(int index) {
  cudaDeviceProp properties{};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  Device device = nearest_model(10 * properties.major + properties.minor);
  device.name = properties.name;
  device.architecture = 10 * properties.major + properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.shared_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  device.l2_bytes = properties.l2CacheSize;
  device.cooperative = properties.cooperativeLaunch != 0;
  device.max_cluster = most_blocks_of_cluster(device.max_cluster);
  return device;
}

// What is known of one device.
struct Known {
  explicit Known(int index) : device(describe_device(index)) {}

  const Device device;
  std::shared_mutex mutex;
  std::unordered_map<Key, Plan, Hash> plans;
};

Known& known() {
  static std::array<std::once_flag, 64> once;
  static std::array<std::unique_ptr<Known>, 64> all;
  const auto index = static_cast<size_t>(c10::cuda::current_device());
  TORCH_CHECK(index < all.size(), "fused_bn: at most ", all.size(), " devices, but got cuda:", index);
  std::call_once(once[index], [&] { all[index] = std::make_unique<Known>(static_cast<int>(index)); });
  return *all[index];
}

}  // namespace

Plan plan_for(const Problem& problem) {
  Known& here = known();
  const Key key = key_of(problem);
  {
    const std::shared_lock lock(here.mutex);
    if (const auto found = here.plans.find(key); found != here.plans.end()) return found->second;
  }
  try {
    const Plan plan = make_plan(problem, here.device);
    const std::unique_lock lock(here.mutex);
    if (here.plans.size() >= kMostPlans) here.plans.clear();
    here.plans.insert_or_assign(key, plan);
    return plan;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, "fused_bn: ", error.what());
  }
}

}  // namespace fused_bn::cuda
