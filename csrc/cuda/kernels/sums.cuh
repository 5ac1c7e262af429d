// A channel's two sums. The order of additions depends on the tiling only.
#pragma once

#include <type_traits>

#include "cuda/kernels/channels.cuh"

namespace fused_bn::cuda {

// Sums of elements times this stay finite. A power of two rounds nothing.
template <class A>
constexpr A kSmaller = sizeof(A) == 8 ? static_cast<A>(0x1p-600) : static_cast<A>(0x1p-80);
// If a thread's sums are below this, the block's are finite.
template <class A>
constexpr A kLarge = sizeof(A) == 8 ? static_cast<A>(0x1p990) : static_cast<A>(0x1p110);

template <class A, int vector, bool mixed>
class ThreadSums {
  static constexpr int kCount = mixed || vector == 1 ? kOwn<vector, mixed> : 2;  // two chains of additions

 public:
  // Adds a to the first sum of element k's channel, and b * c to the second.
  FUSED_BN_DEVICE void add(int k, A a, A b, A c) {
    first_[k % kCount] += a;
    second_[k % kCount] = fma(b, c, second_[k % kCount]);
  }
  // Adding sums of a few elements rounds less than one long chain of additions.
  FUSED_BN_DEVICE void add(const ThreadSums& other) {
    FUSED_BN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      first_[k] += other.first_[k];
      second_[k] += other.second_[k];
    }
  }
  FUSED_BN_DEVICE bool large() const {
    bool small = true;
    FUSED_BN_UNROLL
    for (int k = 0; k < kCount; ++k) small &= is_small(first_[k]) && is_small(second_[k]);
    return !small;
  }

  // Stores the threads' sums in shared memory, [sum_copies, 2, sum_columns]; warps add theirs up first.
  FUSED_BN_DEVICE void leave(const Tiling& t, A* sums) {
    if constexpr (kCount > kOwn<vector, mixed>) {
      first_[0] += first_[1];
      second_[0] += second_[1];
    }
    constexpr int own = kOwn<vector, mixed>;
    const int thread = thread_index(), lane = thread % 32;
    const bool along = !mixed && t.walk == Walk::along_rows;
    const int width = along ? 1 : t.tile_vectors, columns = width * own;
    int copy = thread / width, column = thread - copy * width;
    bool has_sum = copy < t.pass_rows;
    if (width < 32) {
      int distance = width;  // lanes of the same column
      while (distance * 2 < 32) distance *= 2;
      FUSED_BN_ROLLED
      for (; distance >= width; distance /= 2) {
        const bool adds = lane + distance < 32;
        FUSED_BN_UNROLL
        for (int k = 0; k < own; ++k) {
          const A first = shuffle_down(first_[k], distance), second = shuffle_down(second_[k], distance);
          if (adds) {
            first_[k] += first;
            second_[k] += second;
          }
        }
        if (distance == width) break;
      }
      copy = thread / 32;
      has_sum = lane < width;
    }
    if (!has_sum) return;
    A* to = sums + 2 * copy * columns + column * own;
    FUSED_BN_UNROLL
    for (int k = 0; k < own; ++k) {
      to[k] = first_[k];
      to[columns + k] = second_[k];
    }
  }

 private:
  FUSED_BN_DEVICE static bool is_small(A a) { return (a < A{0} ? -a : a) < kLarge<A>; }  // NaN is not

  A first_[kCount] = {}, second_[kCount] = {};
};

// Neighbouring lanes that work on one channel: as many as each channel can have, up to a warp.
struct LaneGroup {
  int channels, size, rank, index;

  FUSED_BN_DEVICE explicit LaneGroup(int channels_) : channels(channels_) {
    size = 32;
    while (size > 1 && size * channels > kThreads) size /= 2;
    index = thread_index() / size;
    rank = thread_index() % size;
  }

  // Compares each time: a kept answer would take a register.
  FUSED_BN_DEVICE bool has_channel() const { return optimisation_barrier(index) < channels; }

  // Sums both values over the lanes; every lane gets the sums.
  FUSED_BN_DEVICE void add_up(double& a, double& b) const {
    for (int distance = 1; distance < size; distance *= 2) {
      a += shuffle_xor(a, distance);
      b += shuffle_xor(b, distance);
    }
  }
};

// A channel's sums over a block. Every lane of the channel's group has them.
struct BlockSums {
  double first = 0, second = 0;
  bool scaled = false;  // whether these are sums of values times kSmaller

  // All threads call this. sum(scaled) returns a thread's sums. Sums that overflow are computed again from
  // scaled values; other channels keep theirs, because small values would vanish.
  template <class A, int vector, bool mixed, class Sum>
  FUSED_BN_DEVICE static BlockSums of(const Tiling& t, A* shared, const LaneGroup& lanes, int c, Sum sum) {
    auto sums = sum(std::false_type{});
    const bool large = sums.large();
    sums.leave(t, shared);
    const bool again = any_in_block(large);
    const BlockSums all = reduce<A, vector, mixed>(t, shared, lanes, c);
    if (!again) return all;
    sync_block();
    sum(std::true_type{}).leave(t, shared);
    sync_block();
    BlockSums smaller = reduce<A, vector, mixed>(t, shared, lanes, c);
    smaller.scaled = true;
    return is_finite(all.first) && is_finite(all.second) ? all : smaller;
  }

 private:
  template <class A, int vector, bool mixed>
  FUSED_BN_DEVICE static BlockSums reduce(const Tiling& t, const A* sums, const LaneGroup& lanes, int c) {
    BlockSums all;
    const int copies = sum_copies(t), columns = sum_columns(t);
    const bool along = !mixed && t.walk == Walk::along_rows;
    const int length = along ? 1 : mixed ? t.channel_length : t.channel_length / vector;
    const int own = length * t.fold;  // columns of the channel
    const int column_stride = own == 1 ? 1 : lanes.size, copy_stride = own == 1 ? lanes.size : 1;
    if (lanes.has_channel()) {
      FUSED_BN_ROLLED
      for (int copy = own == 1 ? lanes.rank : 0; copy < copies; copy += copy_stride) {
        const A* from = sums + 2 * copy * columns;
        FUSED_BN_ROLLED
        for (int j = own == 1 ? 0 : lanes.rank; j < own; j += column_stride) {
          const int image = t.fold == 1 ? 0 : j / length;  // or pixel
          const int column = c * length + j + image * (t.tile_channels - 1) * length;
          all.first += static_cast<double>(from[column]);
          all.second += static_cast<double>(from[columns + column]);
        }
      }
    }
    lanes.add_up(all.first, all.second);
    return all;
  }
};

}  // namespace fused_bn::cuda
