// What the blocks of a group tell each other: two values a channel from each block.
#pragma once

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

  // This block's values of channel c of the slab.
  FUSED_BN_DEVICE void publish(int slab, int c, A first, A second) {
    if (kind_ == Exchange::cluster || kind_ == Exchange::none) {
      A* own = in_shared();
      own[c] = first;
      own[g_.slab_channels + c] = second;
    } else {
      A* own = partials(slab, rank_);
      store_shared_result(own + c, first);
      store_shared_result(own + g_.slab_channels + c, second);
    }
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

  // Field 0 or 1 of what block `rank` published.
  FUSED_BN_DEVICE A read(int slab, int rank, int field, int c) const {
    const int at = field * g_.slab_channels + c;
    if (kind_ == Exchange::none) return in_shared()[at];
    if (kind_ == Exchange::cluster) return load_from_cluster(in_shared() + at, rank);
    return load_shared_result(partials(slab, rank) + at);
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
    return static_cast<A*>(workspace_.partials) + block * (2u * static_cast<unsigned>(g_.slab_channels));
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
