// The resident kernel reads each element once and keeps it in shared memory until its result is written.
#pragma once

#include "cuda/kernels/backward.cuh"
#include "cuda/kernels/exchange.cuh"
#include "cuda/kernels/forward.cuh"

namespace fused_bn::cuda {

template <class Direction_>
class Resident {
 public:
  using Direction = Direction_;
  using Params = typename Direction::Params;
  using T = typename Direction::Element;
  using A = typename Direction::A;
  static constexpr Kernel kernel = Kernel::resident;
  static constexpr int vector = Direction::vector;
  static constexpr bool mixed = Direction::mixed;

  FUSED_BN_DEVICE explicit Resident(const Params& p)
      : t_(p.tiling), at_(p.layout), slots_(p.slots), direction_(p), exchange_(p) {}

  FUSED_BN_DEVICE void run() {
    const Vectors<mixed> first = vectors(exchange_.index());
    direction_.has_second() ? load<true>(first) : load<false>(first);
    exchange_.begin();
    direction_.count_batch();
    for (int iteration = 0, tile = exchange_.index();; ++iteration) {
      const int channels = t_.channels(tile), own = reread_thread_index();
      if (own < channels) {
        direction_.prepare(own, t_.first_channel(tile) + own, exchange_.is_writer(own));
      }
      wait_copies();
      sync_block();
      if (own < channels) {
        direction_.choose_pivot(own, t_.block_units(exchange_.rank()),
                                [&](int64_t unit) { return element(static_cast<int>(unit), own); });
      }
      sync_block();
      tell(iteration, tile, channels);
      finish(iteration, tile, channels);
      sync_block();
      exchange_.advance(iteration);
      const bool special = direction_.has_special_results();
      tile += t_.groups;
      if (tile >= t_.tiles) {
        special ? apply<true, false>(tile) : apply<false, false>(tile);
        return;
      }
      special ? apply<true, true>(tile) : apply<false, true>(tile);
      sync_block();  // the next tile overwrites the numbers
    }
  }

 private:
  FUSED_BN_DEVICE Vectors<mixed> vectors(int tile) const {
    return Vectors<mixed>(t_, optimisation_barrier(tile), optimisation_barrier(exchange_.rank()),
                          reread_thread_index());
  }

  // The thread's first slot. The block's slots are [tensors, slots, threads].
  FUSED_BN_DEVICE Pack* own_slots() const { return shared_part<Pack>(at_.slots) + thread_index(); }
  FUSED_BN_DEVICE int second() const { return slots_ * kThreads; }

  // Returns channel c's first value in a unit of the block's part, which any thread may have copied.
  FUSED_BN_DEVICE A element(int unit, int c) const {
    const int pass = unit / t_.pass_units, within = unit - pass * t_.pass_units;
    const bool along = t_.walk == Walk::along_rows;
    const int column = along ? 0 : c * t_.channel_length;
    const int thread = along ? within : within * t_.tile_vectors + column / vector;
    const auto* elements =
        reinterpret_cast<const T*>(shared_part<Pack>(at_.slots) + pass * kThreads + thread);
    return widen(elements[column % vector]);
  }

  template <bool two>
  FUSED_BN_DEVICE void load(Vectors<mixed> at) const {
    const auto* a = optimisation_barrier(vectors_of<T, vector>(direction_.data(0), at.start()));
    const auto* b = optimisation_barrier(vectors_of<T, vector>(direction_.data(1), at.start()));
    Pack* slot = own_slots();
    const int count = static_cast<int>(at.count());
    FUSED_BN_UNROLL_BY(8)
    for (int i = 0; i < count; ++i) {
      copy_async(slot + i * kThreads, a + at.offset());
      if constexpr (two) copy_async(slot + i * kThreads + second(), b + at.offset());
      at.next();
    }
  }

  template <bool scaled, bool special>
  FUSED_BN_DEVICE typename Direction::Sums sum_slots(Vectors<mixed> at) const {
    const typename Direction::template Summation<scaled, special> summation(direction_, at.column());
    const Pack* slot = own_slots();
    const int count = static_cast<int>(at.count());
    typename Direction::Sums sums;
    FUSED_BN_UNROLL_BY(special ? 2 : Direction::kSumUnroll)
    for (int i = 0; i < count; ++i) {
      const Pack a = load_shared(slot + i * kThreads);
      summation.add(a, Direction::kSummed == 1 ? a : load_shared(slot + i * kThreads + second()), at, sums);
      at.next();
    }
    return sums;
  }

  FUSED_BN_DEVICE void tell(int iteration, int tile, int channels) {
    const LaneGroup lanes(channels);
    const int c = lanes.has_channel() ? lanes.index : 0;
    const auto sum = [&](auto scaled) {
      const Vectors<mixed> at = vectors(tile);
      return direction_.has_special_sums() ? sum_slots<scaled.value, true>(at)
                                           : sum_slots<scaled.value, false>(at);
    };
    const auto sums = BlockSums::of<A, vector, mixed>(t_, shared_part<A>(at_.sums), lanes, c, sum);
    const A inverse_count = A{1} / static_cast<A>(static_cast<int>(t_.block_values(exchange_.rank())));
    exchange_.publish(iteration, lanes, c, direction_.partial(sums, c, inverse_count));
  }

  FUSED_BN_DEVICE void finish(int iteration, int tile, int channels) const {
    exchange_.merge(iteration, channels, [&](const LaneGroup& lanes, int c, bool leads, auto fetch) {
      const auto merged = direction_.merge(lanes, c, fetch);
      if (!leads) return;
      const Word finished = direction_.finish(c, merged, exchange_.is_writer(), t_.first_channel(tile) + c);
      exchange_.publish_result(iteration, c, finished);
    });
    exchange_.for_results(iteration, channels, [&](int c, const Word& word) { direction_.take(c, word); });
  }

  // Writes the results of the tile before `next`. has_next: loads the vectors of `next` into the same slots.
  template <bool special, bool has_next>
  FUSED_BN_DEVICE void apply(int next) const {
    Vectors<mixed> at = vectors(next - t_.groups);
    const typename Direction::template Results<special> results(direction_, at);
    Pack* slot = own_slots();
    const int count = static_cast<int>(at.count());
    const int passes = special && direction_.needs_all_lanes() ? slots_ : count;
    const int more = has_next ? static_cast<int>(vectors(next).count()) : 0;
    constexpr bool two = Direction::kSummed == 2 || special;
    FUSED_BN_UNROLL_BY(Direction::template kApplyUnroll < special || has_next >)
    for (int i = 0; i < passes; ++i) {
      const Pack a = load_shared(slot + i * kThreads);
      results.apply(a, two ? load_shared(slot + i * kThreads + second()) : a, at, !special || i < count);
      if (has_next && i < more) {
        const int64_t index = at.position() + int64_t{t_.groups} * t_.tile_vectors;
        copy_async(slot + i * kThreads, vectors_of<T, vector>(direction_.data(0), index));
        if (two) copy_async(slot + i * kThreads + second(), vectors_of<T, vector>(direction_.data(1), index));
      }
      at.next();
    }
  }

  const Tiling& t_;
  const SharedLayout& at_;
  const int slots_;
  const Direction direction_;
  GroupExchange exchange_;
};

}  // namespace fused_bn::cuda
