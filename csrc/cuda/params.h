// The parameters of the kernels. Includes neither torch nor CUDA.
#pragma once

#include "common/activation.h"
#include "common/params.h"
#include "cuda/tiling.h"

namespace fused_bn::cuda {

// How the blocks that share a tile exchange their sums in the resident kernel.
enum class Exchange : int32_t {
  none,     // each tile has one block
  cluster,  // each block pushes its sums into the shared memory of the others; sm_90 and later
  words,    // through global memory; the launch is cooperative, so that all blocks run at once
};

// Values and the epoch that they belong to: 16 aligned bytes, which one access reads or writes.
struct alignas(16) Word {
  float values[3];
  uint32_t epoch;
};

// Memory that outlives a launch. Each stream has its own, and so has each capture. Zero before its first use.
struct Scratch {
  uint32_t* epoch;     // [2]: the next exchange's epoch; how many groups have read it, 0 between launches
  uint32_t* arrivals;  // [kMostGroups]: blocks that have reduced their part of a tile, 0 between launches
  Word* words;         // [kMostWords]
};
constexpr int kMostWords = 1 << 17;  // 2 MB: 64 channels for each of 792 blocks, the most that an H200 holds
constexpr int kMostGroups = 4096;

// The words of an exchange: for each channel one per block and one for the result. Two sets alternate.
constexpr int64_t words_of(int64_t groups, int64_t group, int64_t tile_channels) {
  return 2 * groups * (group + 1) * tile_channels;
}

// Whether one block, the owner, merges a channel for all. The second hop pays if every thread would load many
// words.
FUSED_BN_HOST_DEVICE constexpr bool words_have_owners(int64_t group, int64_t tile_channels) {
  return tile_channels > 1 && group * tile_channels > 2048;
}

// A block's sums of a channel. Forward sums deviations from a pivot; backward sums g and g * (x - mean).
template <class A>
struct alignas(16) Partial {
  A pivot;  // backward: the sum of g
  A mean;   // of the deviations from the pivot; backward: the sum of g * (x - mean)
  A rms;    // of the deviations from their mean; unused in backward
  A unused;
};

constexpr int kThreads = 256;  // per block
constexpr int kMergeThreads = 512;
enum class Kernel : int32_t { resident, reduce, apply };

// Blocks per multiprocessor, for the launch bounds and the planner. Newer architectures take more registers.
constexpr int blocks_by_registers(int architecture, Kernel kernel, bool backward, bool mixed,
                                  ActivationKind kind) {
  if (kernel != Kernel::resident) return kind == ActivationKind::other ? 1 : mixed ? 2 : 3;
  const int blocks = (backward && (mixed || architecture >= 100)) || architecture >= 120 ? 3 : 4;
  return kind == ActivationKind::other ? blocks - 1 : blocks;
}

// Offsets of the parts of a block's dynamic shared memory, in bytes.
struct SharedLayout {
  int slots;       // resident: [slots, tensors, threads] vectors of 16 bytes
  int sums;        // resident, reduce: [copies, 2, columns] of the compute type: the threads' sums
  int numbers;     // [numbers_of(), tile_channels] of the compute type: coefficients of the elements
  int parameters;  // resident, reduce: [tile_channels] of kParameters doubles: inputs of finish()
  int partials;    // cluster: [tile_channels, group] Partial<float>
  int barrier;     // cluster: 8 bytes; words: the epoch
  int bytes;
};
constexpr int numbers_of(Activation activation) { return activation == Activation::prelu ? 6 : 5; }
constexpr int kParameters = 5;

// The columns for which a block has separate sums, and how many copies of them its threads store: one per
// warp, or one per row if a row has at least as many vectors as a warp has threads.
FUSED_BN_HOST_DEVICE inline int sum_columns(const Tiling& t) {
  return t.walk == Walk::along_rows ? 1 : t.tile_vectors * (t.mixed ? t.vector : 1);
}
FUSED_BN_HOST_DEVICE inline int sum_copies(const Tiling& t) {
  if (t.walk == Walk::along_rows || t.tile_vectors < 32) return t.threads / 32;
  return t.threads / t.tile_vectors;
}

inline SharedLayout shared_layout(const Tiling& t, Kernel kernel, int slots, int tensors, int compute_bytes,
                                  Exchange exchange, Activation activation) {
  const auto aligned = [](int bytes) { return (bytes + 15) / 16 * 16; };
  SharedLayout at{};
  at.sums = kernel == Kernel::resident ? 16 * slots * tensors * t.threads : 0;
  at.numbers =
      at.sums + (kernel == Kernel::apply ? 0 : aligned(compute_bytes * 2 * sum_copies(t) * sum_columns(t)));
  at.parameters = at.numbers + aligned(compute_bytes * numbers_of(activation) * t.tile_channels);
  at.partials = at.parameters + (kernel == Kernel::apply ? 0 : aligned(8 * kParameters * t.tile_channels));
  at.barrier = at.partials + (exchange == Exchange::cluster ? 16 * t.tile_channels * t.group : 0);
  at.bytes = at.barrier + (exchange == Exchange::none ? 0 : 16);
  return at;
}

enum class Source : int32_t {
  batch,    // computes and saves the batch's statistics; updates the running ones
  running,  // saves the running statistics
  given,    // reads saved statistics
};

struct Launch {
  Tiling tiling;
  SharedLayout layout;
  Exchange exchange;  // resident
  int32_t slots;      // resident: vectors that a thread keeps of each tensor

  int64_t grid() const { return int64_t{tiling.groups} * tiling.group; }
};

struct DirectionParams : Launch {
  double inverse_count;  // 1 / (N * S)
  void* partials;        // reduce pass: [C, group] Partial of the compute type
  Scratch scratch;
};

struct ForwardParams : CommonForwardParams<DirectionParams> {
  ChannelVector bias_copy;       // gets a copy of the bias; null if not wanted
  int64_t* num_batches_tracked;  // incremented in training; may be null
  Source source;
  int32_t cumulative;  // momentum is 1 / (num_batches_tracked + 1); the host increments after the launch
  double unbiased;     // N * S / (N * S - 1), the factor of the variance in running_var
};

struct BackwardParams : CommonBackwardParams<DirectionParams> {
  double* sums;  // [2, C]: of g and g * xhat; the reduce pass writes them, the apply pass reads them
};

struct MergeParams : CommonMergeParams {
  int64_t* num_batches_tracked;  // incremented; may be null
  int32_t cumulative;
};

}  // namespace fused_bn::cuda
