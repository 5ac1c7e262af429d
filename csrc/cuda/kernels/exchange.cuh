// The exchange of a group's blocks: docs/cuda.md, "Three kernels". Block c % group owns channel c.
#pragma once

#include "cuda/kernels/finish.cuh"

namespace fused_bn::cuda {

class GroupExchange {
 public:
  template <class Params>
  FUSED_BN_DEVICE explicit GroupExchange(const Params& p)
      : t_(p.tiling),
        kind_(p.exchange),
        scratch_(p.scratch),
        at_(p.layout),
        index_(block_index() / t_.group),
        rank_(block_index() - index_ * t_.group) {}

  FUSED_BN_DEVICE int index() const { return index_; }
  FUSED_BN_DEVICE int rank() const { return rank_; }
  // Whether this block saves the results of the tile's channel c; without c, of the channels that it merges.
  FUSED_BN_DEVICE bool is_writer(int c) const { return has_owners() ? c % t_.group == rank_ : rank_ == 0; }
  FUSED_BN_DEVICE bool is_writer() const { return has_owners() || rank_ == 0; }

  // Before the first sync_block().
  FUSED_BN_DEVICE void begin() const {
    if (kind_ == Exchange::cluster) {
      if (thread_index() == 0)
        init_barrier(barrier(), 16u * static_cast<uint32_t>(t_.group * t_.channels(index_)));
      arrive_cluster();
    }
    // Through shared memory, so that no thread publishes a word before the epoch is read.
    if (kind_ == Exchange::words && thread_index() == 0) shared_epoch() = load_epoch(scratch_.epoch);
  }

  // All threads call this with the block's partial result of channel c, the same in all lanes of a group.
  FUSED_BN_DEVICE void publish(int iteration, const LaneGroup& lanes, int c, const Partial<float>& partial) {
    own_ = partial;
    if (kind_ == Exchange::none) return;
    const bool on = lanes.has_channel();
    if (kind_ == Exchange::words) {
      if (!on || lanes.rank != 0) return;
      store_word(words(iteration) + c * t_.group + rank_,
                 {{partial.pivot, partial.mean, partial.rms}, epoch(iteration)});
    } else {
      wait_cluster();
      for (int r = lanes.rank; on && r < t_.group; r += lanes.size)
        push(partial, &pushed(c)[rank_], barrier(), r);
    }
  }

  // All threads call body(lanes, c, leads, fetch) for each channel c that this block merges; one lane of a
  // group leads. fetch(first, batch) loads the partial results of blocks first, first + lanes.size, ...
  template <class Body>
  FUSED_BN_DEVICE void merge(int iteration, int channels, Body body) const {
    if (kind_ == Exchange::cluster) wait_barrier(barrier());
    const int own = has_owners() ? (channels - rank_ + t_.group - 1) / t_.group : channels;
    const LaneGroup lanes(own);
    const bool on = lanes.has_channel();
    const int c = !on ? 0 : has_owners() ? rank_ + lanes.index * t_.group : lanes.index;
    body(lanes, c, on && lanes.rank == 0,
         [&](int first, Partial<float>(&batch)[kBatch]) { fetch(iteration, lanes, c, on, first, batch); });
  }

  // All threads call this after merge(), in which thread 0 of the first block got a word of every block of
  // its group: all have read the epoch. The last group to get here stores the next launch's epoch.
  FUSED_BN_DEVICE void advance(int iteration) const {
    if (kind_ != Exchange::words || rank_ != 0 || iteration != 0 || thread_index() != 0) return;
    const uint32_t last = static_cast<uint32_t>(t_.groups - 1);
    if (last > 0 && count_around(scratch_.epoch + 1, last) != last) return;
    store_epoch(scratch_.epoch, shared_epoch() + static_cast<uint32_t>(t_.iterations));
  }

  // The thread that leads in merge() publishes the result of channel c; other blocks get it by for_results().
  FUSED_BN_DEVICE void publish_result(int iteration, int c, Word result) const {
    if (!has_owners()) return;
    result.epoch = epoch(iteration);
    store_word(results(iteration) + c, result);
  }
  // Calls body(c, word) for each channel that another block merges.
  template <class Body>
  FUSED_BN_DEVICE void for_results(int iteration, int channels, Body body) const {
    const int c = thread_index();
    if (!has_owners() || c >= channels || c % t_.group == rank_) return;
    const Word* from = results(iteration) + c;
    Word word = load_word(from);
    while (word.epoch != epoch(iteration)) {
      pause(from);
      word = load_word(from);
    }
    body(c, word);
  }

 private:
  FUSED_BN_DEVICE bool has_owners() const {
    return kind_ == Exchange::words && words_have_owners(t_.group, t_.tile_channels);
  }

  FUSED_BN_DEVICE void fetch(int iteration, const LaneGroup& lanes, int c, bool on, int first,
                             Partial<float> (&batch)[kBatch]) const {
    if (kind_ == Exchange::none && first == 0) batch[0] = own_;
    if (kind_ == Exchange::cluster) {
      FUSED_BN_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int block = first + i * lanes.size;
        if (on && block < t_.group) batch[i] = pushed(c)[block];
      }
    }
    if (kind_ != Exchange::words || !on) return;
    const Word* from = words(iteration) + c * t_.group;
    const uint32_t awaited = epoch(iteration);
    bool all;
    do {  // the loads of a batch overlap
      all = true;
      FUSED_BN_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int block = first + i * lanes.size;
        if (block >= t_.group) continue;
        const Word word = load_word(from + block);
        batch[i] = {word.values[0], word.values[1], word.values[2], 0};
        if (word.epoch != awaited) {
          all = false;
          pause(from + block);
        }
      }
    } while (!all);
  }

  FUSED_BN_DEVICE uint64_t* barrier() const { return shared_part<uint64_t>(at_.barrier); }
  FUSED_BN_DEVICE uint32_t& shared_epoch() const { return *shared_part<uint32_t>(at_.barrier); }
  // Odd, because memory starts with the epoch 0.
  FUSED_BN_DEVICE uint32_t epoch(int iteration) const {
    return 2u * (shared_epoch() + static_cast<uint32_t>(iteration)) + 1u;
  }
  FUSED_BN_DEVICE Partial<float>* pushed(int c) const {
    return shared_part<Partial<float>>(at_.partials) + c * t_.group;
  }
  // The blocks' words, [tile_channels, group], then the results, [tile_channels]; two sets alternate.
  FUSED_BN_DEVICE Word* words(int iteration) const {
    const int64_t set = int64_t{iteration & 1} * t_.groups + index_;
    return scratch_.words + set * (t_.group + 1) * t_.tile_channels;
  }
  FUSED_BN_DEVICE Word* results(int iteration) const {
    return words(iteration) + t_.tile_channels * t_.group;
  }

  const Tiling& t_;
  const Exchange kind_;
  const Scratch& scratch_;
  const SharedLayout& at_;
  const int index_, rank_;  // the group's index; the block's rank in the group
  Partial<float> own_{};
};

}  // namespace fused_bn::cuda
