// The launch planner: sizes in, launch parameters out. Pure host code; includes no CUDA header.
#pragma once

#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/view.h"
#include "cuda/params.h"

namespace fused_bn::cuda {

enum class Direction : int8_t { forward, backward, evaluation };  // evaluation: forward, running statistics

struct Problem {
  View view;
  DType dtype;
  Direction direction;
  bool residual = false;
  int64_t alignment = 16;  // bytes: the largest power of two up to 16 that divides every tensor's address
};

// What a plan depends on. Bandwidths in GB/s, times in microseconds; see devices.cpp for their sources.
struct Device {
  std::string name;
  int architecture;             // 90 is sm_90
  int multiprocessors;
  int64_t shared_per_block;     // bytes, the opt-in limit
  int64_t l2_bytes;
  int max_cluster;              // blocks; 1 where there are no clusters
  bool cooperative;
  double dram_bandwidth;        // of a copy, read + write
  double l2_bandwidth;
  double launch_time;           // of an empty kernel
  double cooperative_time;      // more, of a cooperative launch
  double barrier_time;          // of a barrier across a group's blocks
  double cluster_time;          // of a barrier across a cluster
};

// Device models by name, lower case ("h200"); InvalidArgument for another.
const Device& device_model(const std::string& name);
std::vector<std::string> device_names();

struct Traffic {
  int64_t read = 0;      // bytes, from device memory or L2
  int64_t written = 0;
  int64_t retained = 0;  // bytes that a second pass finds in registers or shared memory
  int64_t l2_hits = 0;   // bytes of a second read that L2 is expected to serve
};

struct Plan {
  Geometry geometry;
  Exchange exchange;
  int64_t grid;              // blocks
  int64_t shared_bytes;      // dynamic shared memory of a block
  int64_t workspace_bytes;   // of Workspace::partials
  int64_t words;             // of Workspace::words, kWordStride apart
  Traffic traffic;
  double floor_time;         // microseconds: every tensor read or written once
  double predicted_time;

  int launches() const { return exchange == Exchange::two_kernels ? 2 : 1; }
};

// Deterministic. Throws std::invalid_argument, with the offending value, for sizes beyond what a kernel can
// address; the view holds at least one element.
Plan make_plan(const Problem& problem, const Device& device);

// One line a field, for error texts and for people.
std::string describe(const Plan& plan);

}  // namespace fused_bn::cuda
