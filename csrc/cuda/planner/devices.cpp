#include <cstdlib>

#include "cuda/planner/plan.h"

namespace fused_bn::cuda {
namespace {

constexpr int64_t kKB = 1024, kMB = 1024 * 1024;

// CUDA programming guide, "Compute capabilities". A kernel opts in to clusters of 16 blocks.
constexpr Architecture kArchitectures[] = {
    {75, 64 * kKB, 64 * kKB, 1024, 1},    {80, 163 * kKB, 164 * kKB, 2048, 1},
    {86, 99 * kKB, 100 * kKB, 1536, 1},   {89, 99 * kKB, 100 * kKB, 1536, 1},
    {90, 227 * kKB, 228 * kKB, 2048, 16}, {100, 227 * kKB, 228 * kKB, 2048, 16},
    {120, 99 * kKB, 100 * kKB, 1536, 8},
};

// Multiprocessors, L2 and bandwidths are from NVIDIA's data sheets and white papers unless noted.
Device model(const char* name, int architecture, int multiprocessors, int64_t l2_bytes,
             double memory_bandwidth, double l2_bandwidth) {
  const Architecture* a = kArchitectures;
  while (a->architecture != architecture) ++a;
  // Measured with 132 multiprocessors. Large clusters leave some of them idle.
  constexpr int kMeasured[] = {132, 66, 30, 15, 7};
  std::array<int, 5> active{};
  for (size_t i = 0; i < active.size() && 1 << i <= a->max_cluster; ++i) {
    active[i] = kMeasured[i] * multiprocessors / 132;
  }
  return {*a, name, multiprocessors, l2_bytes, memory_bandwidth, l2_bandwidth, active, /*cooperative=*/true};
}

// Bytes per clock and multiprocessor from L2, a guess: an A100's white paper says 47, an H200 measured 31.
constexpr double kL2 = 16;
// Measured on an H200; its L2 size is the driver's.
constexpr double kL2Measured = 8200;

}  // namespace

const std::vector<Device>& device_models() {
  static const std::vector<Device> all = {
      // L2: Jia et al. 2019, "Dissecting the NVidia Turing T4 GPU via Microbenchmarking".
      model("t4", 75, 40, 4 * kMB, 320, 1270),
      model("a10", 86, 72, 6 * kMB, 600, 72 * kL2 * 1.695),
      model("rtx3090", 86, 82, 6 * kMB, 936, 82 * kL2 * 1.695),
      model("a100", 80, 108, 40 * kMB, 2039, 5120 * 1.41),
      model("l4", 89, 58, 48 * kMB, 300, 58 * kL2 * 2.04),
      model("rtx4090", 89, 128, 72 * kMB, 1008, 128 * kL2 * 2.52),
      model("h100", 90, 132, 50 * kMB, 3350, kL2Measured),
      model("h200", 90, 132, 60 * kMB, 4800, kL2Measured),
      model("b200", 100, 148, 126 * kMB, 8000, kL2Measured * 148 / 132),
      model("rtx5090", 120, 170, 96 * kMB, 1792, 170 * kL2 * 2.41),
  };
  return all;
}

const Device& nearest_model(int architecture) {
  const Device* nearest = &device_models().front();
  for (const Device& device : device_models()) {
    const int distance = std::abs(device.architecture - architecture);
    if (distance <= std::abs(nearest->architecture - architecture)) nearest = &device;
  }
  return *nearest;
}

}  // namespace fused_bn::cuda
