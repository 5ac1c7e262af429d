#include "cuda/host/plans.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

namespace fused_bn::cuda {
namespace {

constexpr size_t kMostPlans = 1 << 16;  // about 50 MB; a full cache is cleared

Device describe_device(c10::DeviceIndex index) {
  cudaDeviceProp properties{};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  Device device = nearest_model(10 * properties.major + properties.minor);
  device.name = properties.name;
  device.architecture = 10 * properties.major + properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.shared_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  device.shared_per_multiprocessor = static_cast<int64_t>(properties.sharedMemPerMultiprocessor);
  device.threads_per_multiprocessor = properties.maxThreadsPerMultiProcessor;
  device.l2_bytes = properties.l2CacheSize;
  device.cooperative = properties.cooperativeLaunch != 0;
  device.active_clusters = active_clusters(device);
  device.active_clusters[0] = device.multiprocessors;
  device.max_cluster = 1;
  for (size_t i = 1; i < device.active_clusters.size() && device.active_clusters[i] > 0; ++i) {
    device.max_cluster *= 2;
  }
  return device;
}

auto key_of(const Problem& p, bool streamed) {
  return std::tuple(p.view.N, p.view.C, p.view.S, p.view.layout, p.dtype, p.direction, p.part, p.activation,
                    p.residual, p.alignment, streamed, c10::cuda::current_device());
}
using Key = decltype(key_of({}, false));

struct Plans {
  std::mutex mutex;
  std::map<Key, std::shared_ptr<const PreparedPlan>> made;
  std::shared_ptr<const PreparedPlan> last;
  std::map<c10::DeviceIndex, Device> devices;
  Forced forced;

  Plans() {
    if (const char* text = std::getenv("FUSED_BN_CUDA_PLAN")) forced = parse_forced(text);
  }

  const Device& current_device() {
    const c10::DeviceIndex index = c10::cuda::current_device();
    if (devices.count(index) == 0) devices.emplace(index, describe_device(index));
    return devices.at(index);
  }
};

Plans& plans() {
  static Plans all;
  return all;
}

PreparedPlan prepared_plan(const Problem& problem, const Device& device, const Forced& forced) {
  PreparedPlan prepared{make_plan(problem, device, forced), {}, {}};
  check_launch(prepare(problem, device, prepared), "; the plan was " + describe(prepared.plan));
  return prepared;
}

// Finds out before a capture whether a cooperative launch fits. The driver also refuses one that should fit
// if the process has only a part of the device, as under MPS.
PreparedPlan plan_by_the_driver(const Problem& problem, const Device& device, const Forced& forced,
                                bool refused) {
  const PreparedPlan prepared = prepared_plan(problem, device, forced);
  const Plan& plan = prepared.plan;
  const bool fits = !refused && runs_at_once(prepared, device);
  if (plan.first.exchange != Exchange::words || fits) return prepared;
  if (forced.exchange == Exchange::words) {
    throw std::invalid_argument("the driver does not run the " + std::to_string(plan.first.grid()) +
                                " blocks of " + describe(plan) + " at once");
  }
  Device without = device;
  without.cooperative = false;
  return prepared_plan(problem, without, forced);
}

}  // namespace

std::shared_ptr<const PreparedPlan> plan_for(const Problem& problem, bool streamed, bool refused) try {
  Plans& all = plans();
  const std::lock_guard lock(all.mutex);
  if (all.made.size() >= kMostPlans) all.made.clear();
  std::shared_ptr<const PreparedPlan>& plan = all.made[key_of(problem, streamed)];
  if (plan == nullptr || refused) {
    Forced forced = all.forced;
    if (streamed) forced.resident = false;
    plan = std::make_shared<PreparedPlan>(plan_by_the_driver(problem, all.current_device(), forced, refused));
  }
  return all.last = plan;
} catch (const std::invalid_argument& error) {
  TORCH_CHECK_VALUE(false, "fused_bn: ", error.what());
}

void check_launch(cudaError_t error, const std::string& how) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error for the next call
  TORCH_CHECK(false, "fused_bn: the launch failed: ", cudaGetErrorString(error), how);
}

void force_plan(const std::string& text) {
  const Forced forced = parse_forced(text);
  Plans& all = plans();
  const std::lock_guard lock(all.mutex);
  all.forced = forced;
  all.made.clear();
}

std::string last_plan() {
  Plans& all = plans();
  const std::lock_guard lock(all.mutex);
  return all.last == nullptr ? "" : describe(all.last->plan);
}

}  // namespace fused_bn::cuda
