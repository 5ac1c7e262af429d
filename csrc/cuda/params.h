// What a launch hands to a kernel. Knows neither torch nor CUDA.
#pragma once

#include "common/dtype.h"
#include "cuda/geometry.h"

namespace fused_bn::cuda {

// How the blocks that own a slab together exchange their partial sums.
enum class Exchange : int8_t {
  none,         // one block owns it
  cluster,      // over distributed shared memory, sm_90 and later
  barrier,      // over global memory; the launch is cooperative, so that all blocks run at once
  two_kernels,  // over global memory, the second kernel reads what the first one wrote
};

// The parts of a kernel that a launch runs: both, but for two_kernels.
enum class Phase : int8_t { gather = 1, emit = 2, both = 3 };

// Memory that a launch works in.
struct Workspace {
  // [2, groups, group, 2, slab_channels] of the compute type: two rounds, so that a block that is ahead does
  // not overwrite what another still reads; [slabs, group, 2, slab_channels] with two_kernels.
  void* partials;
  // The first counts finished blocks, then one for each group, kWordStride apart. Zero before the first launch;
  // a launch leaves them as the next one needs them.
  uint32_t* words;
};
constexpr int kWordStride = 32;  // a cache line apart

struct ForwardParams {
  Geometry geometry;
  Exchange exchange;
  Phase phase;
  const void* input;
  const void* residual;  // null where there is none
  void* output;
  uint8_t* mask;  // of the elements whose gradient passes; null without residual or without need
  ChannelVector weight;
  ChannelVector bias;
  ChannelVector running_mean;  // read in evaluation, updated in training
  ChannelVector running_var;
  int64_t* num_batches_tracked;  // counted in training where not null
  void* statistics;              // [3, C]: mean_hi, mean_lo, invstd; double for f64, else float
  bool training;
  bool cumulative;  // momentum is 1 / num_batches_tracked
  double momentum;
  double eps;
  float negative_slope;
  Workspace workspace;
};

struct BackwardParams {
  Geometry geometry;
  Exchange exchange;
  Phase phase;
  const void* grad_output;
  const void* input;
  const uint8_t* mask;  // with residual, which the input alone does not tell
  ChannelVector weight;
  ChannelVector bias;
  const void* statistics;
  void* grad_input;     // null where it is not wanted
  void* grad_residual;  // null where it is not wanted
  ChannelVector grad_weight;
  ChannelVector grad_bias;
  bool training;
  float negative_slope;
  Workspace workspace;
};

// Steps that a block keeps in registers, where every vector is whole: as many as ptxas fits into 128 registers
// a thread without a spill. None in double precision, whose sums leave no room.
constexpr int register_steps(DType dtype, bool backward, Mapping mapping) {
  const bool half = dtype == DType::bf16 || dtype == DType::f16;
  if (dtype == DType::f64) return 0;
  if (mapping == Mapping::rows) return backward ? (half ? 8 : 4) : (half ? 20 : 10);
  return backward ? (half ? 6 : 2) : (half ? 12 : 6);
}

// Where the parts of a block's shared memory begin, in bytes.
struct SharedLayout {
  int64_t kept;      // [shared_steps, tensors, packs, threads] packs of 16 bytes
  int64_t matrix;    // [lanes or warps, slab_columns] of the compute type: what threads sum up
  int64_t parts;     // of such sums, double
  int64_t totals;    // [2, slab_channels] double
  int64_t partials;  // [2, 2, slab_channels] of the compute type: read by the other blocks of a cluster
  int64_t numbers;   // [5, slab_channels] of the compute type: what each channel's elements are computed with
  int64_t bytes;

  FUSED_BN_HOST_DEVICE SharedLayout(const Geometry& g, int tensors, int element_bytes, int compute_bytes) {
    const int64_t channels = (g.slab_channels + 1) / 2 * 2;  // keeps doubles aligned
    const int64_t most = g.slab_columns > g.threads ? g.slab_columns : g.threads;
    kept = 0;
    matrix = int64_t{g.shared_steps} * tensors * kVector * element_bytes * g.threads;
    parts = matrix + int64_t{compute_bytes} * g.threads * (g.mapping == Mapping::rows ? 1 : kVector);
    totals = parts + 8 * most;
    partials = totals + 8 * 2 * channels;
    numbers = partials + compute_bytes * 4 * channels;
    bytes = numbers + compute_bytes * 5 * channels;
  }
};

constexpr int kThreads = 512;      // the most a block has: 128 registers each fill a multiprocessor
constexpr int kStreamedSteps = 4;  // loaded side by side: 32 KB of a half type in flight

}  // namespace fused_bn::cuda
