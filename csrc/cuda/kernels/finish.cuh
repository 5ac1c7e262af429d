// Merges the partial results of a tile's blocks into a channel's statistics and gradients.
#pragma once

#include "cuda/kernels/sums.cuh"

namespace fused_bn::cuda {

// Partial results that a lane loads before it uses the first.
constexpr int kBatch = 4;

// Calls body(block, partial) for this lane's share of the blocks' partial results. fetch(first, batch) loads
// those of blocks first, first + lanes.size, ...
template <class A, class Fetch, class Body>
FUSED_BN_DEVICE void for_partials(const Tiling& t, const LaneGroup& lanes, Fetch fetch, Body body) {
  FUSED_BN_ROLLED
  for (int first = lanes.rank; first < t.group + lanes.rank; first += kBatch * lanes.size) {
    Partial<A> batch[kBatch] = {};
    fetch(first, batch);
    FUSED_BN_UNROLL
    for (int i = 0; i < kBatch; ++i) body(first + i * lanes.size, batch[i]);
  }
}

// Merged by a lane group about the first block's mean: Chan, Golub, LeVeque 1979.
struct MergedMoments {
  double mean, variance;

  template <class A, class Fetch>
  FUSED_BN_DEVICE static MergedMoments of(const Tiling& t, const LaneGroup& lanes, double inverse_count,
                                          Fetch fetch) {
    double origin = 0, sum = 0, squares = 0;
    for_partials<A>(t, lanes, fetch, [&](int block, const Partial<A>& partial) {
      const double pivot = static_cast<double>(partial.pivot), mean = static_cast<double>(partial.mean);
      if (block == lanes.rank) origin = shuffle_from(pivot + mean, thread_index() % 32 - lanes.rank);
      if (block >= t.group) return;
      const double count = static_cast<double>(t.block_values(block));
      const double delta = (pivot - origin) + mean, rms = static_cast<double>(partial.rms);
      sum += count * delta;
      squares += count * (rms * rms + delta * delta);
    });
    lanes.add_up(sum, squares);
    const double shift = sum * inverse_count;
    MergedMoments merged{origin + shift, squares * inverse_count - shift * shift};
    if (merged.variance < 0) merged.variance = 0;
    // An infinite value makes the mean NaN, as in PyTorch on CUDA.
    if (!is_finite(merged.variance)) merged.mean = merged.variance - merged.variance;
    return merged;
  }
};

// The sums of g and of g * xhat. Partial results hold g * (x - mean_hi) * invstd.
struct MergedSums {
  double grad, grad_xhat;

  template <class A, class Fetch>
  FUSED_BN_DEVICE static MergedSums of(const Tiling& t, const LaneGroup& lanes, const ChannelStatistics<A>& s,
                                       Fetch fetch) {
    MergedSums merged{};
    for_partials<A>(t, lanes, fetch, [&](int, const Partial<A>& partial) {
      merged.grad += static_cast<double>(partial.pivot);
      merged.grad_xhat += static_cast<double>(partial.mean);
    });
    lanes.add_up(merged.grad, merged.grad_xhat);
    const double rest = static_cast<double>(s.mean_lo) * static_cast<double>(s.invstd) * merged.grad;
    merged.grad_xhat -= is_finite(rest) ? rest : 0;  // an infinite sum keeps its sign
    return merged;
  }
};

FUSED_BN_DEVICE void blend(const ChannelVector& running, int64_t c, double before, double value,
                           double momentum) {
  if (running.data != nullptr) write(running, c, (1 - momentum) * before + momentum * value);
}

// All blocks read the counter, which is incremented after the launch.
FUSED_BN_DEVICE double cumulative_momentum(const int64_t* num_batches_tracked) {
  return num_batches_tracked == nullptr ? 0.0 : 1.0 / static_cast<double>(*num_batches_tracked + 1);
}

// Loaded early, because a cache miss after an exchange costs most of a microsecond.
struct ForwardParameters {
  double weight, bias, running_mean, running_var, momentum;

  FUSED_BN_DEVICE ForwardParameters(const ForwardParams& p, int channel, bool with_running)
      : momentum(p.momentum) {
    const uint64_t w = load_value(p.weight, channel), b = load_value(p.bias, channel);
    const uint64_t mean = with_running ? load_value(p.running_mean, channel) : 0;
    const uint64_t var = with_running ? load_value(p.running_var, channel) : 0;
    weight = read(p.weight, w, 1);
    bias = read(p.bias, b, 0);
    running_mean = read(p.running_mean, mean, 0);
    running_var = read(p.running_var, var, 0);
    if (p.cumulative) momentum = cumulative_momentum(p.num_batches_tracked);
  }
};

}  // namespace fused_bn::cuda
