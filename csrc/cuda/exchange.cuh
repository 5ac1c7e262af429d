// What the blocks of a group tell each other: two values a channel from each block, the first in the units of
// a scale, the second in those of its square.
#pragma once

#include <cmath>

#include "cuda/elements.cuh"

namespace fused_bn::cuda {

template <class A>
class GroupExchange {
 public:
  FUSED_BN_DEVICE GroupExchange(const Geometry& g, Exchange kind, const Workspace& workspace,
                                const SharedLayout& layout)
      : g_(g),
        kind_(kind),
        workspace_(workspace),
        layout_(layout),
        team_(block_index() / g.group),
        rank_(block_index() - team_ * g.group) {}

  // The group's index among the groups, and the block's within it.
  FUSED_BN_DEVICE int team() const { return team_; }
  FUSED_BN_DEVICE int rank() const { return rank_; }

  // This block's values of channel c of the slab, by the same thread each time. With two kernels the second
  // one cannot ask for them at another scale: given again, they replace only what has overflowed. True where
  // they have.
  FUSED_BN_DEVICE bool publish(int slab, int c, A first, A second, A scale) {
    if (kind_ == Exchange::cluster) {
      A* own = in_shared();
      own[c] = first;
      own[g_.slab_channels + c] = second;
    } else {
      A* own = partials(slab, rank_) + c;
      if (kind_ == Exchange::two_kernels) {
        if (scale != 1 && is_finite(load_shared_result(own)) &&
            is_finite(load_shared_result(own + g_.slab_channels))) {
          return false;
        }
        store_shared_result(own + 2 * g_.slab_channels, scale);
      }
      store_shared_result(own, first);
      store_shared_result(own + g_.slab_channels, second);
    }
    return !is_finite(first) || !is_finite(second);
  }

  // Between publish and read, by all threads.
  FUSED_BN_DEVICE void wait() {
    if (kind_ == Exchange::cluster) {
      sync_cluster();
    } else {
      sync_block();
      if (kind_ == Exchange::barrier) barrier();
    }
  }

  // Field 0 or 1 of what block `rank` published, at this scale; NaN where that has overflowed.
  FUSED_BN_DEVICE A read(int slab, int rank, int field, int c, A scale) const {
    const int at = field * g_.slab_channels + c;
    if (kind_ == Exchange::cluster) return load_from_cluster(in_shared() + at, rank);
    const A* own = partials(slab, rank);
    const A value = load_shared_result(own + at);
    if (kind_ != Exchange::two_kernels) return value;
    const A published = load_shared_result(own + 2 * g_.slab_channels + c);
    if (published == scale) return value;
    return published == 1 ? value * scale * (field == 0 ? A{1} : scale) : static_cast<A>(NAN);
  }

  // Behind the last read of what was published: the next turn uses other memory, and the one after it begins
  // only when all blocks have come to its wait().
  FUSED_BN_DEVICE void next_turn() { turn_ ^= 1; }

  // A block's shared memory stays until the others of its cluster have read it.
  FUSED_BN_DEVICE void leave() {
    if (kind_ == Exchange::cluster) sync_cluster();
  }

 private:
  FUSED_BN_DEVICE A* partials(int slab, int rank) const {
    const unsigned which = kind_ == Exchange::two_kernels ? slab : turn_ * g_.groups + team_;
    const uint64_t block =
        static_cast<uint64_t>(which) * static_cast<unsigned>(g_.group) + static_cast<unsigned>(rank);
    const unsigned fields = kind_ == Exchange::two_kernels ? 3 : 2;
    return static_cast<A*>(workspace_.partials) + block * (fields * static_cast<unsigned>(g_.slab_channels));
  }
  FUSED_BN_DEVICE A* in_shared() const {
    return shared_part<A>(layout_.partials) + turn_ * 2 * g_.slab_channels;
  }

  // Sense-reversing: together the blocks add 2^31, so that the highest bit flips and the rest is 0 again.
  FUSED_BN_DEVICE void barrier() {
    if (thread_index() == 0) {
      const uint32_t step = rank_ == 0 ? 0x80000000u - static_cast<uint32_t>(g_.group - 1) : 1u;
      uint32_t* word = workspace_.words + (1 + team_) * kWordStride;
      wait_flip(word, add_release(word, step));
    }
    sync_block();
  }

  const Geometry& g_;
  const Exchange kind_;
  const Workspace& workspace_;
  const SharedLayout& layout_;
  const int team_, rank_;
  int turn_ = 0;
};

}  // namespace fused_bn::cuda
