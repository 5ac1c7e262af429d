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
  Activation activation;
  bool residual = false;
  int64_t alignment = 16;  // bytes: the largest power of two up to 16 that divides every tensor's address
};

// What a plan depends on. Bandwidths in GB/s, times in microseconds; see devices.cpp for their sources.
struct Device {
  std::string name;
  int architecture;  // 90 is sm_90
  int multiprocessors;
  int64_t shared_per_block;  // bytes, the opt-in limit; at least kSmallestShared
  int64_t l2_bytes;
  int max_cluster;  // blocks; 1 where there are no clusters
  bool cooperative;
  double dram_bandwidth;  // of a copy, read + write
  double l2_bandwidth;

  // The rest has no counterpart in what a driver reports.
  double l2_share;          // of l2_bytes that still holds what was read last
  double launch_time;       // of an empty kernel
  double cooperative_time;  // more, of a cooperative launch
  double barrier_time;      // of a barrier across a group's blocks
  double cluster_time;      // of a barrier across a cluster
  double turn_time;         // from a block's last load to its first store: memory idles unless others use it
  double run_64_penalty;    // times as long a byte, where a slab's part of a row is below 128 bytes,
  double run_32_penalty;    // and below 64
  double headroom;          // times an even share of the bandwidth that a multiprocessor can draw
  double partial_penalty;   // times as long a byte, where vectors are not whole
  int evaluation_blocks;    // a multiprocessor, at most
};

// Forward and backward share a mask, so whatever its layout depends on follows from shape and type alone: it
// is decided for the device with the least shared memory, sm_75.
constexpr int64_t kSmallestShared = 64 * 1024;

// Sizes beyond would overflow 64 bits in products with threads and blocks. A petabyte of a half type.
constexpr int64_t kMostElements = int64_t{1} << 50;
// Channels and slabs are counted in int, and a group looks for a slab beyond the last.
constexpr int64_t kMostChannels = int64_t{1} << 30;
// Blocks of a group: each costs a number in shared memory, for which room is set aside.
constexpr int kMostBlocks = 1024;

// Device models by name, lower case ("h200"); std::invalid_argument for another.
const Device& device_model(const std::string& name);
// The model whose constants stand in for a device of this architecture.
const Device& nearest_model(int architecture);
std::vector<std::string> device_names();

struct Traffic {
  int64_t read = 0;  // bytes, from device memory or L2
  int64_t written = 0;
  int64_t retained = 0;          // bytes that a second pass finds in registers or shared memory,
  int64_t retained_at_once = 0;  // and of those, what the device holds at one time
  int64_t l2_hits = 0;           // bytes of a second read that L2 is expected to serve
};

struct Plan {
  Geometry geometry;
  Exchange exchange;
  int64_t grid;             // blocks
  SharedLayout layout;      // of a block's dynamic shared memory, layout.bytes in all
  int64_t workspace_bytes;  // of Workspace::partials
  int64_t words;            // of Workspace::words, kWordStride apart
  Traffic traffic;
  double floor_time;  // microseconds: every tensor read or written once
  double predicted_time;

  int launches() const { return exchange == Exchange::two_kernels ? 2 : 1; }
  // How often a group takes a slab, at most.
  int rounds() const { return (geometry.slabs + geometry.groups - 1) / geometry.groups; }
};

// The plan with the least predicted time. Deterministic: of equal times the one with the fewest blocks (for
// evaluation, the most) and then the first one tried, exchanges in their order and wide slabs before narrow
// ones. Throws std::invalid_argument, with the offending value, for sizes beyond what a kernel can address;
// the view holds at least one element.
Plan make_plan(const Problem& problem, const Device& device);

// The best of the plans with this exchange. Throws std::invalid_argument where there is none.
Plan make_plan(const Problem& problem, const Device& device, Exchange exchange);

// The plan for the same kernel where it gathers nothing, but is given what it would: one launch, whose blocks
// need not tell each other anything. Traffic and times stay those of the whole.
Plan without_gathering(const Problem& problem, Plan plan);

// Whether forward with a residual saves a mask for backward; else backward reads the residual, or without
// activation neither of them.
bool has_mask(Activation activation);

// Bytes of the mask of a geometry: the same for all plans of a shape and type.
int64_t mask_bytes(const Geometry& geometry);

// One line a field, for error texts and for people.
std::string describe(const Plan& plan);

}  // namespace fused_bn::cuda
