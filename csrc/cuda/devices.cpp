// Device models, and every constant that predicted times are made of.
#include <cmath>
#include <stdexcept>

#include "cuda/plan.h"

namespace fused_bn::cuda {
namespace {

constexpr int64_t kKB = 1024;
constexpr int64_t kMB = 1024 * 1024;

// Dynamic shared memory that a block can opt in to: CUDA programming guide, "Compute capabilities".
constexpr int64_t kShared75 = 64 * kKB;
constexpr int64_t kShared80 = 163 * kKB;
constexpr int64_t kShared86 = 99 * kKB;   // also 89 and 120
constexpr int64_t kShared90 = 227 * kKB;  // also 100

// A copy's share of the specified bandwidth. Predicted: 4.3 of an H200's 4.8 TB/s.
constexpr double kCopyShare = 4.3 / 4.8;

// Predicted, for want of a measurement of these parts: bytes a clock and multiprocessor from L2, at the
// specified boost clock. An A100 has 47 (its white paper: 5120 a clock).
constexpr double kL2PerClock = 16;

// None is measured yet. They were fitted to what the design predicts of an H200: the times of two kernels
// (286 us for three passes over 411 MB, less 3 for what L2 keeps, launches included) and of one launch (3 us
// a round of a group as large as the device, 2.5-4 us for a launch with next to no data).
struct Predicted {
  double l2_share = 0.75;
  double launch = 1.0;
  double cooperative = 0.5;
  double barrier = 1.5;
  double cluster = 0.6;
  double turn = 1.0;
  double run_64 = 1.05;       // half a line of L2, and a whole access of HBM
  double run_32 = 1.5;        // half an access of HBM
  double headroom = 1.25;     // 32 KB in flight in 0.8 us; an even share of an H200 moves them in 1.0
  double partial = 1.5;       // eight accesses for one, served by L1 in between
  int evaluation_blocks = 1;  // the training kernel's registers leave no room for a second one
};

struct Specified {
  const char* name;
  int architecture;
  int multiprocessors;
  int64_t shared_per_block;
  int64_t l2_bytes;
  int max_cluster;
  double dram_bandwidth;
  double l2_bandwidth;
};

// Multiprocessors, L2 and memory bandwidth: NVIDIA's data sheets and architecture white papers. Clusters:
// CUDA programming guide, 8 everywhere and 16 by opting in on sm_90 and sm_100. L2 bandwidth: where it says
// so.
constexpr Specified kSpecified[] = {
    // Measured by Jia et al. 2019, "Dissecting the NVidia Turing T4 GPU via Microbenchmarking".
    {"t4", 75, 40, kShared75, 4 * kMB, 1, 320, 1270},
    {"a10", 86, 72, kShared86, 6 * kMB, 1, 600, 72 * kL2PerClock * 1.695},
    {"rtx3090", 86, 82, kShared86, 6 * kMB, 1, 936, 82 * kL2PerClock * 1.695},
    // 5120 bytes a clock at 1.41 GHz: A100 white paper.
    {"a100", 80, 108, kShared80, 40 * kMB, 1, 2039, 5120 * 1.41},
    {"l4", 89, 58, kShared86, 48 * kMB, 1, 300, 58 * kL2PerClock * 2.04},
    {"rtx4090", 89, 128, kShared86, 72 * kMB, 1, 1008, 128 * kL2PerClock * 2.52},
    // Predicted: an A100's bytes a clock at 1.98 GHz; the B200 in proportion to its multiprocessors.
    {"h100", 90, 132, kShared90, 50 * kMB, 16, 3350, 5120 * 1.98},
    {"h200", 90, 132, kShared90, 50 * kMB, 16, 4800, 5120 * 1.98},
    {"b200", 100, 148, kShared90, 126 * kMB, 16, 8000, 5120 * 1.98 * 148 / 132},
    {"rtx5090", 120, 170, kShared86, 96 * kMB, 8, 1792, 170 * kL2PerClock * 2.41},
};

Device with_predictions(const Specified& s) {
  const Predicted p;
  Device d;
  d.name = s.name;
  d.architecture = s.architecture;
  d.multiprocessors = s.multiprocessors;
  d.shared_per_block = s.shared_per_block;
  d.l2_bytes = s.l2_bytes;
  d.max_cluster = s.max_cluster;
  d.cooperative = true;
  d.dram_bandwidth = s.dram_bandwidth * kCopyShare;
  d.l2_bandwidth = s.l2_bandwidth;
  d.l2_share = p.l2_share;
  d.launch_time = p.launch;
  d.cooperative_time = p.cooperative;
  d.barrier_time = p.barrier;
  d.cluster_time = p.cluster;
  d.turn_time = p.turn;
  d.run_64_penalty = p.run_64;
  d.run_32_penalty = p.run_32;
  d.headroom = p.headroom;
  d.partial_penalty = p.partial;
  d.evaluation_blocks = p.evaluation_blocks;
  return d;
}

const std::vector<Device>& models() {
  static const std::vector<Device> all = [] {
    std::vector<Device> devices;
    for (const Specified& s : kSpecified) devices.push_back(with_predictions(s));
    return devices;
  }();
  return all;
}

}  // namespace

const Device& device_model(const std::string& name) {
  std::string known;
  for (const Device& device : models()) {
    if (device.name == name) return device;
    known += (known.empty() ? "" : ", ") + device.name;
  }
  throw std::invalid_argument("device must be one of " + known + ", but got '" + name + "'");
}

const Device& nearest_model(int architecture) {
  const Device* nearest = &models().front();
  for (const Device& device : models()) {
    const int distance = std::abs(device.architecture - architecture);
    if (distance <= std::abs(nearest->architecture - architecture)) nearest = &device;
  }
  return *nearest;
}

std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (const Device& device : models()) names.push_back(device.name);
  return names;
}

}  // namespace fused_bn::cuda
