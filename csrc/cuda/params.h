// What a launch hands to a kernel. Knows neither torch nor CUDA.
#pragma once

#include "common/activation.h"
#include "common/dtype.h"
#include "cuda/geometry.h"

namespace fused_bn::cuda {

// How the blocks that own a slab together exchange their partial sums.
enum class Exchange : int32_t {
  none,         // one block owns it
  cluster,      // over distributed shared memory, sm_90 and later
  barrier,      // over global memory; the launch is cooperative, so that all blocks run at once
  two_kernels,  // over global memory, the second kernel reads what the first one wrote
};

// The parts of a kernel that a launch runs: both, but for two_kernels.
enum class Phase : int32_t { gather = 1, emit = 2, both = 3 };

// Memory that a launch works in.
struct Workspace {
  // [2, groups, group, 2, slab_channels] of the compute type: two rounds, so that a block that is ahead does
  // not overwrite what another still reads; [slabs, group, 3, slab_channels] with two_kernels.
  void* partials;
  // The first counts finished blocks, then one for each group, kWordStride apart. Zero before the first
  // launch; a launch leaves them as the next one needs them.
  uint32_t* words;
};
constexpr int kWordStride = 32;  // a cache line apart

// Where the parts of a block's dynamic shared memory begin, in bytes.
struct SharedLayout {
  int kept;      // [shared_steps, tensors, packs, threads] packs of 16 bytes
  int matrix;    // [lanes or warps, slab_columns] of the compute type: what threads sum up
  int parts;     // [parts, columns] of the compute type, of such sums
  int totals;    // [2, slab_channels] double
  int partials;  // [2, 2, slab_channels] of the compute type: read by the other blocks of a cluster
  int numbers;   // [5, slab_channels] of the compute type: what each channel's elements are computed with
  int counts;    // [group] of the compute type: values of a channel in each block
  int channels;  // [slab_columns] uint16_t: the channel of each column, counted within the slab
  int bytes;

  static SharedLayout of(const Geometry& g, int tensors, int element_bytes, int compute_bytes) {
    const int even = (g.slab_channels + 1) / 2 * 2;  // keeps doubles aligned
    const int columns = g.slab_vectors * kVector;    // a narrow slab's last vector included
    const int most = columns > g.threads ? columns : g.threads;
    SharedLayout at{};
    at.matrix = g.shared_steps * tensors * kVector * element_bytes * g.threads;
    at.parts = at.matrix + compute_bytes * g.threads * (g.mapping == Mapping::rows ? 1 : kVector);
    at.totals = at.parts + compute_bytes * most;
    at.partials = at.totals + 8 * 2 * even;
    at.numbers = at.partials + compute_bytes * 4 * even;
    at.counts = at.numbers + compute_bytes * 5 * even;
    at.channels = at.counts + compute_bytes * g.group;
    at.bytes = at.channels + 2 * g.slab_columns;
    return at;
  }
};

// Flags are of 32 bits, because a constant of 32 bits is an operand, and a narrower one takes a register.
using Flag = int32_t;

struct ForwardParams {
  Geometry geometry;
  SharedLayout layout;
  Exchange exchange;
  Phase phase;
  const void* input;
  const void* residual;  // null where there is none
  void* output;          // null where only the moments are wanted
  uint8_t* mask;         // of the elements whose gradient passes; null without residual or without need
  ChannelVector weight;
  ChannelVector bias;
  ChannelVector running_mean;  // read in evaluation, updated in training
  ChannelVector running_var;
  int64_t* num_batches_tracked;  // counted in training where not null
  void* statistics;              // [3, C]: mean_hi, mean_lo, invstd; double for f64, else float
  const void* known;             // such statistics, taken for the running ones; null where there are none
  Flag training;
  Flag cumulative;  // momentum is 1 / num_batches_tracked
  double momentum;
  double eps;
  double inverse_count;  // 1 / (N * S)
  double unbiased;       // what the variance is multiplied by in running_var: N * S / (N * S - 1)
  Activation activation;
  double activation_param;
  Workspace workspace;
};

struct BackwardParams {
  Geometry geometry;
  SharedLayout layout;
  Exchange exchange;
  Phase phase;
  const void* grad_output;
  const void* input;
  const void* residual;  // null where there was none, or where the mask tells all that it would
  const uint8_t* mask;   // null where the input and the residual tell
  ChannelVector weight;
  ChannelVector bias;
  const void* statistics;
  void* grad_input;     // null where it is not wanted
  void* grad_residual;  // null where it is not wanted
  ChannelVector grad_weight;
  ChannelVector grad_bias;
  const double* total;        // [2, C], sums of g and g * xhat over several processes: taken for the own
  const double* total_count;  // of values of a channel in all of them; null where `total` is
  Flag training;
  double inverse_count;  // 1 / (N * S)
  Activation activation;
  double activation_param;
  Workspace workspace;
};

// From the moments of several processes to the statistics of them all.
struct MergeParams {
  int64_t C;
  int64_t processes;
  const double* moments;  // [processes, 2 * C + 1]
  ChannelVector running_mean;
  ChannelVector running_var;
  int64_t* num_batches_tracked;  // counted where not null
  DType dtype;                   // of the input
  void* statistics;
  double* count;  // of values of a channel in all of them
  Flag cumulative;
  double momentum;
  double eps;
};
constexpr int kMergeThreads = 1024;

// Steps that a block keeps in registers, where every vector is whole: as many as ptxas fits into 128
// registers a thread for sm_75 to sm_120 without a spill. None in double precision, whose sums leave no room,
// and none beside the arithmetic of a curve other than ReLU's.
constexpr int register_steps(DType dtype, bool backward, Mapping mapping, Curve curve) {
  const bool half = dtype == DType::bf16 || dtype == DType::f16;
  if (dtype == DType::f64 || curve == Curve::other) return 0;
  if (mapping == Mapping::rows) return backward ? (half ? 8 : 4) : (half ? 16 : 6);
  if (backward) return dtype == DType::bf16 ? 2 : 1;
  return half ? 8 : 3;
}

// Of a block. 128 registers each fill a multiprocessor, and 255 each in double precision.
constexpr int threads_of(DType dtype) { return dtype == DType::f64 ? 256 : 512; }

}  // namespace fused_bn::cuda
