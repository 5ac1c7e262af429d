// The launch planner: computes launch parameters from sizes. Pure host code; includes no CUDA header.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/view.h"
#include "cuda/params.h"

namespace fused_bn::cuda {

constexpr const char* kExchanges[] = {"none", "cluster", "words"};  // names, in the order of Exchange

enum class Direction : int8_t { forward, backward };

// The passes that run. Evaluation is apply, and so is backward with given sums.
enum class Part : int8_t { both, reduce, apply };

struct Problem {
  View view;
  DType dtype;
  Direction direction;
  Part part = Part::both;
  Activation activation = Activation::relu;
  bool residual = false;
  int64_t alignment = 16;  // bytes: the largest power of two up to 16 that divides every tensor's address
};

struct Architecture {
  int architecture;                   // 90 is sm_90
  int64_t shared_per_block;           // bytes, the limit that a kernel can opt in to
  int64_t shared_per_multiprocessor;  // bytes, of which each block takes 1 KB more than it asks for
  int threads_per_multiprocessor;
  int max_cluster;  // blocks; 1 if there are no clusters
};

// The properties that a plan depends on; devices.cpp names the sources. Bandwidths are in GB/s.
struct Device : Architecture {
  std::string name;
  int multiprocessors;
  int64_t l2_bytes;
  double memory_bandwidth;  // specified
  double l2_bandwidth;
  std::array<int, 5> active_clusters;  // of 1, 2, 4, 8, 16 blocks, one per multiprocessor, that run at once
  bool cooperative;
};

// The parts of a plan that the caller fixes; the planner chooses the others.
struct Forced {
  std::optional<bool> resident;
  std::optional<Exchange> exchange;
  std::optional<int64_t> group;   // blocks that share a tile
  std::optional<int64_t> groups;  // that run at once; exchange=words only
  std::optional<int64_t> tile_channels;
  std::optional<int64_t> slots;
};

struct Traffic {    // bytes
  double read = 0;  // from device memory or L2
  double written = 0;
  double l2_hits = 0;  // the part of a second read that L2 is expected to serve
};

struct Plan {
  bool resident;
  Launch first;                   // the resident kernel or the reduce pass; no grid for Part::apply
  Launch apply;                   // the apply pass; no grid if there is none
  int blocks_per_multiprocessor;  // of the first kernel
  int64_t partials_bytes;         // reduce pass
  Traffic traffic;
  double floor_time;  // microseconds that a copy of all tensors' bytes takes
  double predicted_time;
};

// Returns the plan with the least predicted time; prefers a resident plan that takes at most a tenth more.
// Throws std::invalid_argument if no plan fits.
Plan make_plan(const Problem& problem, const Device& device, const Forced& forced = {});

// Parses any part of "resident exchange=words group=132 groups=4 tile=64 slots=12"; throws invalid_argument.
Forced parse_forced(const std::string& text);

// Their names are lower-case: "h200".
const std::vector<Device>& device_models();
// Returns the model whose prices serve for a device of this architecture.
const Device& nearest_model(int architecture);

// Returns the text from which parse_forced() makes this plan.
std::string describe(const Plan& plan);

inline int element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
inline int compute_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }
inline int tensors_kept(Direction direction, bool residual) {
  return direction == Direction::backward || residual ? 2 : 1;
}

}  // namespace fused_bn::cuda
